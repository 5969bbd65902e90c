"""Which of PyTorch's attention kernels runs: chosen by name, or the fastest for dense attention."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .._errors import BenchError

DEFAULT, BEST = "default", "best"
_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
CHOICES = (DEFAULT, *_KERNELS, BEST)


@contextlib.contextmanager
def attention_backend(name: str) -> Iterator[None]:
    """Prefers one kernel; a call that it cannot take falls to the next best.

    diffusers' own choice is set as well, so that the patch folds its bias into the head where the
    kernel refuses masks (docs/how-it-works.md, "Attention backends").

    Args:
        name: one of ``CHOICES`` but "best"; "default" leaves everything to PyTorch.
    """
    if name == DEFAULT:
        yield
        return
    from diffusers.models.attention_dispatch import attention_backend as diffusers_backend

    order = [_KERNELS[name], *(kernel for kernel in _KERNELS.values() if kernel != _KERNELS[name])]
    with sdpa_kernel(order, set_priority=True), diffusers_backend(f"_native_{name}"):
        yield


def chosen_kernel(heads: int, head_dim: int, device: torch.device, dtype: torch.dtype) -> str:
    """The kernel that PyTorch takes right now for dense attention of this head size."""
    query = torch.zeros(1, heads, 128, head_dim, device=device, dtype=dtype)
    try:
        found = SDPBackend(torch._fused_sdp_choice(query, query, query))
    except (RuntimeError, NotImplementedError):  # a device without a choice
        return "unknown"
    return next((name for name, kernel in _KERNELS.items() if kernel == found), "math")


def fastest(seconds: Callable[[], float], device: torch.device) -> str:
    """The backend with which a call takes least time; only CUDA has more than one worth trying.

    Args:
        seconds: runs the dense model once or more and says how long a call took.
        device: where.

    Raises:
        BenchError: none of them works.
    """
    if device.type != "cuda":
        return DEFAULT
    found: dict[str, float] = {}
    reasons = []
    for name in (DEFAULT, "flash", "cudnn", "efficient"):
        try:
            with attention_backend(name):
                found[name] = seconds()
        except RuntimeError as error:  # a kernel that does not take these shapes, or memory
            reasons.append(f"{name}: {error}")
    if not found:
        raise BenchError(f"no attention backend works here: {'; '.join(reasons)}")
    return min(found, key=lambda name: found[name])
