"""LoRA through peft: on the denoiser and through a pipeline's file loader."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from tests import tiny

from tokendown import apply_patch

from .checks import ANCHORS, FACTORS, LATENT, assert_composes, oracle

PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0"]


def add_lora(unet, seed: int = 1, name: str = "default") -> None:
    """An adapter whose weights are not at their neutral start."""
    config = LoraConfig(r=2, lora_alpha=4, target_modules=PROJECTIONS)
    unet.add_adapter(config, adapter_name=name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in unet.named_parameters():
            if "lora_" in parameter_name and f".{name}." in parameter_name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


@pytest.mark.compat("LoRA (peft): load, unload", note="U-Net adapter, patch before and after")
def test_load_and_unload():
    unet = tiny.sd_unet()
    assert_composes(
        unet,
        lambda: tiny.run(unet, *LATENT),
        on=lambda: add_lora(unet),
        off=lambda: unet.delete_adapters("default"),
    )


@pytest.mark.compat("LoRA (peft): fuse, unfuse", note="equals the patched model of merged weights")
def test_fused_weights_equal_merged_weights():
    unet, merged = tiny.sd_unet(), tiny.sd_unet()
    for model in (unet, merged):
        add_lora(model)
    with torch.no_grad():
        merged.fuse_lora()  # before the patch, on a model of its own
    apply_patch(merged, factor=FACTORS, anchors=ANCHORS)
    want = tiny.run(merged, *LATENT)

    dense = tiny.run(unet, *LATENT)
    patch = apply_patch(unet, factor=FACTORS, anchors=ANCHORS)
    side_branch = tiny.run(unet, *LATENT)
    torch.testing.assert_close(side_branch, want, rtol=0, atol=2e-4 * want.abs().max().item())
    with torch.no_grad():
        unet.fuse_lora()  # under the patch
    assert torch.equal(tiny.run(unet, *LATENT), want)
    unet.unfuse_lora()
    torch.testing.assert_close(tiny.run(unet, *LATENT), side_branch, rtol=0, atol=1e-4)
    patch.remove()
    torch.testing.assert_close(tiny.run(unet, *LATENT), dense, rtol=0, atol=1e-4)
    assert not torch.equal(side_branch, dense)


@pytest.mark.compat("LoRA (peft): two adapters, switched and weighted", note="set_adapters")
def test_switching_adapters_under_the_patch():
    unet = tiny.sd_unet()
    add_lora(unet, 1, "one")
    add_lora(unet, 2, "two")
    unet.set_adapters(["one", "two"], [0.5, 1.5])
    with oracle(unet):
        want_both = tiny.run(unet, *LATENT)
    unet.set_adapters("two")
    dense = tiny.run(unet, *LATENT)
    with oracle(unet):
        want_two = tiny.run(unet, *LATENT)
    with apply_patch(unet, factor=FACTORS, anchors=ANCHORS):
        torch.testing.assert_close(tiny.run(unet, *LATENT), want_two, rtol=0, atol=1e-3)
        unet.set_adapters(["one", "two"], [0.5, 1.5])
        torch.testing.assert_close(tiny.run(unet, *LATENT), want_both, rtol=0, atol=1e-3)
        unet.set_adapters("two")
    assert (want_both - want_two).abs().max() > 0.01
    assert torch.equal(tiny.run(unet, *LATENT), dense)


@pytest.mark.compat("LoRA (peft): pipeline load_lora_weights, fuse_lora, unload_lora_weights")
def test_pipeline_loader(tokenizer_folder, tmp_path):
    donor = tiny.sd_unet()
    add_lora(donor)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=get_peft_model_state_dict(donor)
    )
    pipe = tiny.sd_pipeline(tokenizer_folder)

    def load() -> None:
        pipe.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")

    def run():
        return tiny.image_of(pipe, size=24, output_type="latent")

    grids = {(12, 12): 2, (6, 6): 2}
    assert_composes(pipe, run, on=load, off=pipe.unload_lora_weights, grids=grids)

    load()
    dense = run()
    pipe.unload_lora_weights()
    with apply_patch(pipe, factor=FACTORS, anchors=ANCHORS):
        load()
        want = run()
        pipe.fuse_lora()
        pipe.unload_lora_weights()  # the weights stay merged
        torch.testing.assert_close(run(), want, rtol=0, atol=1e-3 * want.abs().max().item())
    torch.testing.assert_close(run(), dense, rtol=0, atol=1e-3 * dense.abs().max().item())
    assert (want - dense).abs().max() > 0.01 * dense.abs().max()


@pytest.mark.compat("LoRA (peft): PeftModel", note="in the place of the U-Net in a pipeline")
def test_a_wrapped_denoiser_in_a_pipeline(tokenizer_folder):
    pipe = tiny.sd_pipeline(tokenizer_folder)
    config = LoraConfig(r=2, target_modules=PROJECTIONS, init_lora_weights=False)
    pipe.unet = get_peft_model(pipe.unet, config)

    def run():
        return tiny.image_of(pipe, size=24, output_type="latent")

    assert_composes(pipe, run, grids={(12, 12): 2, (6, 6): 2})
