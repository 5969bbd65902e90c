"""What is installed on a transformer besides the patch: LoRA, quantised layers, processors.

The oracle is the written-out reference of tests/joint_reference.py, run with the feature.
"""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import attention_backend
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from peft import LoraConfig
from torch import nn

import joint_reference
import tiny
import tiny_transformers
from tokendown import apply_patch, is_patched, remove_patch

SIZE = (6, 7)
PATCH = {"factor": 2, "anchors": 3}


def run(kind, model, **extra):
    with torch.no_grad():
        return tiny.flatten(model(**tiny_transformers.inputs(kind, model, *SIZE), **extra))


def want_of(kind):
    frames = tiny_transformers.FRAMES if kind in ("wan", "hunyuan_video", "kandinsky5") else 1
    return joint_reference.Want(((frames, *SIZE),), anchors=3)


def reference(kind, model):
    """The output of a copy that follows the formula."""
    model = copy.deepcopy(model)
    joint_reference.coarsen(model, kind, want_of(kind))
    return run(kind, model)


def assert_near(got, want, tolerance=2e-4) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * want.abs().max().item())


def add_lora(model) -> None:
    """On every projection, with weights that are not at their neutral start."""
    targets = ["to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "to_query", "to_key", "to_value"]
    model.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=targets))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


@pytest.mark.compat("transformers: LoRA (peft)", note="loaded before and under the patch")
@pytest.mark.parametrize("kind", ["flux", "sd3", "qwen_image", "wan", "kandinsky5"])
def test_lora(kind):
    model = getattr(tiny_transformers, kind)()
    plain = run(kind, model)
    with_lora = copy.deepcopy(model)
    add_lora(with_lora)
    dense, want = run(kind, with_lora), reference(kind, with_lora)
    assert not torch.equal(dense, plain)
    with apply_patch(with_lora, **PATCH):  # LoRA first
        assert_near(run(kind, with_lora), want)
    assert torch.equal(run(kind, with_lora), dense)
    apply_patch(model, **PATCH)  # the patch first
    add_lora(model)
    assert_near(run(kind, model), want)
    model.delete_adapters("default")
    remove_patch(model)
    assert torch.equal(run(kind, model), plain)


@pytest.mark.compat("transformers: quantised linear layers", note="torch's dynamic int8 on a CPU")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", ["flux", "wan"])
def test_quantised_layers_are_called_as_they_are(kind):
    """Weights stay packed, and no attribute of theirs is looked at but ``out_features``."""
    model = getattr(tiny_transformers, kind)()
    dense = run(kind, model)
    names = {name for name, _ in model.named_modules() if name.endswith(("to_k", "to_v"))}
    quantised = torch.ao.quantization.quantize_dynamic(
        model, dict.fromkeys(names, torch.ao.quantization.default_dynamic_qconfig)
    )
    kinds = {type(quantised.get_submodule(name)) for name in names}
    assert nn.Linear not in kinds
    assert not torch.equal(run(kind, quantised), dense)
    want = run_dequantised(kind, quantised, names)
    with apply_patch(quantised, **PATCH):
        # int8 rounds activations with one scale a call, which follows the kept tokens
        assert_near(run(kind, quantised), want, tolerance=0.03)


def run_dequantised(kind, model, names):
    """The reference with the same, unpacked weights."""
    plain = copy.deepcopy(model)
    for name in names:
        packed = plain.get_submodule(name)
        linear = nn.Linear(packed.in_features, packed.out_features)
        linear.weight.data = packed.weight().dequantize()
        linear.bias.data = packed.bias().detach()
        parent, _, child = name.rpartition(".")
        setattr(plain.get_submodule(parent), child, linear)
    joint_reference.coarsen(plain, kind, want_of(kind))
    return run(kind, plain)


@pytest.mark.compat("transformers: fuse_qkv_projections", note="before and under the patch")
@pytest.mark.parametrize("kind", ["flux", "sd3", "wan"])
def test_fused_projections(kind):
    model = getattr(tiny_transformers, kind)()
    dense, want = run(kind, model), reference(kind, model)
    apply_patch(model, **PATCH)
    assert_near(run(kind, model), want)
    model.fuse_qkv_projections()
    assert_near(run(kind, model), want)
    remove_patch(model)
    assert_near(run(kind, model), dense)
    with apply_patch(model, **PATCH):
        assert_near(run(kind, model), want)
    model.unfuse_qkv_projections()
    assert_near(run(kind, model), dense)


