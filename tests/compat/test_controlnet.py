"""ControlNets beside the denoiser: dense by default, patched when asked for."""

from __future__ import annotations

import diffusers
import pytest
import torch
from tests import tiny

from tokendown import apply_patch, is_patched

from .checks import ANCHORS, FACTORS, assert_composes, oracle

SQUARE = {(12, 12): 2, (6, 6): 2}
KIND = "StableDiffusionControlNetPipeline"


def control_image(seed: int = 3):
    return torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(seed))


def picture(pipe, **options):
    return tiny.image_of(pipe, image=control_image(), output_type="latent", **options)


@pytest.mark.compat("ControlNet, itself dense", note="StableDiffusionControlNetPipeline")
def test_controlnet_stays_dense_by_default(tokenizer_folder):
    pipe = tiny.sd_pipeline(tokenizer_folder, kind=KIND, controlnet=tiny.controlnet())
    assert_composes(pipe, lambda: picture(pipe), grids=SQUARE)
    with apply_patch(pipe, factor=FACTORS):
        assert is_patched(pipe.unet)
        assert not is_patched(pipe.controlnet)
        controlled = picture(pipe)
        assert not torch.equal(picture(pipe, controlnet_conditioning_scale=0.0), controlled)


@pytest.mark.compat("ControlNet, patched too", note="apply_patch(pipe, controlnet=True)")
@pytest.mark.parametrize("count", [1, 2], ids=["one", "two"])
def test_patched_controlnet(tokenizer_folder, count):
    nets = [tiny.controlnet(seed) for seed in range(count)]
    pipe = tiny.sd_pipeline(tokenizer_folder, kind=KIND, controlnet=nets if count > 1 else nets[0])

    def run():
        image = control_image()
        return tiny.image_of(
            pipe, image=[image] * count if count > 1 else image, output_type="latent"
        )

    dense = run()
    with oracle(pipe.unet, SQUARE):
        only_unet = run()
        with oracle(pipe.controlnet, SQUARE):
            want = run()
    with apply_patch(
        pipe, factor=FACTORS, anchors=ANCHORS, method="nearest", controlnet=True
    ) as patch:
        assert len(patch.models) == 1 + count
        got = run()
    assert (only_unet - want).abs().max() > 1e-2
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4 * want.abs().max().item())
    assert not is_patched(pipe)
    assert torch.equal(run(), dense)


@pytest.mark.compat("ControlNet: exchanged under the patch", note="and a pipeline from another")
def test_controlnet_added_to_a_patched_unet(tokenizer_folder):
    """``from_pipe`` shares the patched U-Net; the new ControlNet comes dense."""
    plain = tiny.sd_pipeline(tokenizer_folder)
    patch = apply_patch(plain, factor=FACTORS, anchors=ANCHORS, method="nearest")
    pipe = diffusers.StableDiffusionControlNetPipeline.from_pipe(
        plain, controlnet=tiny.controlnet()
    )
    pipe.set_progress_bar_config(disable=True)
    got = picture(pipe)
    patch.remove()
    dense = picture(pipe)
    with oracle(pipe.unet, SQUARE):
        want = picture(pipe)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4 * want.abs().max().item())
    assert not torch.equal(got, dense)
