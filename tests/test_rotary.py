"""Kept keys get the kept rows of the table: the same as rotating all and taking these."""

import pytest
import torch
from diffusers.models import attention_processor
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers import (
    transformer_flux,
    transformer_hunyuan_video,
    transformer_kandinsky,
    transformer_ltx2,
    transformer_qwenimage,
    transformer_wan,
    transformer_z_image,
)

from tokendown.adapters import rebind, rotary
from tokendown.adapters.dispatch import Call, current
from tokendown.sequence import Box, Sequence

TEXT = 3


@pytest.fixture(params=[0, 4], ids=["grid", "anchors"])
def sequence(request):
    plain = Sequence((Box(1, 5, 7, factor=2),), before=TEXT)
    scores = torch.rand(2, 35, generator=torch.Generator().manual_seed(1))
    return plain.with_anchors(scores, request.param) if request.param else plain


def rotate_kept(sequence, function, key, *args, **kwargs):
    """As a processor would, while its attention call is going to be ours."""
    stand_in = rotary.rotations({function.__name__: function})[function.__name__]
    current.call = Call(sequence, counted=True)
    try:
        return stand_in(key, *args, **kwargs)
    finally:
        current.call = None


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("image_only", [False, True])
def test_pairs_of_tables_without_a_batch(sequence, batch, image_only):
    if batch == 1 and sequence.anchors is not None:
        sequence = sequence.samples()[0]
    part = sequence.image_only() if image_only else sequence
    key, angles = torch.randn(batch, part.tokens, 2, 8), torch.randn(part.tokens, 8)
    table = angles.cos(), angles.sin()
    every = apply_rotary_emb(key, table, sequence_dim=1)
    got = rotate_kept(sequence, apply_rotary_emb, part.take(key, 1), table, sequence_dim=1)
    assert torch.equal(got, part.take(every, 1))


def test_complex_tables_of_image_tokens(sequence):
    function, part = transformer_qwenimage.apply_rotary_emb_qwen, sequence.image_only()
    key, angles = torch.randn(2, 35, 2, 8), torch.randn(35, 4)
    table = torch.polar(torch.ones_like(angles), angles)
    every = function(key, table, use_real=False)
    got = rotate_kept(sequence, function, part.take(key, 1), table, use_real=False)
    assert torch.equal(got, part.take(every, 1))


def test_what_is_as_long_as_its_table_is_left_alone(sequence):
    query, angles = torch.randn(2, sequence.tokens, 2, 8), torch.randn(sequence.tokens, 8)
    table = angles.cos(), angles.sin()
    every = apply_rotary_emb(query, table, sequence_dim=1)
    got = rotate_kept(sequence, apply_rotary_emb, query, table, sequence_dim=1)
    assert torch.equal(got, every)


def test_heads_before_tokens(sequence):
    key, angles = torch.randn(2, 2, sequence.tokens, 8), torch.randn(sequence.tokens, 8)
    table = angles.cos(), angles.sin()
    every = apply_rotary_emb(key, table)
    assert torch.equal(rotate_kept(sequence, apply_rotary_emb, key, table), every)
    got = rotate_kept(sequence, apply_rotary_emb, sequence.take(key, 2), table)
    assert torch.equal(got, sequence.take(every, 2))


@pytest.mark.parametrize("split", [False, True])
def test_tables_of_samples_and_heads(sequence, split):
    """LTX-2 rotates before it splits the heads, and may have a table for each of them."""
    if split:
        function, shape = transformer_ltx2.apply_split_rotary_emb, (2, 3, sequence.tokens, 4)
    else:
        function, shape = transformer_ltx2.apply_interleaved_rotary_emb, (2, sequence.tokens, 24)
    key, angles = torch.randn(2, sequence.tokens, 24), torch.randn(shape)
    table = angles.cos(), angles.sin()
    every = function(key, table)
    got = rotate_kept(sequence, function, sequence.take(key, 1), table)
    assert torch.equal(got, sequence.take(every, 1))
    assert torch.equal(rotate_kept(sequence, function, key, table), every)


PROCESSORS = {
    "a global": transformer_flux.FluxAttnProcessor,
    "a global, split": transformer_ltx2.LTX2AudioVideoAttnProcessor,
    "a global, under another name": transformer_qwenimage.QwenDoubleStreamAttnProcessor2_0,
    "imported by the code": transformer_hunyuan_video.HunyuanVideoAttnProcessor2_0,
    "imported from a sibling": attention_processor.CogVideoXAttnProcessor2_0,
    "inside the code": transformer_wan.WanAttnProcessor,
    "inside the code, complex": transformer_z_image.ZSingleStreamAttnProcessor,
}


@pytest.mark.parametrize("kind", PROCESSORS.values(), ids=PROCESSORS)
def test_which_processors_can_be_reached(kind):
    assert rebind.rotates_in_reach(kind)


@pytest.mark.parametrize(
    "kind",
    [transformer_kandinsky.Kandinsky5AttnProcessor, attention_processor.AllegroAttnProcessor2_0],
)
def test_which_cannot(kind):
    """One has another name for it and shapes keys like queries, one looks positions up."""
    assert not rebind.rotates_in_reach(kind)
