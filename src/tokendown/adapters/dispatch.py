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
from ..multiplicity import Runs, bias_of, in_two_calls, uneven, weighed
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


class CallBySample(Call):
    """One run of a processor that calls attention once a sample, with its valid text alone (Mochi).

    Args:
        sequence: of every sample with all of its text, which is behind the image tokens.
        counted: whether kept keys count as often as they stand for a token.
        samples: how many there are.
    """

    def __init__(self, sequence: Sequence, counted: bool, samples: int) -> None:
        super().__init__(sequence, counted)
        self.whole = sequence
        self.waiting = list(range(samples))

    def claims(self, key: Tensor, value: Tensor, dim: int) -> bool:
        text = self._text(key, dim)
        return not self.done and 0 <= text <= self.whole.after and text == self._text(value, dim)

    def _text(self, x: Tensor, dim: int) -> int:
        """How many tokens of text are behind kept image tokens."""
        return x.shape[dim] - self.whole.image_only().kept

    def begin(self, inputs: Inputs) -> None:
        sequence = self.whole.image_only(self._text(inputs.key, inputs.dim))
        sample = self.waiting.pop(0)
        self.sequence = sequence.samples()[sample] if sequence.anchors is not None else sequence
        if not self.waiting:
            super().begin(inputs)


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
    runs = call.sequence.runs() if call.counted else ()
    if mask is None:
        return weighed_on_backend(query, key, value, runs, *args, **options)
    bias = bias_of(runs, query)
    mask = mask if bias is None else merge(mask, bias)
    return dispatch_attention_fn(query, key, value, mask, *args, **options)  # type: ignore[no-any-return]


def weighed_on_backend(  # noqa: D417
    query: Tensor,
    key: Tensor,
    value: Tensor,
    runs: Runs,
    *args: Any,
    scale: float | None = None,
    backend: Any = None,
    parallel_config: Any = None,
    **kwargs: Any,
) -> Tensor:
    """Attention in which keys count as often as their runs say, in the way that costs least.

    Two calls on PyTorch's CUDA kernels; a broadcast mask on its default otherwise; one more head
    channel elsewhere, for other kernels refuse masks (benchmarks/attention_cuda.py).

    Args:
        query: [batch, queries, heads, d].
        key: [batch, keys, heads, d].
        value: [batch, keys, heads, d].
        runs: of the keys; empty where all count the same.
        scale: of the logits; None means 1 / sqrt(d).
        backend: of diffusers; None means the active one.
        parallel_config: of diffusers.
        args, kwargs: further arguments of ``dispatch_attention_fn``.
    """
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    options = {"backend": backend, "parallel_config": parallel_config, **kwargs}
    if not uneven(runs):
        return dispatch_attention_fn(query, key, value, None, *args, scale=scale, **options)  # type: ignore[no-any-return]
    name = "" if parallel_config is not None else backend_name(backend)
    if name in _OWN_KERNELS:
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        out = in_two_calls(q, k, v, runs, scale=scale, kernel=_OWN_KERNELS[name])
        if out is not None:
            return out.transpose(1, 2)
    bias = bias_of(runs, query)
    assert bias is not None, "not all keys count the same"
    if name == "native":
        mask = merge(None, bias)
        return dispatch_attention_fn(query, key, value, mask, *args, scale=scale, **options)  # type: ignore[no-any-return]
    size = query.shape[-1]
    scale = size**-0.5 if scale is None else scale
    query, key, value = fold_bias(query, key, value, bias[:, None], scale=scale)
    folded: Tensor = dispatch_attention_fn(query, key, value, None, *args, scale=scale, **options)
    return folded[..., :size]


# Backends of diffusers that are kernels of PyTorch, to the kernel; None is PyTorch's choice.
_OWN_KERNELS = {"native": None, "_native_cudnn": "cudnn", "_native_flash": "flash"}


def backend_name(chosen: Any = None) -> str:
    """Of one of diffusers' attention backends; None means the active one."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    if chosen is None:
        chosen, _ = _AttentionBackendRegistry.get_active_backend()
    return str(getattr(chosen, "value", chosen))


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
        runs = call.sequence.runs() if call.counted else ()
        more = args or any(kwargs.get(name) for name in ("dropout_p", "is_causal", "enable_gqa"))
        if attn_mask is None and not more:
            return weighed(query, key, value, runs, scale=kwargs.get("scale"))
        bias = bias_of(runs, query)
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
        return bias.view(1, 1, 1, -1)
    if mask.dtype == torch.bool:
        return bias.masked_fill(~mask, -torch.inf)  # torch.where would wait for a GPU
    return mask + bias
