"""The attention call of a rebound processor: takes the kept keys, and lets them count.

What is to be kept travels beside the call, in a thread-local: a processor has no argument for it.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..attention import fold_bias
from ..sequence import Sequence


class Inputs(NamedTuple):
    """What an attention call is given; tokens are along ``dim``, 1 or 2."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float | None
    dim: int


class Call:
    """One run of a processor.

    Args:
        sequence: the joint sequence of keys.
        counted: whether kept keys count as often as they stand for a token.
    """

    def __init__(self, sequence: Sequence, counted: bool) -> None:
        self.sequence = sequence
        self.counted = counted
        self.done = False

    def claims(self, key: Tensor, value: Tensor, dim: int) -> bool:
        """Whether this is the attention over the joint sequence, not one to other keys."""
        return not self.done and self._is_ours(key.shape[dim]) and self._is_ours(value.shape[dim])

    def _is_ours(self, length: int) -> bool:
        # not "in": the compiler does not find a symbolic number in a tuple
        return length == self.sequence.tokens or length == self.sequence.kept

    def begin(self, inputs: Inputs) -> None:
        """This is it, before anything is dropped."""
        self.done = True

    def keep(self, x: Tensor, dim: int) -> Tensor:
        """The kept entries of a dimension, which may be all that is left of it already."""
        if x.shape[dim] == self.sequence.kept:
            return x
        return self.sequence.take(x, dim)

    def mask(self, given: Tensor | None) -> Tensor | None:
        """A mask over all keys, on the kept ones."""
        if given is None or given.shape[-1] == 1:  # the same for every key
            return given
        return self.keep(_once(given), given.ndim - 1)


def _once(mask: Tensor) -> Tensor:
    """[batch, heads, queries, keys] -> 1 where it is only expanded: keeping keys would copy it."""
    for dim in range(1, mask.ndim - 1):
        if mask.stride(dim) == 0:
            mask = mask.narrow(dim, 0, 1)
    return mask


class _Current(threading.local):
    def __init__(self) -> None:
        # set in every thread, not on the class: compiled code guards on what the instance has
        self.call: Call | None = None


current = _Current()


def dispatched(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    scale: float | None = None,
    backend: Any = None,
    parallel_config: Any = None,
    **kwargs: Any,
) -> Tensor:
    """In place of diffusers' ``dispatch_attention_fn``; tensors are [batch, tokens, heads, d]."""
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    options = {"scale": scale, "backend": backend, "parallel_config": parallel_config, **kwargs}
    call = current.call
    if call is None or not call.claims(key, value, 1):
        return dispatch_attention_fn(query, key, value, attn_mask, *args, **options)  # type: ignore[no-any-return]
    call.begin(Inputs(query, key, value, attn_mask, scale, 1))
    key, value, mask = call.keep(key, 1), call.keep(value, 1), call.mask(attn_mask)
    bias = call.sequence.bias(query) if call.counted else None
    if bias is None:
        return dispatch_attention_fn(query, key, value, mask, *args, **options)  # type: ignore[no-any-return]
    if mask is not None or (parallel_config is None and _takes_masks(backend)):
        mask = merge(mask, bias)
        return dispatch_attention_fn(query, key, value, mask, *args, **options)  # type: ignore[no-any-return]
    size = query.shape[-1]
    scale = size**-0.5 if scale is None else scale
    query, key, value = fold_bias(query, key, value, bias[:, None], scale=scale)
    options["scale"] = scale
    out: Tensor = dispatch_attention_fn(query, key, value, None, *args, **options)
    return out[..., :size]


def scaled_dot_product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """In place of torch's function of that name; tensors are [batch, heads, tokens, d]."""
    call = current.call
    if call is not None and call.claims(key, value, 2):
        call.begin(Inputs(query, key, value, attn_mask, kwargs.get("scale"), 2))
        key, value, attn_mask = call.keep(key, 2), call.keep(value, 2), call.mask(attn_mask)
        bias = call.sequence.bias(query) if call.counted else None
        if bias is not None:
            attn_mask = merge(attn_mask, bias)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask, *args, **kwargs)


def merge(mask: Tensor | None, bias: Tensor) -> Tensor:
    """A boolean or additive mask, or none, and what is added to the logits of every key.

    Args:
        mask: [..., keys] with four dimensions, or None.
        bias: [keys].

    Returns:
        Four dimensions, additive.
    """
    if mask is None:
        return bias[None, None, None]
    if mask.dtype == torch.bool:
        return bias.masked_fill(~mask, -torch.inf)  # torch.where would wait for a GPU
    return mask + bias


def _takes_masks(backend: Any) -> bool:
    """Whether a bias can go in as a mask: so on PyTorch's default, not on flash kernels."""
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    if backend is None:
        backend, _ = _AttentionBackendRegistry.get_active_backend()
    return backend == AttentionBackendName.NATIVE  # type: ignore[no-any-return]
