"""What only a CUDA card can show: transformers, and the attention backends of diffusers."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

import joint_reference
import tiny
import tiny_transformers
from device import DEVICE, check_two_calls, distance, moved, needs_cuda, needs_device, waits
from joint_reference import Want
from tokendown import apply_patch, remove_patch

pytestmark = needs_device
CPU = torch.device("cpu")
SIZE = (6, 8)
PATCH = {"factor": 2, "anchors": 3}
VIDEO = ("wan", "hunyuan_video")
# Heads of 64 channels, which every kernel takes; one layer, so that all backends choose the same
# anchors.
WIDE = {
    "flux": {
        "attention_head_dim": 64,
        "axes_dims_rope": (16, 24, 24),
        "num_layers": 1,
        "num_single_layers": 0,
    },
    "wan": {"attention_head_dim": 64, "num_layers": 1},
}


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch):
    """float32 means float32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@torch.no_grad()
def output(model, call):
    return tiny.flatten(model(**call))


def want_of(kind, model, call):
    """Output of a copy that follows the formula, in double precision on the CPU."""
    exact = copy.deepcopy(model).to(CPU).double()
    shape = (tiny_transformers.FRAMES if kind in VIDEO else 1, *SIZE)
    joint_reference.coarsen(exact, kind, Want((shape,), anchors=3))
    return output(exact, moved(call, CPU, torch.float64))


@pytest.mark.parametrize("kind", ["flux", "sd3", "sd35", "qwen_image", "wan", "hunyuan_video"])
def test_transformers_in_float32(kind):
    model = getattr(tiny_transformers, kind)()
    call = tiny_transformers.inputs(kind, model, *SIZE)
    want = want_of(kind, model, call)
    model.to(DEVICE)
    call = moved(call)
    dense = output(model, call)
    with apply_patch(model, **PATCH):
        got = output(model, call)
    assert distance(dense, want) > 1e-3
    assert distance(got, want) < 1e-4
    assert torch.equal(output(model, call), dense)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["flux", "sd3", "sd35", "wan"])
def test_transformers_in_half_precision(kind, dtype):
    """As near to the exact result as the dense model is."""
    model = getattr(tiny_transformers, kind)().to(dtype)
    call = tiny_transformers.inputs(kind, model, *SIZE)
    want = want_of(kind, model, call)
    dense = output(copy.deepcopy(model).double(), moved(call, CPU, torch.float64))
    model.to(DEVICE)
    call = moved(call)
    usual = distance(output(model, call), dense)
    with apply_patch(model, **PATCH):
        assert distance(output(model, call), want) < max(1e-2, 2 * usual)


@pytest.mark.parametrize("jitter", [False, True], ids=["", "jitter"])
@pytest.mark.parametrize(
    "backend",
    [
        "native",
        pytest.param("_native_flash", marks=needs_cuda),
        pytest.param("_native_cudnn", marks=needs_cuda),
        pytest.param("_native_efficient", marks=needs_cuda),
        "_native_math",
        "flex",
    ],
)
@pytest.mark.parametrize("kind", ["flux", "wan"])
def test_every_backend_weighs_the_kept_keys(kind, backend, jitter):
    """Chosen under the patch and before it."""
    model = getattr(tiny_transformers, kind)(**WIDE[kind]).to(DEVICE, torch.float16)
    call = moved(tiny_transformers.inputs(kind, model, *SIZE))
    options = {"factor": 4, "anchors": 3, "method": "jitter" if jitter else "nearest"}
    with apply_patch(model, **options, multiplicity=False):
        uncounted = output(model, call)
    apply_patch(model, **options)
    usual = output(model, call)
    try:
        model.set_attention_backend(backend)
        under = output(model, call)
        remove_patch(model)
        with apply_patch(model, **options):
            before = output(model, call)
    finally:
        _AttentionBackendRegistry.set_active_backend("native")
    assert distance(under, before) < 1e-3
    assert distance(under, usual) < distance(uncounted, usual) / 6


@needs_cuda
@pytest.mark.parametrize("backend", ["native", "_native_flash", "_native_cudnn"])
@pytest.mark.parametrize("kind", ["flux", "wan"])
def test_two_calls_weigh_as_a_bias_does(kind, backend, monkeypatch):
    model = getattr(tiny_transformers, kind)(**WIDE[kind]).to(DEVICE, torch.float16)
    call = moved(tiny_transformers.inputs(kind, model, *SIZE))
    check_two_calls(lambda: output(model, call), model, backend, monkeypatch)


@needs_cuda
@pytest.mark.parametrize("kind", ["flux", "sd35", "qwen_image", "wan", "chroma", "hunyuan_video"])
@pytest.mark.parametrize("method", ["nearest", "jitter"])
def test_a_patched_transformer_waits_no_more_often(kind, method):
    model = getattr(tiny_transformers, kind)().to(DEVICE)
    call = moved(tiny_transformers.inputs(kind, model, *SIZE))
    output(model, call)
    dense = waits(lambda: output(model, call))
    with apply_patch(model, **PATCH, method=method):
        output(model, call)  # reads positions, once a tensor
        assert Counter(waits(lambda: output(model, call))) <= Counter(dense)
