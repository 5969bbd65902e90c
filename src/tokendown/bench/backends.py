"""Which of PyTorch's attention kernels runs: chosen by name, or the fastest for dense attention."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .._errors import BenchError
from ..models.sources import first_line

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
    """Prefers one kernel; a call that it cannot take falls to the others.

    diffusers' own choice is set as well, so that the patch folds its bias into the head where the
    kernel refuses masks (docs/how-it-works.md, "Attention backends").

    Args:
        name: one of ``CHOICES`` but "best"; "default" leaves everything to PyTorch.
    """
    if name == DEFAULT:
        yield
        return
    from diffusers.models.attention_dispatch import attention_backend as diffusers_backend

    order = [_KERNELS[name]]
    if name != "math":  # which takes everything, and where PyTorch knows no priorities comes last
        order += [kernel for kernel in _KERNELS.values() if kernel != _KERNELS[name]]
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


def check_kernel(name: str, kernel: str, device: torch.device, dtype: torch.dtype) -> None:
    """Whether PyTorch took the kernel that was chosen.

    Raises:
        BenchError: another one.
    """
    if name not in (DEFAULT, kernel):
        raise BenchError(
            f"PyTorch takes {kernel} attention for this model as {dtype} on {device}, and not "
            f"{name}; use --backend {kernel} or --backend {BEST}"
        )


def fastest(candidates: Iterable[str], seconds: Callable[[str], float]) -> str:
    """The backend with which a call takes least time.

    Args:
        candidates: to be tried.
        seconds: of a call with that backend; may fail.

    Raises:
        BenchError: none of them works.
    """
    found: dict[str, float] = {}
    reasons = []
    for name in candidates:
        try:
            found[name] = seconds(name)
        except (RuntimeError, BenchError) as error:  # shapes that a kernel refuses, or memory
            reasons.append(f"{name}: {first_line(error)}")
    if not found:
        raise BenchError(f"no attention backend works here: {'; '.join(reasons)}")
    return min(found, key=lambda name: found[name])


def worth_trying(device: torch.device) -> tuple[str, ...]:
    """Backends that could be the fastest on a device.

    PyTorch's own choice first: diffusers copies its inputs for cuDNN by name.
    """
    return (DEFAULT, "flash", "cudnn", "efficient") if device.type == "cuda" else (DEFAULT,)
