"""torch.compile on a CUDA card, with kernels made by inductor and with CUDA graphs."""

from __future__ import annotations

import shutil

import pytest
import torch
from tests.compat.builders import one_level_unet
from torch._dynamo.testing import CompileCounterWithBackend

import tiny
import tiny_transformers
from device import DEVICE, distance, moved, needs_cuda, needs_device, two_calls
from tokendown import Grid, apply_patch, attend, remove_patch

pytestmark = [
    needs_device,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="inductor needs a C compiler"),
]
SIZE = (16, 12)
PATCH = {"factor": 2, "anchors": 3}


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@torch.no_grad()
def output(model, call):
    return tiny.flatten(model(**call)).clone()  # CUDA graphs write over their result


def test_a_compiled_unet():
    """One graph serves all steps; patched and restored after compilation."""
    model = one_level_unet().to(DEVICE)
    call = moved(tiny.inputs(model, *SIZE))
    dense = output(model, call)
    with apply_patch(model, **PATCH, method="jitter") as patch:
        wants = []
        for step in range(3):
            patch.set_progress(step, 4)
            wants.append(output(model, call))
    assert distance(wants[0], dense) > 1e-3
    assert not torch.equal(wants[0], wants[1])
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    patch = apply_patch(compiled, **PATCH, method="jitter")
    for step, want in enumerate(wants):
        patch.set_progress(step, 4)
        assert distance(output(compiled, call), want) < 1e-4
    assert counter.frame_count == 1
    patch.remove()
    assert torch.equal(output(model, call), dense)


def test_compiled_blocks_of_flux():
    model = tiny_transformers.flux().to(DEVICE)
    call = moved(tiny_transformers.inputs("flux", model, 6, 8))
    dense = output(model, call)
    with apply_patch(model, **PATCH):
        want = output(model, call)
    model.compile_repeated_blocks(fullgraph=True)
    with apply_patch(model, **PATCH):
        assert distance(output(model, call), want) < 1e-4
        with torch._dynamo.config.patch(error_on_recompile=True):
            assert distance(output(model, call), want) < 1e-4
    remove_patch(model)
    assert distance(output(model, call), dense) < 1e-4
    assert distance(want, dense) > 1e-3


@needs_cuda
def test_two_calls_in_a_graph(monkeypatch):
    query, key, value = (
        torch.randn(1, 2, 16 * 20, 64, device=DEVICE, dtype=torch.float16) for _ in range(3)
    )
    grid = Grid(16, 20)
    calls = two_calls(monkeypatch)
    want = attend(query, key, value, grid, factor=2, anchors=4)
    compiled = torch.compile(attend, fullgraph=True)
    assert distance(compiled(query, key, value, grid, factor=2, anchors=4), want) < 1e-2
    assert len(calls) == 4


@needs_cuda
@pytest.mark.parametrize("method", ["nearest", "jitter"])
def test_cuda_graphs_of_a_compiled_unet(method):
    model = one_level_unet().to(DEVICE)
    call = moved(tiny.inputs(model, *SIZE))
    compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    with apply_patch(model, **PATCH, method=method) as patch:
        for step in range(4):  # eager, recorded, replayed
            patch.set_progress(step, 5)
            torch.compiler.cudagraph_mark_step_begin()
            got = output(compiled, call)
            assert distance(got, output(model, call)) < 1e-4
