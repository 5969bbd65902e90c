"""Quantised linear layers in the attention modules: GGUF, torchao and bitsandbytes on a CPU.

The oracles run with the same quantised layers: the reference of tests/joint_reference.py, and
dense attention under a mask for the U-Net. GGUF comes with the development extra; the others have
their tests in tests/test_quantisers.py.
"""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention
from peft import LoraConfig
from torch import nn

import joint_reference
import tiny
import tiny_transformers
from tokendown import apply_patch, remove_patch

from .checks import assert_composes

SIZE = (6, 7)
HEADS = 4  # of 8 channels: GGUF quantises 32 weights together
PATCH = {"factor": 2, "anchors": 3}


def gguf_linear(linear: nn.Linear) -> nn.Module:
    """As diffusers loads it from a file; Q8_0."""
    gguf = pytest.importorskip("gguf")
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    kind = gguf.GGMLQuantizationType.Q8_0
    packed = gguf.quants.quantize(linear.weight.detach().numpy(), kind)
    made = GGUFLinear(
        linear.in_features, linear.out_features, linear.bias is not None, torch.float32
    )
    made.weight = GGUFParameter(torch.from_numpy(packed), quant_type=kind)
    if linear.bias is not None:
        made.bias = nn.Parameter(linear.bias.detach())
    return made.requires_grad_(False)


def torchao_weights(linear: nn.Linear) -> nn.Module:
    """int8 weights."""
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(linear, quantization.Int8WeightOnlyConfig(version=2))
    return linear


def torchao_activations(linear: nn.Linear) -> nn.Module:
    """int8 weights and activations, one scale a token."""
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(linear, quantization.Int8DynamicActivationInt8WeightConfig())
    return linear


def bitsandbytes_8(linear: nn.Linear) -> nn.Module:
    """int8 weights and activations, one scale a token."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    made = bitsandbytes.nn.Linear8bitLt(
        linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False
    )
    made.load_state_dict(linear.state_dict())
    return made.to("cpu")


def bitsandbytes_4(linear: nn.Linear) -> nn.Module:
    """NF4 weights."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    made = bitsandbytes.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        linear.bias is not None,
        compute_dtype=torch.float32,
        quant_type="nf4",
    )
    made.load_state_dict(linear.state_dict())
    return made.to("cpu")


def quantised(model: nn.Module, quantise) -> nn.Module:
    """In place: every projection of an attention module."""
    model.requires_grad_(False)
    for module in list(model.modules()):
        if not isinstance(module, (Attention, AttentionModuleMixin)):
            continue
        for name, linear in list(module.named_modules()):
            if type(linear) is nn.Linear and linear.in_features % 32 == 0:
                parent, _, child = name.rpartition(".")
                setattr(module.get_submodule(parent), child, quantise(linear))
    return model


def transformer(kind, quantise, lora: bool = False):
    """The same one every time: diffusers' GGUF weights cannot be copied."""
    model = quantised(getattr(tiny_transformers, kind)(num_attention_heads=HEADS), quantise)
    if lora:
        add_lora(model)
    return model


def add_lora(model) -> None:
    """On queries, keys and values, with weights that are not at their neutral start."""
    model.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_k", "to_v"]))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1


def run(kind, model):
    with torch.no_grad():
        return tiny.flatten(model(**tiny_transformers.inputs(kind, model, *SIZE)))


def reference(kind, model):
    """What a patched one should compute; spoils the model."""
    frames = tiny_transformers.FRAMES if kind == "wan" else 1
    want = joint_reference.Want(((frames, *SIZE),), anchors=3)
    joint_reference.coarsen(model, kind, want)
    return run(kind, model)


# Rounded activations jump where float32 differs in the last bit.
TOLERANCE = {torchao_activations: 0.02, bitsandbytes_8: 0.02}


def check_transformer(kind, quantise):
    model = transformer(kind, quantise)
    dense = run(kind, model)
    plain = getattr(tiny_transformers, kind)(num_attention_heads=HEADS)
    assert not torch.equal(dense, run(kind, plain)), "nothing was quantised"

    def assert_near(got, want):
        tolerance = TOLERANCE.get(quantise, 1e-5) * want.abs().max().item()
        torch.testing.assert_close(got, want, rtol=0, atol=tolerance)

    want = reference(kind, transformer(kind, quantise))
    assert not torch.equal(want, dense), "the reference does nothing"
    with apply_patch(model, factor=1, anchors=0):
        assert torch.equal(run(kind, model), dense)
    with apply_patch(model, **PATCH):
        assert_near(run(kind, model), want)
    assert torch.equal(run(kind, model), dense)

    with_lora = reference(kind, transformer(kind, quantise, lora=True))
    assert (with_lora - want).abs().max() > 0.05 * want.abs().max(), "LoRA does nothing"
    apply_patch(model, **PATCH)
    add_lora(model)  # under the patch
    assert_near(run(kind, model), with_lora)
    remove_patch(model)
    dense_lora = run(kind, model)
    with apply_patch(model, **PATCH):  # before the patch
        assert_near(run(kind, model), with_lora)
    assert torch.equal(run(kind, model), dense_lora)


def check_unet(quantise):
    options = {"block_out_channels": (32, 32), "attention_head_dim": 2}
    model = quantised(tiny.shallow_unet(**options), quantise)
    assert not torch.equal(tiny.run(model, 16, 12), tiny.run(tiny.shallow_unet(**options), 16, 12))
    assert_composes(model, lambda: tiny.run(model, 16, 12), tolerance=TOLERANCE.get(quantise, 1e-5))


def check(kind, quantise):
    check_unet(quantise) if kind == "unet" else check_transformer(kind, quantise)


@pytest.mark.compat(
    "quantised: GGUF", note="Q8_0 as diffusers holds it; FLUX, Wan, a U-Net; LoRA on top"
)
@pytest.mark.parametrize("kind", ["flux", "wan", "unet"])
def test_gguf(kind):
    check(kind, gguf_linear)
