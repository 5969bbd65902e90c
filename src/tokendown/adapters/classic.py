"""Self-attention on diffusers' classic ``Attention`` class, where it sees image tokens only.

The kept tokens are handed to the module as ``encoder_hidden_states``, so that any installed
processor does the attention, and the key and value projections shrink as well. Strided selection
commutes with projections, so this equals selecting keys and values after them.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import GridError
from ..attention import vector_norm
from ..multiplicity import Runs, bias_of, uneven
from ..select import Selection, select
from ..sequence import Box
from .dispatch import backend_name, weighed_on_backend
from .intercept import ForwardIntercept
from .plan import Layer, Plan

logger = logging.getLogger(__name__)

# These guidance tricks compare or swap queries and values, so they need as many of one as of the
# other; with fewer keys they would silently turn into plain guidance.
_GUIDANCE_HOOKS = {"AttentionProcessorSkipHook", "SmoothedEnergyGuidanceHook"}
# These do something else in cross-attention, which is what kept tokens look like to them: text to
# video zero, attend and excite, self-attention guidance.
_TELL_BY_TEXT = (
    "CrossFrameAttnProcessor",
    "CrossFrameAttnProcessor2_0",
    "AttendExciteAttnProcessor",
    "CrossAttnStoreProcessor",
)
# Processors that do nothing but attention.
_PLAIN = ("AttnProcessor2_0", "FusedAttnProcessor2_0", "DreamLiteAttnProcessor2_0")
PERTURBED = "perturbed-attention guidance needs every key"


def as_tokens(x: Tensor) -> Tensor:
    """[B, C, height, width] -> [B, height * width, C]; tokens as they are."""
    return x.flatten(2).transpose(1, 2) if x.ndim == 4 else x


def lengths(layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Of the tokens that the norm before a layer is called with, [B, N]."""
    x: Tensor = args[0] if args else next(iter(kwargs.values()))
    found = vector_norm(as_tokens(x.detach()))
    return found.T if layer.tokens_first else found


class GridReader:
    """A forward pre-hook that notes (height, width) where a feature map is flattened.

    Args:
        plan: of the denoiser.
        layers: those that see the flattened map.
        patch_size: pixels of the map a token, per side.
    """

    def __init__(self, plan: Plan, layers: list[Layer], patch_size: int = 1) -> None:
        self.plan = plan
        self.layers = layers
        self.patch_size = patch_size
        self.looked_at = (0, 0)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        maps: Tensor = args[0] if args else next(iter(kwargs.values()))
        height, width = maps.shape[-2] // self.patch_size, maps.shape[-1] // self.patch_size
        for layer in self.layers:
            # Written before it is read, at every pass: a compiled graph then has no guard on it.
            layer.height, layer.width = height, width
        if not torch.compiler.is_compiling() and (height, width) != self.looked_at:
            self.looked_at = height, width
            say_if_unchanged(self.plan, self.layers)


def say_if_unchanged(plan: Plan, layers: list[Layer]) -> None:
    """Once a size: the finest patched grid is small enough, so the others are too.

    Args:
        plan: of the denoiser.
        layers: on one grid, which was just read.
    """
    coarser = [layer for layer in plan.patched if layer.rule and layer.rule.fixed != 1]
    finest = min((layer.downsample for layer in coarser or plan.patched), default=0)
    here = next((layer for layer in layers if layer.rule and layer.downsample == finest), None)
    if here is None or here.drops(here.grid) or here.grid in plan.said_unchanged:
        return
    grid = here.grid
    plan.said_unchanged.add(grid)
    logger.info(
        "the patch changes nothing at this size: the finest patched grid is %s, %d tokens, and "
        "the rule is %s",
        grid,
        grid.tokens,
        here.rule,
    )


