"""What a patched model should compute, written again from the formula. Uses nothing of tokendown.

Dense attention in which the logits of dropped keys are minus infinity and those of grid keys gain
log m, in plain matrix products, as a processor that a test puts into an un-patched model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def kept_keys(height: int, width: int, factor: int, at: tuple[int, int] = (0, 0)) -> Tensor:
    """[height * width], True for one token of every cell.

    Args:
        height: of the grid.
        width: of the grid.
        factor: side of a cell.
        at: row and column of the token in its cell; the last where a partial cell lacks it.
    """
    kept = torch.zeros(height, width, dtype=torch.bool)
    for top in range(0, height, factor):
        for left in range(0, width, factor):
            kept[min(top + at[0], height - 1), min(left + at[1], width - 1)] = True
    return kept.flatten()


def log_multiplicities(
    norms: Tensor,
    height: int,
    width: int,
    factor: int,
    anchors: int,
    at: tuple[int, int] = (0, 0),
) -> Tensor:
    """What is added to the logits of every token.

    Args:
        norms: [batch, tokens]; the longest off-grid tokens are the anchors.
        height: of the grid.
        width: of the grid.
        factor: linear.
        anchors: how many, at most.
        at: as in kept_keys.

    Returns:
        [batch, tokens]: 2 log factor on the grid, 0 at anchors, minus infinity at dropped tokens.
    """
    on_grid = kept_keys(height, width, factor, at)
    bias = torch.full(norms.shape, -math.inf, dtype=torch.float64)
    for row, lengths in zip(bias, norms.tolist(), strict=True):
        off_grid = [i for i, on in enumerate(on_grid.tolist()) if not on]
        longest = sorted(off_grid, key=lambda i: lengths[i], reverse=True)[:anchors]
        row[longest] = 0.0
    bias[:, on_grid] = 2 * math.log(factor)
    return bias


Shape = tuple[int, int, int]


def cells(
    shape: Shape, factor: int, temporal: int = 1, at: tuple[int, int] = (0, 0)
) -> Iterator[tuple[int, list[int]]]:
    """The kept token of every cell, and all of its tokens.

    Args:
        shape: (frames, height, width).
        factor: linear.
        temporal: one of so many frames is kept.
        at: row and column of the kept token in its cell.
    """
    frames, height, width = shape
    tokens = torch.arange(frames * height * width).view(shape)
    for first in range(0, frames, temporal):
        for top in range(0, height, factor):
            for left in range(0, width, factor):
                cell = tokens[first : first + temporal, top : top + factor, left : left + factor]
                down, right = (
                    min(place, n - 1) for place, n in zip(at, cell.shape[1:], strict=True)
                )
                yield int(cell[0, down, right]), cell.flatten().tolist()


def with_anchors(
    norms: Tensor, kept: Iterable[tuple[int, list[int]]], multiplicity: int, anchors: int
) -> Tensor:
    """What a patched layer adds to the logits of every token.

    Args:
        norms: [batch, tokens]; the longest are the anchors, which count once.
        kept: of every cell its token, and all of them: where its token is an anchor, the shortest
            of them stands for the cell.
        multiplicity: how often the token of a cell counts.
        anchors: how many; fewer where fewer tokens are left.

    Returns:
        [batch, tokens], minus infinity where a token is dropped.
    """
    kept = list(kept)
    anchors = min(anchors, norms.shape[1] - len({token for token, _ in kept}))
    weights = torch.zeros(norms.shape, dtype=torch.float64)
    for weight, lengths in zip(weights, norms.tolist(), strict=True):
        longest = sorted(range(len(lengths)), key=lengths.__getitem__)[len(lengths) - anchors :]
        for token, cell in kept:
            weight[min(cell, key=lengths.__getitem__) if token in longest else token] += (
                multiplicity
            )
        weight[longest] += 1
    return weights.log()


def cell_means(x: Tensor, height: int, width: int, factor: int) -> Tensor:
    """[batch, tokens, channels] -> [batch, cells, channels], one cell after the other."""
    maps = x.reshape(x.shape[0], height, width, -1)
    return torch.stack(
        [
            maps[:, r : r + factor, c : c + factor].flatten(1, 2).mean(1)
            for r in range(0, height, factor)
            for c in range(0, width, factor)
        ],
        dim=1,
    )


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """[..., Q, d], [..., K, d], [..., K, e] and what is added to the logits -> [..., Q, e]."""
    logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias
    return logits.softmax(dim=-1) @ value


class Coarse:
    """A processor for one self-attention layer of an un-patched model.

    Args:
        grid: (height, width) of the tokens.
        factor: linear.
        anchors: how many.
        mean: cells are averaged.
        at: row and column of the kept token in its cell.
    """

    at = (0, 0)

    def __init__(self, grid: tuple[int, int], factor: int, anchors: int, mean: bool) -> None:
        self.grid, self.factor, self.anchors, self.mean = grid, factor, anchors, mean
        self.norms: Tensor | None = None  # of the tokens before the block's norm
        self.calls = 0

    def note_norms(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        maps = args[0].ndim == 4  # [batch, channels, height, width]
        self.norms = args[0].float().pow(2).sum(1 if maps else -1).sqrt().flatten(1)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        assert encoder_hidden_states is None or encoder_hidden_states is hidden_states
        self.calls += 1
        height, width = self.grid
        given = hidden_states
        if given.ndim == 4:
            assert given.shape[2:] == self.grid
            hidden_states = given.permute(0, 2, 3, 1).flatten(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.mT).mT
        batch, tokens, _ = hidden_states.shape
        assert tokens == height * width, f"{tokens} tokens on a {height} x {width} grid"
        kept = list(cells((1, height, width), self.factor, at=self.at))
        bias = with_anchors(self.norms, kept, self.factor**2, self.anchors)
        if len(kept) + self.anchors >= tokens:  # every token is a key
            bias = torch.zeros_like(bias)
        source = hidden_states
        if self.mean:  # every token may be an anchor: append the averages, drop what is no anchor
            means = cell_means(hidden_states, height, width, self.factor)
            anchors = torch.full_like(bias, -math.inf)
            anchors.scatter_(1, self.norms.argsort(1, descending=True)[:, : self.anchors], 0.0)
            grid_bias = bias.new_full(means.shape[:2], 2 * math.log(self.factor))
            source, bias = torch.cat([means, source], 1), torch.cat([grid_bias, anchors], 1)
        bias = bias.to(hidden_states.dtype)
        if attention_mask is not None:  # [batch, 1, tokens], added to the logits
            bias = bias + attention_mask[:, 0]
        if tokens > 4096:  # the masked matrix would not fit
            index = bias.isfinite().any(0).nonzero()[:, 0].expand(batch, -1)
            source = source.gather(1, index[..., None].expand(-1, -1, source.shape[-1]))
            bias = bias.gather(1, index)
        size = attn.to_q.out_features // attn.heads
        query, key, value = (
            projection(x).unflatten(-1, (-1, size)).transpose(1, 2)
            for projection, x in (
                (attn.to_q, hidden_states),
                (attn.to_k, source),
                (attn.to_v, source),
            )
        )
        if attn.norm_q is not None:
            query, key = attn.norm_q(query), attn.norm_k(key)
        shared = query.shape[1] // key.shape[1]  # heads of queries that share one of keys
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
        out = softmax_attention(query, key, value, bias[:, None, None])
        out = attn.to_out[0](out.transpose(1, 2).flatten(2))
        if given.ndim == 4:
            out = out.mT.reshape(given.shape)
        if attn.residual_connection:
            out = out + given
        return out / attn.rescale_output_factor


# Where each tiny model of tests/tiny.py has self-attention on an image grid, and its downsampling.
_TWO_LEVELS = {"down_blocks.0": 1, "mid_block": 2, "up_blocks.1": 1}
_FOUR_LEVELS = {
    "down_blocks.0": 1,
    "down_blocks.1": 2,
    "down_blocks.2": 4,
    "mid_block": 8,
    "up_blocks.1": 4,
    "up_blocks.2": 2,
    "up_blocks.3": 1,
}
_MAPS = {"down_blocks.1": 2, "up_blocks.0": 2, **_TWO_LEVELS}
LEVELS = {
    "sd_unet": _FOUR_LEVELS,
    "controlnet": {name: at for name, at in _FOUR_LEVELS.items() if "up" not in name},
    "shallow_unet": _TWO_LEVELS,
    "sdxl_unet": {
        "down_blocks.1": 2,
        "down_blocks.2": 4,
        "mid_block": 4,
        "up_blocks.0": 4,
        "up_blocks.1": 2,
    },
    "dreamlite_unet": {"down_blocks.1": 2, "mid_block": 2, "up_blocks.0": 2},
    "union_controlnet": {"down_blocks.1": 2, "down_blocks.2": 4, "mid_block": 4},
    "sparse_controlnet": {"down_blocks.0": 1, "mid_block": 2},
    "controlnet_xs": _TWO_LEVELS,
    "motion_unet": _TWO_LEVELS,
    "svd_unet": _TWO_LEVELS,
    "unet_3d": _TWO_LEVELS,
    "i2vgen_unet": _TWO_LEVELS,
    "plain_unet": _MAPS,
    "mixed_unet": _MAPS,
    "kandinsky3": {
        "down_blocks.1": 2,
        "down_blocks.2": 4,
        "down_blocks.3": 8,
        "up_blocks.0": 8,
        "up_blocks.1": 4,
        "up_blocks.2": 2,
    },
    "uvit": {"transformer_layers": 1},
    "pixart": {"transformer_blocks": 1},
    "dit": {"transformer_blocks": 1},
    "latte": {"transformer_blocks": 1},
}
PATCH_SIZES = {"pixart": 2, "dit": 2, "latte": 2, "uvit": 2}
_TEMPORAL = ("motion_modules", "temporal", "temp_attentions", "transformer_in")


def spatial_blocks(model: nn.Module, kind: str) -> dict[str, tuple[Any, int]]:
    """Name of a transformer block to the block and its downsampling."""
    found = {}
    for name, module in model.named_modules():
        level = _level(kind, name)
        if (
            level is not None
            and hasattr(module, "attn1")
            and not any(word in name for word in _TEMPORAL)
        ):
            found[name] = (module, level)
    return found


def _level(kind: str, name: str) -> int | None:
    return next((at for stage, at in LEVELS[kind].items() if name.startswith(stage)), None)


def places(model: nn.Module, kind: str) -> Iterator[tuple[Any, nn.Module, int]]:
    """Each self-attention layer, the norm before it (or the layer, if inside), its downsampling."""
    for block, level in spatial_blocks(model, kind).values():
        yield block.attn1, block.norm1, level
    for name, module in model.named_modules():
        level = _level(kind, name)
        if level and hasattr(module, "to_q") and module.group_norm is not None:
            yield module, module, level
        if level and kind == "kandinsky3" and name.endswith("attentions.0"):
            yield module.attention, module.in_norm, level


def coarsen(
    model: nn.Module,
    kind: str,
    size: tuple[int, int],
    factors: dict[int, int],
    anchors: int = 0,
    mean: bool = False,
) -> list[Coarse]:
    """Makes an un-patched model compute what a patched one should, at one latent size.

    Args:
        model: of the builder ``tests.tiny.<kind>``.
        kind: name of the builder.
        size: (height, width) of the latent.
        factors: downsampling to factor.
        anchors: how many.
        mean: cells are averaged.
    """
    patch = PATCH_SIZES.get(kind, 1)
    processors = []
    for attention, norm, level in places(model, kind):
        if level not in factors:
            continue
        grid = (math.ceil(size[0] // patch / level), math.ceil(size[1] // patch / level))
        processor = Coarse(grid, factors[level], anchors, mean)
        attention.set_processor(processor)
        norm.register_forward_pre_hook(processor.note_norms)
        processors.append(processor)
    return processors
