"""ControlNets beside the denoiser: dense by default, patched when asked for."""

from __future__ import annotations

import diffusers
import pytest
import torch
from tests import tiny

from tokendown import UnsupportedModelError, apply_patch, is_patched, summary

from .builders import controlnet_xs, sdxl, sparse_control
from .checks import ANCHORS, FACTORS, assert_composes, oracle

SQUARE = {(12, 12): 2, (6, 6): 2}
KIND = "StableDiffusionControlNetPipeline"


def control_image(seed: int = 3):
    return torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(seed))


def picture(pipe, **options):
    return tiny.image_of(pipe, image=control_image(), output_type="latent", **options)


def assert_both_follow(pipe, run, count=1, grids=SQUARE, factors=FACTORS):
    """The U-Net and ``count`` ControlNets, patched, against the oracle on all of them."""
    dense = run()
    with oracle(pipe.unet, grids):
        only_unet = run()
        with oracle(pipe.controlnet, grids):
            want = run()
    with apply_patch(
        pipe, factor=factors, anchors=ANCHORS, method="nearest", controlnet=True
    ) as patch:
        assert len(patch.models) == 1 + count
        got = run()
        assert summary(pipe, height=24, width=24).model.count("ControlNet") == count
    assert (only_unet - want).abs().max() > 1e-2
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4 * want.abs().max().item())
    assert not is_patched(pipe)
    assert torch.equal(run(), dense)


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

    assert_both_follow(pipe, run, count)


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


@pytest.mark.compat(
    "ControlNet Union", note="StableDiffusionXLControlNetUnionPipeline; dense, and patched too"
)
@pytest.mark.parametrize("count", [1, 2], ids=["one", "two"])
def test_union(tokenizer_folder, count):
    width = 2 * tiny.TEXT_DIM
    nets = [tiny.union_controlnet(seed, cross_attention_dim=width) for seed in range(count)]
    pipe = diffusers.StableDiffusionXLControlNetUnionPipeline(
        **sdxl(tokenizer_folder).components, controlnet=nets if count > 1 else nets[0]
    )
    pipe.set_progress_bar_config(disable=True)
    images = [control_image(), control_image(4)]
    control = {"control_image": images, "control_mode": [0, 1]}  # two of one, or one of each

    def run():
        return tiny.image_of(pipe, size=24, output_type="latent", **control)

    grids, factors = {(6, 6): 2, (3, 3): 2}, {2: 2, 4: 2}
    assert_composes(pipe, run, grids=grids, factors=factors)
    assert_both_follow(pipe, run, count, grids, factors)


@pytest.mark.compat(
    "SparseCtrl", note="AnimateDiffSparseControlNetPipeline; dense, and patched too"
)
def test_sparse_control(tokenizer_folder):
    pipe = sparse_control(tokenizer_folder)
    frames = {
        "conditioning_frames": [control_image(), control_image(4)],
        "controlnet_frame_indices": [0, 2],
        "num_frames": 3,
    }

    def run():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the pipeline encodes its frames without the generator
            size = {"height": 24, "width": 24, "num_inference_steps": 2}
            return pipe("a cat", **frames, **size, output_type="latent").frames

    assert_composes(pipe, run, grids=SQUARE)
    assert_both_follow(pipe, run)


@pytest.mark.compat("ControlNet-XS", note="StableDiffusionControlNetXSPipeline; one U-Net for both")
def test_controlnet_xs(tokenizer_folder):
    pipe = controlnet_xs(tokenizer_folder)
    assert type(pipe.unet) is diffusers.UNetControlNetXSModel
    assert_composes(pipe, lambda: picture(pipe), grids=SQUARE)
    grids = {layer.grid for layer in summary(pipe, height=24, width=32).layers}
    assert grids == {(12, 16), (6, 8)}
    with apply_patch(pipe, factor=FACTORS):
        controlled = picture(pipe)
        assert not torch.equal(picture(pipe, controlnet_conditioning_scale=0.0), controlled)
    with pytest.raises(UnsupportedModelError, match="patched with the U-Net"):
        apply_patch(pipe, controlnet=True)
    assert not is_patched(pipe)
