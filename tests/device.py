"""Where the tests for a CUDA card run, and what they have in common.

TOKENDOWN_TEST_DEVICE=cpu rehearses those that make sense there.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import attention_backend
from torch import Tensor

from tokendown import apply_patch, multiplicity

DEVICE = torch.device(os.environ.get("TOKENDOWN_TEST_DEVICE", "cuda"))
ON_CUDA = DEVICE.type == "cuda"

needs_device = pytest.mark.skipif(
    ON_CUDA and not torch.cuda.is_available(), reason="needs a CUDA card"
)
needs_cuda = pytest.mark.skipif(
    not (ON_CUDA and torch.cuda.is_available()), reason="needs a CUDA card, no rehearsal"
)


def moved(value: Any, device: torch.device = DEVICE, dtype: torch.dtype | None = None) -> Any:
    """Arguments of a call on a device; ``dtype`` is for floating-point tensors."""
    if isinstance(value, dict):
        return {name: moved(part, device, dtype) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(moved(part, device, dtype) for part in value)
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    return value


def two_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes weighed keys go in two calls however few they are; what is returned counts them."""
    calls: list[str] = []

    def counted(name: str, kernel: multiplicity.Kernel) -> multiplicity.Kernel:
        def run(*inputs: Any) -> tuple[Tensor, Tensor]:
            calls.append(name)
            return kernel(*inputs)

        return run

    kernels = {name: counted(name, kernel) for name, kernel in multiplicity._KERNELS.items()}
    monkeypatch.setattr(multiplicity, "_KERNELS", kernels)
    monkeypatch.setattr(multiplicity, "_WORTH_MERGING", 0)
    return calls


def check_two_calls(
    run: Callable[[], Tensor], model: Any, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a patched model computes in two calls is what it computes with a bias."""
    with apply_patch(model, factor=4, anchors=3, multiplicity=False):
        uncounted = run()
    with apply_patch(model, factor=4, anchors=3):
        want = run()
        calls = two_calls(monkeypatch)
        with attention_backend(backend):
            got = run()
    assert len(calls) >= 2
    assert distance(got, want) < distance(uncounted, want) / 4


def distance(got: Tensor, want: Tensor) -> float:
    """Norm of the difference, relative."""
    got, want = got.detach().cpu().double(), want.detach().cpu().double()
    assert got.shape == want.shape
    assert got.isfinite().all()
    return ((got - want).norm() / want.norm()).item()


def waits(call: Callable[[], Any]) -> list[str]:
    """Where a call waits for the card, "file:line"."""
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            call()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return [
        f"{Path(item.filename).name}:{item.lineno}"
        for item in seen
        if "synchronizing CUDA operation" in str(item.message)
    ]


def peak(call: Callable[[], Any]) -> int:
    """Bytes that a call needs on top of what is there."""
    call()  # workspaces
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
