"""Pipelines of diffusers around patched transformers, text given as embeddings.

The oracle is the same pipeline around a copy of the transformer that follows the formula of
tests/joint_reference.py.
"""

from __future__ import annotations

import copy

import diffusers
import pytest
import torch

import joint_reference
import tiny
import tiny_transformers
from tokendown import apply_patch, is_patched, remove_patch, summary

STEPS = 3
PATCH = {"factor": 2, "anchors": 3}
TEXT = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(1))
POOLED = torch.randn(1, 8, generator=torch.Generator().manual_seed(2))


def vae():
    """Like those of FLUX and SD3, whose latents are shifted."""
    coder = tiny.vae()
    coder.register_to_config(shift_factor=0.1)
    return coder


def flux(kind: str = "FluxPipeline"):
    pipe = getattr(diffusers, kind)(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=tiny_transformers.flux(in_channels=16),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture_of(pipe, height: int, width: int, **options):
    """Latents for a size in tokens, of two by two pixels of a latent of half the size."""
    return pipe(
        prompt_embeds=TEXT,
        pooled_prompt_embeds=POOLED,
        height=4 * height,
        width=4 * width,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **options,
    ).images.flatten()


def assert_follows(pipe, run, kind: str, want: joint_reference.Want, **patch) -> None:
    """Dense, patched as the formula says, and dense again."""
    dense = run()
    plain = pipe.transformer
    pipe.transformer = copy.deepcopy(plain)
    joint_reference.coarsen(pipe.transformer, kind, want)
    expected = run()
    pipe.transformer = plain
    assert (expected - dense).abs().max() > 1e-3
    with apply_patch(pipe, **PATCH, **patch):
        got = run()
    tolerance = 5e-4 * expected.abs().max().item()
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
    assert torch.equal(run(), dense)


@pytest.mark.compat("FluxPipeline", note="also in other sizes, under one patch")
def test_flux():
    pipe = flux()
    want = joint_reference.Want(((1, 6, 8),), anchors=3)
    assert_follows(pipe, lambda: picture_of(pipe, 6, 8), "flux", want)
    apply_patch(pipe, **PATCH)
    first = picture_of(pipe, 6, 8)
    turned = picture_of(pipe, 8, 6)
    assert torch.equal(picture_of(pipe, 6, 8), first)
    remove_patch(pipe)
    with apply_patch(pipe, **PATCH):
        assert torch.equal(picture_of(pipe, 8, 6), turned)
    assert not is_patched(pipe)


@pytest.mark.compat("FluxPipeline: step window", note="follows the scheduler")
def test_a_step_window():
    pipe = flux()
    dense = picture_of(pipe, 6, 8)
    with apply_patch(pipe, **PATCH):
        always = picture_of(pipe, 6, 8)
    with apply_patch(pipe, **PATCH, start=0.0, stop=0.5):
        early = picture_of(pipe, 6, 8)
    assert not torch.equal(early, always)
    assert not torch.equal(early, dense)


@pytest.mark.compat("FluxKontextPipeline", note="the reference keeps its keys, or a part of them")
@pytest.mark.parametrize("references", [1, 2])
def test_kontext(references):
    pipe = flux("FluxKontextPipeline")
    image = torch.rand(1, 3, 32, 16, generator=torch.Generator().manual_seed(3))

    def run():
        return picture_of(pipe, 6, 8, image=image, _auto_resize=False, max_area=24 * 32)

    want = joint_reference.Want(((1, 6, 8), (1, 8, 4)), anchors=3, references=references)
    assert_follows(pipe, run, "flux", want, references=references)


@pytest.mark.compat("StableDiffusion3Pipeline", note="with guidance")
def test_sd3():
    transformer = tiny_transformers.sd35()
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    negative = {"negative_prompt_embeds": -TEXT, "negative_pooled_prompt_embeds": -POOLED}
    want = joint_reference.Want(((1, 6, 8),), anchors=3)
    assert_follows(pipe, lambda: picture_of(pipe, 6, 8, **negative), "sd35", want)
    found = summary(pipe, height=24, width=32)
    assert found.layers[0].grid == (6, 8)
