"""Pipelines that start from a picture: other channels, other numbers of steps, other conditions."""

from __future__ import annotations

import pytest
import torch
from tests import tiny

from tokendown import NothingPatchedError, apply_patch, is_patched

from .builders import upscaler
from .checks import assert_composes

SQUARE = {(12, 12): 2, (6, 6): 2}


def picture(seed: int = 3, size: int = 24):
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.compat("img2img", note="StableDiffusionImg2ImgPipeline")
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_image_to_image(tokenizer_folder, strength):
    pipe = tiny.sd_pipeline(tokenizer_folder, kind="StableDiffusionImg2ImgPipeline")
    assert_composes(
        pipe,
        lambda: tiny.image_of(
            pipe, steps=4, image=picture(), strength=strength, output_type="latent"
        ),
        grids=SQUARE,
    )


@pytest.mark.compat("img2img with a step window", note="fractions of the whole schedule")
def test_step_window_of_image_to_image(tokenizer_folder):
    """Strength one half runs the last two of four steps, so that the first half never comes."""
    pipe = tiny.sd_pipeline(tokenizer_folder, kind="StableDiffusionImg2ImgPipeline")

    def run():
        return tiny.image_of(pipe, steps=4, image=picture(), strength=0.5, output_type="latent")

    dense = run()
    with apply_patch(pipe, factor=2, stop=0.5):
        assert torch.equal(run(), dense)
    with apply_patch(pipe, factor=2):
        always = run()
    assert not torch.equal(always, dense)
    with apply_patch(pipe, factor=2, start=0.5):
        assert torch.equal(run(), always)
    with apply_patch(pipe, factor=2, start=0.75):  # the last step alone
        last = run()
    assert not torch.equal(last, always)
    assert not torch.equal(last, dense)


@pytest.mark.compat("inpaint", note="with a U-Net of 4 and of 9 input channels")
@pytest.mark.parametrize("channels", [4, 9])
def test_inpainting(tokenizer_folder, channels):
    unet = tiny.sd_unet(in_channels=channels, out_channels=4)
    pipe = tiny.sd_pipeline(tokenizer_folder, kind="StableDiffusionInpaintPipeline", unet=unet)
    mask = torch.zeros(1, 1, 24, 24)
    mask[..., 6:18, 4:20] = 1

    def run():
        return tiny.image_of(
            pipe, image=picture(), mask_image=mask, height=24, width=24, output_type="latent"
        )

    assert_composes(pipe, run, grids=SQUARE)


@pytest.mark.compat("InstructPix2Pix", note="three-fold guidance, 8 input channels")
def test_instruct_pix2pix(tokenizer_folder):
    pipe = tiny.sd_pipeline(
        tokenizer_folder,
        kind="StableDiffusionInstructPix2PixPipeline",
        unet=tiny.sd_unet(in_channels=8, out_channels=4),
    )
    assert_composes(
        pipe,
        lambda: tiny.image_of(
            pipe, image=picture(), image_guidance_scale=1.2, output_type="latent"
        ),
        grids=SQUARE,
    )


@pytest.mark.compat(
    "upscale", note="StableDiffusionUpscalePipeline; levels of cross-attention only"
)
def test_upscaling(tokenizer_folder):
    """The U-Net is like the published one: self-attention at the lowest resolution only."""
    pipe = upscaler(tokenizer_folder)
    low = picture()

    def run():
        return tiny.image_of(pipe, image=low, noise_level=20, output_type="latent")

    assert_composes(pipe, run, grids={(6, 6): 2}, factors={4: 2})
    with pytest.raises(NothingPatchedError, match="this model has it at 4"):
        apply_patch(pipe, factor={1: 2})
    with pytest.raises(NothingPatchedError):
        apply_patch(pipe, preset="paper")
    assert not is_patched(pipe)