class NormReader:
    """A forward pre-hook on the norm before self-attention: scores tokens for the anchors.

    Attention sinks stand out by the length of the token *before* the layer norm, which makes all
    tokens about equally long. From 16 anchors up it finds them as well as key norms do, without a
    projection of all keys (paper/LOG.md).

    Args:
        layer: whose tokens they are.
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layer = self.layer
        if layer.active and layer.height and layer.drops(layer.grid):
            layer.scores = lengths(layer, args, kwargs)


class FewerKeys(ForwardIntercept):
    """Stands in for ``Attention.forward``: self-attention to the kept tokens.

    Args:
        owner: a diffusers ``Attention``.
        plan: of the denoiser.
        layer: this one.
    """

    def __init__(self, owner: nn.Module, plan: Plan, layer: Layer) -> None:
        super().__init__(owner)
        self.plan = plan
        self.layer = layer

    def run(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """[B, N, C] -> the same, and so with maps [B, C, height, width].

        ``attention_mask`` is over the N keys, its last dimension.
        """
        scores = self.layer.take_scores()
        # Kandinsky 3 gives the tokens themselves
        own = encoder_hidden_states is None or encoder_hidden_states is hidden_states
        try:
            if own and self.layer.active and why_dense(self.owner) is None:
                selection = self._select(as_tokens(hidden_states), scores)
                if selection.factor > 1:
                    return self._attend(hidden_states, selection, attention_mask, **kwargs)
        finally:
            self.layer.finish()
        return self.original(  # type: ignore[no-any-return]
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            attention_mask=attention_mask,
            **kwargs,
        )

    def _select(self, tokens: Tensor, scores: Tensor | None) -> Selection:
        layer = self.layer
        if layer.height * layer.width != tokens.shape[1]:
            raise GridError(
                f"{layer.name}: expected {layer.height * layer.width} tokens for a "
                f"{layer.height}x{layer.width} grid, got {tokens.shape[1]}; either "
                "another patch drops tokens first (tomesd.remove_patch(model) if it is that), or "
                "the layer was called alone: the grid is read when the whole denoiser runs"
            )
        grid, rule = layer.grid, layer.rule
        assert rule is not None, "installed on layers with a rule only"
        factor = layer.factor(grid)
        if factor == 1:
            return Selection(grid, factor)
        scores = layer.anchored(scores)
        if rule.cells == "mean":
            return select(scores, grid, factor, anchors=rule.anchors, method="mean")
        box, anchors = Box(1, grid.height, grid.width, factor), None
        if scores is None:
            box = box.at(layer.place, tokens.device)
        else:
            box, anchors = box.with_anchors(scores, rule.anchors, layer.place)
        return Selection(grid, factor, anchors=anchors, index=box.index)

    def _attend(
        self, hidden_states: Tensor, selection: Selection, mask: Tensor | None, **kwargs: Any
    ) -> Tensor:
        kept = selection.take(key_source(self.owner, hidden_states))
        assert self.layer.rule is not None, "installed on layers with a rule only"
        runs = selection.runs() if self.layer.rule.multiplicity else ()
        two_calls = hidden_states.is_cuda and uneven(runs)
        if mask is None and _is_plain(self.owner) and (two_calls or backend_name() != "native"):
            return _attend_directly(self.owner, hidden_states, kept, runs)
        bias = bias_of(runs, hidden_states)
        if mask is not None:
            mask = selection.take_mask(mask)
        if bias is not None:
            bias = bias.expand(hidden_states.shape[0], 1, -1)
            mask = bias if mask is None else mask + bias
        if type(self.owner.processor).__name__ == "FusedAttnProcessor2_0":
            # The fused processor needs a fused key-value projection, which self-attention lacks;
            # its separate projections are still there.
            from diffusers.models.attention_processor import AttnProcessor2_0

            return AttnProcessor2_0()(self.owner, hidden_states, kept, mask, **kwargs)  # type: ignore[no-any-return]
        return self.original(  # type: ignore[no-any-return]
            hidden_states, encoder_hidden_states=kept, attention_mask=mask, **kwargs
        )


def key_source(attention: Any, hidden_states: Tensor) -> Tensor:
    """The tokens that keys and values are projected from, [B, N, C].

    A processor normalises a map itself, but not keys that it is given.
    """
    tokens = as_tokens(hidden_states)
    if attention.group_norm is None:
        return tokens
    normed: Tensor = attention.group_norm(tokens.transpose(1, 2))
    return normed.transpose(1, 2)


def why_dense(attention: Any) -> str | None:
    """Why an ``Attention`` has to stay dense right now, or None."""
    if type(attention.processor).__name__.startswith("PAG"):
        return PERTURBED
    if type(attention.processor).__name__ in _TELL_BY_TEXT:
        return "its processor takes tokens that are given apart for text"
    for module in (attention, getattr(attention, "to_q", None)):
        registry = getattr(module, "_diffusers_hook", None)
        for hook in () if registry is None else registry.hooks.values():
            if type(hook).__name__ in _GUIDANCE_HOOKS:
                return "a guidance hook needs every key"
    return None


def _is_plain(attention: Any) -> bool:
    """Whether its processor does nothing that ``_attend_directly`` does not.

    diffusers' processors for this class always call PyTorch's attention, whatever
    ``set_attention_backend`` says, and would hand it a bias that flash kernels refuse and others
    take their time for.
    """
    return (
        type(attention.processor).__name__ in _PLAIN
        and attention.group_norm is None
        and attention.spatial_norm is None
        and not attention.norm_cross
    )


def _attend_directly(attention: Any, hidden_states: Tensor, kept: Tensor, runs: Runs) -> Tensor:
    """What a plain processor does, on the backend that is active, with kept keys weighed."""
    size = attention.inner_dim // attention.heads
    query, key, value = (
        projection(tokens).unflatten(-1, (-1, size))
        for projection, tokens in (
            (attention.to_q, hidden_states),
            (attention.to_k, kept),
            (attention.to_v, kept),
        )
    )
    if attention.norm_q is not None:
        query = attention.norm_q(query)
    if attention.norm_k is not None:
        key = attention.norm_k(key)
    shared = query.shape[2] // key.shape[2]  # DreamLite: one head of keys for several of queries
    if shared > 1:
        key, value = key.repeat_interleave(shared, 2), value.repeat_interleave(shared, 2)
    out = weighed_on_backend(query, key, value, runs, scale=size**-0.5).flatten(-2)
    for layer in attention.to_out:
        out = layer(out)
    if attention.residual_connection:
        out = out + hidden_states
    return out / attention.rescale_output_factor  # type: ignore[no-any-return]
