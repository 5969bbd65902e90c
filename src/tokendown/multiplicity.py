"""How often kept keys count: a bias on the logits, or two calls without one.

The keys of an attention call come in runs of equal multiplicity m, with log m on their logits.
CUDA kernels take half as long again with such a bias (benchmarks/attention_cuda.py). Two calls, one
a multiplicity, need none: with L the log-sum-exp of the logits of a call, its result has the weight
m exp(L), so that a sigmoid of the difference of L + log m merges the two.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend

Runs = tuple[tuple[int, int], ...]
"""(how many keys, their multiplicity) in the order of the keys."""
Kernel = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""Query, key, value [B, heads, tokens, d] and scale -> result, log-sum-exp [B, heads, queries]."""

# Fewer logits than this, and starting more kernels takes longer than the bias does.
_WORTH_MERGING = 2**29


def uneven(runs: Runs) -> bool:
    """Whether some keys count more than others; a constant m cancels in the softmax."""
    return len({m for count, m in runs if count}) > 1


def bias_of(runs: Runs, like: Tensor) -> Tensor | None:
    """log m of every key, [keys], or None where they all count the same.

    Args:
        runs: of the keys.
        like: gives device and dtype.
    """
    if not uneven(runs):
        return None
    bias, start = like.new_zeros(sum(count for count, _ in runs)), 0
    for count, m in runs:
        if count and m != 1:
            bias.narrow(0, start, count).fill_(log(m))
        start += count
    return bias


def weighed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    runs: Runs,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention in which every key counts as often as its run says, on PyTorch's own kernels.

    Args:
        query: [B, heads, queries, d].
        key: [B, heads, keys, d].
        value: [B, heads, keys, d].
        runs: of the keys.
        scale: of the logits; None means 1 / sqrt(d).
        enable_gqa: whether key and value have fewer heads.

    Returns:
        [B, heads, queries, d]
    """
    out = in_two_calls(query, key, value, runs, scale=scale)
    if out is not None:
        return out
    bias = bias_of(runs, query)
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        None if bias is None else bias.view(1, 1, 1, -1),
        scale=scale,
        enable_gqa=enable_gqa,
    )


def in_two_calls(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    runs: Runs,
    *,
    scale: float | None = None,
    kernel: str | None = None,
) -> Tensor | None:
    """The same as ``weighed``, without a bias.

    Args:
        query: [B, heads, queries, d].
        key: [B, heads, keys, d].
        value: [B, heads, keys, d].
        runs: of the keys.
        scale: of the logits; None means 1 / sqrt(d).
        kernel: its name, see ``kernel_for``.

    Returns:
        [B, heads, queries, d], or None where a bias costs less, or no kernel can do it.
    """
    logits = query.shape[:-1].numel() * key.shape[2]
    if len(_by_multiplicity(runs)) != 2 or logits < _WORTH_MERGING:
        return None
    chosen = kernel_for(query, key, value, kernel) if query.shape[1] == key.shape[1] else None
    return None if chosen is None else merged(query, key, value, runs, chosen, scale=scale)


def merged(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    runs: Runs,
    kernel: Kernel,
    *,
    scale: float | None = None,
) -> Tensor:
    """The same as ``weighed`` in two calls of a kernel; ``runs`` have two multiplicities."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    results = []
    for m, spans in _by_multiplicity(runs).items():
        out, total = kernel(query, _keys(key, spans), _keys(value, spans), scale)
        results.append((out, total + log(m)))
    (first, first_sum), (second, second_sum) = results
    share = torch.sigmoid(second_sum - first_sum).to(first.dtype)
    return torch.lerp(first, second, share.unsqueeze(-1))


def _by_multiplicity(runs: Runs) -> dict[int, list[tuple[int, int]]]:
    """Multiplicity to (start, count) of its runs."""
    found: dict[int, list[tuple[int, int]]] = {}
    start = 0
    for count, m in runs:
        if count:
            found.setdefault(m, []).append((start, count))
        start += count
    return found


def _keys(x: Tensor, spans: list[tuple[int, int]]) -> Tensor:
    parts = [x.narrow(-2, start, count) for start, count in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


def kernel_for(query: Tensor, key: Tensor, value: Tensor, name: str | None = None) -> Kernel | None:
    """A kernel that tells its log-sum-exp: the one that PyTorch would take, if it does.

    Args:
        query: [B, heads, queries, d].
        key: [B, heads, keys, d].
        value: [B, heads, keys, d].
        name: "cudnn" or "flash" for that one.

    Returns:
        None on a CPU, where a bias is free; for kernels that do not tell; and where gradients are
        wanted, which these calls have not.
    """
    if query.device.type != "cuda" or query.dtype not in (torch.float16, torch.bfloat16):
        return None
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        return None
    if name is None:
        if torch.compiler.is_compiling():
            name = _choice_in_a_graph(query.shape[-1], query.dtype, query.device)
        else:
            name = _choice(query, key, value)
    return _KERNELS.get(name)


def _choice(query: Tensor, key: Tensor, value: Tensor) -> str:
    chosen = SDPBackend(torch._fused_sdp_choice(query, key, value))
    return _NAMES.get(chosen, "")


def _choice_in_a_graph(size: int, dtype: torch.dtype, device: torch.device) -> str:
    """What the choice depends on, where the tensors have no values."""
    some = torch.empty(1, 1, 128, size, dtype=dtype, device=device)
    return _choice(some, some, some)


# What torch.compiler.assume_constant_result does, without importing the compiler for it.
_choice_in_a_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _cudnn(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, total, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query, key, value, None, True, scale=scale
    )
    return out, total.reshape(out.shape[:-1])


def _flash(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    size = query.shape[-1]
    if size % 8:
        query, key, value = (functional.pad(x, (0, -size % 8)) for x in (query, key, value))
    out, total, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, scale=scale
    )
    return out[..., :size], total


_NAMES = {SDPBackend.CUDNN_ATTENTION: "cudnn", SDPBackend.FLASH_ATTENTION: "flash"}
_KERNELS: dict[str, Kernel] = {"cudnn": _cudnn, "flash": _flash}