@pytest.mark.compat("transformers: set_attention_backend", note="before and after the patch")
@pytest.mark.parametrize("backend", ["_native_math", "flex"])
@pytest.mark.parametrize("kind", ["flux", "wan"])
def test_set_attention_backend(kind, backend):
    model = getattr(tiny_transformers, kind)()
    want = reference(kind, model)

    def used() -> set[object]:
        return {processor._attention_backend for processor in model.attn_processors.values()}

    apply_patch(model, **PATCH)
    model.set_attention_backend(backend)
    assert len(used()) == 1
    assert_near(run(kind, model), want)
    remove_patch(model)
    with apply_patch(model, **PATCH):
        assert_near(run(kind, model), want)
        model.reset_attention_backend()
        _AttentionBackendRegistry.set_active_backend("native")
        assert_near(run(kind, model), want)


class RefusesMasks:
    """Spies on a backend of diffusers, and behaves as flash kernels do."""

    def __init__(self, backend) -> None:
        self.backend = backend
        self.keys: list[int] = []

    def __call__(self, query, key, value, attn_mask=None, **kwargs):
        assert attn_mask is None
        self.keys.append(key.shape[1])
        return self.backend(query=query, key=key, value=value, **kwargs)


@pytest.mark.compat("transformers: flash backends", note="the bias travels in a head channel")
@pytest.mark.parametrize("kind", ["flux", "wan"])
def test_backends_that_refuse_masks(kind, monkeypatch):
    model = getattr(tiny_transformers, kind)()
    want = reference(kind, model)
    backends = _AttentionBackendRegistry._backends
    name = next(key for key in backends if key.value == "_native_math")
    spy = RefusesMasks(backends[name])
    monkeypatch.setitem(backends, name, spy)
    monkeypatch.setitem(
        _AttentionBackendRegistry._supported_arg_names,
        name,
        {"query", "key", "value", "scale", "dropout_p", "is_causal", "enable_gqa"},
    )
    with apply_patch(model, **PATCH), attention_backend(name):
        assert_near(run(kind, model), want)
    assert min(spy.keys) < SIZE[0] * SIZE[1]


@pytest.mark.compat("transformers: IP-Adapter processors", note="FLUX; exchanged under the patch")
def test_ip_adapter_of_flux():
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    model = tiny_transformers.flux()
    plain = reference("flux", model)
    dense = run("flux", model)
    apply_patch(model, **PATCH)
    before = run("flux", model)
    adapters = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, processor in model.attn_processors.items():
            if name.startswith("transformer_blocks"):
                processor = FluxIPAdapterAttnProcessor(tiny_transformers.DIM, 6)
            adapters[name] = processor
        image = [torch.randn(2, 4, 6)]
    model.set_attn_processor(adapters)
    extra = {"joint_attention_kwargs": {"ip_hidden_states": image}}
    with_image = run("flux", model, **extra)
    assert not torch.equal(with_image, before)
    remove_patch(model)
    dense_image = run("flux", model, **extra)
    assert not torch.equal(dense_image, dense)
    zeroed = [torch.zeros(2, 4, 6)]
    for processor in model.attn_processors.values():
        if isinstance(processor, nn.Module):
            for parameter in processor.parameters():
                parameter.data.zero_()
    with apply_patch(model, **PATCH):  # an adapter that says nothing is no adapter
        silent = run("flux", model, joint_attention_kwargs={"ip_hidden_states": zeroed})
        assert_near(silent, plain)
    assert not is_patched(model)


@pytest.mark.compat("transformers: gradient checkpointing", note="gradients as without it")
def test_gradients_with_checkpointing():
    model = tiny_transformers.flux().train()
    apply_patch(model, **PATCH)

    def gradient():
        arguments = tiny_transformers.inputs("flux", model, *SIZE)
        arguments["hidden_states"].requires_grad_()
        tiny.flatten(model(**arguments)).square().sum().backward()
        return arguments["hidden_states"].grad

    plain = gradient()
    model.enable_gradient_checkpointing()
    assert plain.abs().max() > 0
    torch.testing.assert_close(gradient(), plain)
