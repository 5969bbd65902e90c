"""Video: only spatial self-attention is coarsened, temporal attention is as it was."""

from __future__ import annotations

import diffusers
import pytest
import torch
from PIL import Image
from tests import tiny

from tokendown import apply_patch, is_patched, remove_patch

from .builders import animatediff, stable_video
from .checks import ANCHORS, LATENT, assert_composes

FACTORS = {1: 2, 2: 2}
PATCH = {"factor": FACTORS, "anchors": ANCHORS}


def temporal_modules(unet):
    """Name and module of everything that attends over frames."""
    kinds = (
        "AnimateDiffTransformer3D",
        "TransformerTemporalModel",
        "TemporalBasicTransformerBlock",
    )
    return [(name, part) for name, part in unet.named_modules() if type(part).__name__ in kinds]


@pytest.mark.compat("temporal attention", note="AnimateDiff, SVD: bit-equal in isolation")
@pytest.mark.parametrize("make", [tiny.motion_unet, tiny.svd_unet], ids=["AnimateDiff", "SVD"])
def test_temporal_modules_are_bit_equal_in_isolation(make):
    """Each temporal module, called by itself with what it got in the dense model."""
    unet = make()
    calls = {}

    def note(name):
        def hook(module, args, kwargs, output):
            calls[name] = (args, kwargs, output)

        return hook

    modules = temporal_modules(unet)
    assert modules
    handles = [m.register_forward_hook(note(n), with_kwargs=True) for n, m in modules]
    dense = tiny.run(unet, *LATENT)
    for handle in handles:
        handle.remove()
    assert len(calls) == len(modules)
    patch = apply_patch(unet, **PATCH)
    assert not torch.equal(tiny.run(unet, *LATENT), dense)
    for name, module in modules:
        args, kwargs, output = calls[name]
        with torch.no_grad():
            assert torch.equal(tiny.flatten(module(*args, **kwargs)), tiny.flatten(output)), name
        assert not any(layer.name.startswith(name) for layer in patch._plans[0].layers)
    patch.remove()
    assert torch.equal(tiny.run(unet, *LATENT), dense)


@pytest.mark.compat("AnimateDiff pipeline", note="with a motion adapter, and FreeNoise")
@pytest.mark.parametrize("free_noise", [False, True], ids=["plain", "FreeNoise"])
def test_animatediff(tokenizer_folder, free_noise):
    pipe = animatediff(tokenizer_folder)

    def run():
        return pipe(
            "a cat",
            num_frames=6 if free_noise else 2,
            num_inference_steps=2,
            height=24,
            width=32,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).frames

    feature = {}
    if free_noise:
        feature = {
            "on": lambda: pipe.enable_free_noise(context_length=4, context_stride=2),
            "off": pipe.disable_free_noise,
        }
    assert_composes(pipe, run, **feature, grids={(12, 16): 2, (6, 8): 2})


@pytest.mark.compat("AnimateDiff from a patched U-Net", note="a new network: patch the pipeline")
def test_a_motion_unet_made_of_a_patched_unet_is_dense():
    """diffusers copies the weights into another network; the patch stays where it was."""
    unet = tiny.sd_unet()
    apply_patch(unet, **PATCH)
    motion = diffusers.UNetMotionModel.from_unet2d(unet)
    assert is_patched(unet)
    assert not is_patched(motion)
    dense = tiny.run(motion, *LATENT)
    remove_patch(unet)
    assert torch.equal(tiny.run(motion, *LATENT), dense)
    with apply_patch(motion, **PATCH):
        assert not torch.equal(tiny.run(motion, *LATENT), dense)


@pytest.mark.compat("Stable Video Diffusion pipeline", note="its layers of space")
def test_stable_video_diffusion():
    pipe = stable_video()
    picture = Image.effect_noise((24, 32), 60).convert("RGB")

    def run():
        return pipe(
            picture,
            num_frames=2,
            num_inference_steps=2,
            height=32,
            width=24,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).frames

    assert_composes(pipe, run, grids={(16, 12): 2, (8, 6): 2})
