"""Weights that live elsewhere between calls.

There is no accelerator here: the execution device is the CPU as well. What is real: accelerate's
and diffusers' own hooks around the same modules, in the same order; weights on the meta device
between calls with sequential offload, and on disk with group offload to disk. What is emulated:
the copy to another device, which is a copy from the CPU to the CPU.
"""

from __future__ import annotations

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import remove_hook_from_module
from diffusers import PyramidAttentionBroadcastConfig
from diffusers.hooks import HookRegistry
from tests import tiny
from tests.older import needs_pinned

from tokendown import apply_patch, remove_patch

from .checks import ANCHORS, FACTORS, LATENT, assert_composes

CPU = torch.device("cpu")
EVERY_SECOND = PyramidAttentionBroadcastConfig(
    spatial_attention_block_skip_range=2,
    spatial_attention_timestep_skip_range=(0, 1),
    current_timestep_callback=lambda: 500,
    spatial_attention_block_identifiers=["transformer_blocks"],
)
SQUARE = {(12, 12): 2, (6, 6): 2}


def picture(pipe):
    return tiny.image_of(pipe, size=24, output_type="latent")


@pytest.mark.compat("enable_model_cpu_offload", note="accelerate's hooks; device is the CPU")
def test_model_offload(tokenizer_folder):
    pipe = tiny.sd_pipeline(tokenizer_folder, unet=tiny.shallow_unet())

    def on() -> None:
        pipe.enable_model_cpu_offload(device="cpu")
        assert hasattr(pipe.unet, "_hf_hook")

    assert_composes(
        pipe, lambda: picture(pipe), on, pipe.remove_all_hooks, visible=False, grids=SQUARE
    )


@pytest.mark.compat(
    "enable_sequential_cpu_offload", note="accelerate's cpu_offload; weights on meta between calls"
)
def test_sequential_offload(tokenizer_folder):
    pipe = tiny.sd_pipeline(tokenizer_folder, unet=tiny.shallow_unet())

    def on() -> None:
        # What pipe.enable_sequential_cpu_offload does; it would insist on a device with an index,
        # and accelerate takes "cpu:0" for another device than "cpu".
        for part in (pipe.unet, pipe.text_encoder, pipe.vae):
            cpu_offload(part, CPU, offload_buffers=len(part._parameters) > 0)
        assert next(pipe.unet.parameters()).device.type == "meta"

    assert_composes(
        pipe, lambda: picture(pipe), on, pipe.remove_all_hooks, visible=False, grids=SQUARE
    )


def without_group_offload(model) -> None:
    """diffusers has no public way back; this is what it does itself before loading a LoRA."""
    registry = HookRegistry.check_if_exists_or_initialize(model)
    for name in ("group_offloading", "lazy_prefetch_group_offloading"):
        registry.remove_hook(name, recurse=True)


@pytest.mark.compat("enable_group_offload", note="leaf and block level, to memory and to disk")
@needs_pinned("its group offload asks for an accelerator")
@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("level", ["leaf_level", "block_level"])
def test_group_offload(level, where, tmp_path):
    unet = tiny.shallow_unet()

    def on() -> None:
        unet.enable_group_offload(
            onload_device=CPU,
            offload_device=CPU,
            offload_type=level,
            num_blocks_per_group=1 if level == "block_level" else None,
            offload_to_disk_path=str(tmp_path) if where == "disk" else None,
        )

    off = (lambda: without_group_offload(unet)) if where == "memory" else None
    assert_composes(unet, lambda: tiny.run(unet, *LATENT), on, off, visible=False)


@pytest.mark.compat("enable_group_offload of a whole pipeline", note="leaf level")
@needs_pinned("its group offload asks for an accelerator")
def test_group_offload_of_a_pipeline(tokenizer_folder):
    pipe = tiny.sd_pipeline(tokenizer_folder, unet=tiny.shallow_unet())

    def on() -> None:
        pipe.enable_group_offload(onload_device=CPU, offload_type="leaf_level")

    assert_composes(pipe, lambda: picture(pipe), on, visible=False, grids=SQUARE)


@pytest.mark.compat("enable_layerwise_casting", note="storage in float8_e4m3fn")
def test_layerwise_casting():
    unet = tiny.shallow_unet()

    def on() -> None:
        unet.enable_layerwise_casting(
            storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
        )
        assert unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_k.weight.dtype == (
            torch.float8_e4m3fn
        )

    inputs = tiny.inputs(unet, *LATENT)
    with torch.no_grad():
        assert_composes(unet, lambda: tiny.flatten(unet(**inputs)), on)


@pytest.mark.compat("dtype changes under the patch", note=".to(bfloat16) and back")
def test_a_patched_model_changes_dtype():
    unet = tiny.shallow_unet()
    expected = tiny.shallow_unet().to(torch.bfloat16)
    apply_patch(expected, factor=FACTORS, anchors=ANCHORS)
    apply_patch(unet, factor=FACTORS, anchors=ANCHORS)
    patched = tiny.run(unet, *LATENT)
    unet.to(torch.bfloat16)
    assert torch.equal(tiny.run(unet, *LATENT), tiny.run(expected, *LATENT))
    assert tiny.run(unet, *LATENT).dtype == torch.bfloat16
    remove_patch(unet)
    assert not torch.equal(tiny.run(unet.float(), *LATENT), patched)


@pytest.mark.compat("hooks that leave while the patch stays", note="accelerate's; a cache's")
@pytest.mark.parametrize("hooks", ["accelerate", "cache"])
def test_hooks_that_were_there_first_and_leave_first(hooks):
    model = tiny.shallow_unet() if hooks == "accelerate" else tiny.latte()
    dense = tiny.run(model, 16, 16)
    with apply_patch(model, factor=2):
        want = tiny.run(model, 16, 16)
    assert not torch.equal(want, dense)
    if hooks == "accelerate":
        dispatch_model(model, {"": "cpu"}, force_hooks=True)
    else:
        model.enable_cache(EVERY_SECOND)
    patch = apply_patch(model, factor=2)
    if hooks == "accelerate":
        remove_hook_from_module(model, recurse=True)
    else:
        model.disable_cache()
    assert torch.equal(tiny.run(model, 16, 16), want)
    patch.remove()
    assert torch.equal(tiny.run(model, 16, 16), dense)
    assert not any(module._forward_pre_hooks for module in model.modules())
