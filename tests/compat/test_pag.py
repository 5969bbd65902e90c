"""Perturbed-attention guidance replaces values by queries: its layers need every key."""

from __future__ import annotations

import pytest
import torch
from tests import tiny

from tokendown import NothingPatchedError, apply_patch, summary

from .checks import ANCHORS, FACTORS, assert_composes

KIND = "StableDiffusionPAGPipeline"
PATCH = {"factor": FACTORS, "anchors": ANCHORS}
SQUARE = {(12, 12): 2, (6, 6): 2}
REASON = "perturbed-attention guidance needs every key"


def picture(pipe, **options):
    return tiny.image_of(
        pipe, size=24, output_type="latent", **{"pag_scale": 3.0, "guidance_scale": 5.0, **options}
    )


@pytest.mark.compat("PAG", note="StableDiffusionPAGPipeline; its layers stay dense, others do not")
@pytest.mark.parametrize("guidance", [1.0, 5.0], ids=["pag", "pag and guidance"])
@pytest.mark.parametrize("layers", ["mid", "down_blocks.0"])
def test_perturbed_layers_stay_dense(tokenizer_folder, layers, guidance):
    """The pipeline puts its processors in for the time of a call, over the oracle's."""
    pipe = tiny.sd_pipeline(tokenizer_folder, kind=KIND, pag_applied_layers=[layers])
    without = picture(pipe, pag_scale=0.0, guidance_scale=guidance)
    assert not torch.equal(picture(pipe, guidance_scale=guidance), without)
    assert_composes(pipe, lambda: picture(pipe, guidance_scale=guidance), grids=SQUARE)
    assert {type(p).__name__ for p in pipe.unet.attn_processors.values()} == {"AttnProcessor2_0"}


@pytest.mark.compat("PAG", note="a perturbed layer that the patch would hit is as dense as ever")
def test_guidance_on_a_patched_layer_equals_dense_guidance(tokenizer_folder):
    pipe = tiny.sd_pipeline(
        tokenizer_folder, kind=KIND, unet=tiny.shallow_unet(), pag_applied_layers=["down", "up"]
    )
    pipe.set_pag_applied_layers(["down_blocks.0", "up_blocks.1"])
    dense = picture(pipe)
    with apply_patch(pipe, factor=2, anchors=ANCHORS):
        assert torch.equal(picture(pipe), dense)  # every level-1 layer is perturbed
        assert not torch.equal(picture(pipe, pag_scale=0.0), dense)


@pytest.mark.compat("PAG: said in summary", note="where the processors are in place")
def test_perturbed_layers_are_named(tokenizer_folder):
    pipe = tiny.sd_pipeline(tokenizer_folder, kind=KIND, pag_applied_layers=["down_blocks.0"])
    pipe._set_pag_attn_processor(["down_blocks.0"], do_classifier_free_guidance=True)
    apply_patch(pipe, **PATCH)
    notes = {layer.name: layer.note for layer in summary(pipe, height=24, width=24).layers}
    assert [name for name, note in notes.items() if note == REASON] == [
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    ]
    pipe._set_pag_attn_processor(["down_blocks", "up_blocks", "mid"], True)
    with pytest.raises(NothingPatchedError, match=REASON):
        apply_patch(pipe, **PATCH)


@pytest.mark.compat("PAG: said in summary", note="of a pipeline between its calls")
def test_layers_that_will_be_perturbed_are_named(tokenizer_folder):
    pipe = tiny.sd_pipeline(tokenizer_folder, kind=KIND, pag_applied_layers=["down_blocks.0"])
    apply_patch(pipe, **PATCH)
    rows = summary(pipe, height=24, width=24).layers
    named = [row for row in rows if row.note == REASON]
    assert [row.name for row in named] == ["down_blocks.0.attentions.0.transformer_blocks.0.attn1"]
    assert named[0].keys_after == named[0].keys_before
    assert any(row.keys_after < row.keys_before for row in rows)
