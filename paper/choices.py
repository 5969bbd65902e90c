"""Ways of choosing keys, written out for the tables: every one of them as one attention function.

Grids of every phase, phases that differ from head to head or from step to step, cell means, grids
with anchors with and without log m, and tomesd's merge at as many tokens. They owe nothing to the
library but the cells of a grid and their means.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from paper.report import markdown, spread
from paper.terrain import Site
from torch import Tensor
from torch.nn import functional

from tokendown.grid import Grid
from tokendown.select import select_tokens

ANCHORS = 32
FACTORS = (2, 3, 4, 8)


@dataclass(frozen=True)
class Choice:
    """Which keys are kept.

    Args:
        factor: linear, of the grid.
        keys: "phase", "per head", "per step", "mean", "merge" or "merge top-left".
        phase: (row, column) of the kept token in its cell, for "phase".
        anchors: tokens of largest key norm, per head, kept besides.
        bias: whether log m is added to the logits.
        once: whether an anchor may be on the grid, and counts once: the shortest token of its cell
            stands for that.
    """

    factor: int
    keys: str = "phase"
    phase: tuple[int, int] = (0, 0)
    anchors: int = 0
    bias: bool = True
    once: bool = False


def rows(factor: int, most_phases: int) -> Iterator[tuple[str, Choice]]:
    """(row of the table, choice); a row may have several choices."""
    for phase in phases(factor, most_phases):
        yield "grid, every phase", Choice(factor, phase=phase)
    yield "grid, top-left", Choice(factor)
    yield "grid, another phase in each head", Choice(factor, "per head")
    yield "grid, another phase in each step", Choice(factor, "per step")
    yield "cell mean", Choice(factor, "mean")
    yield "tomesd's merge, equal tokens, into random places", Choice(factor, "merge")
    # tomesd itself does this where the batch is odd, as it is without guidance
    yield "tomesd's merge, equal tokens, into top-left places", Choice(factor, "merge top-left")
    yield "grid + 32 anchors, no log m", Choice(factor, anchors=ANCHORS, bias=False)
    yield "grid + 32 anchors, log m", Choice(factor, anchors=ANCHORS)
    yield (
        "another phase in each step + 32 anchors, log m",
        Choice(factor, "per step", anchors=ANCHORS),
    )
    yield (
        "the same, an anchor on the grid counts once",
        Choice(factor, "per step", anchors=ANCHORS, once=True),
    )
    yield "cell mean + 32 anchors, log m", Choice(factor, "mean", anchors=ANCHORS)


def phases(factor: int, most: int) -> list[tuple[int, int]]:
    """All the places in a cell, or ``most`` of them at equal distances in reading order."""
    every = [divmod(place, factor) for place in range(factor**2)]
    if len(every) <= most:
        return every
    return [every[round(i * (len(every) - 1) / (most - 1))] for i in range(most)]


class Keys:
    """Attention to the keys of one choice."""

    def __init__(self, choice: Choice, seed: int = 0) -> None:
        self.choice = choice
        self.random = torch.Generator().manual_seed(seed)
        order = torch.randperm(choice.factor**2, generator=self.random).tolist()
        self.order = [divmod(place, choice.factor) for place in order]
        self.step = 0

    def on_step(self, step: int) -> None:
        """Told before every step."""
        self.step = step

    def __call__(self, site: Site, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        choice = self.choice
        if choice.keys.startswith("merge"):
            return self._merged(site, query, key, value)
        index, anchors = self._index(site.grid, key), None
        if choice.anchors:
            anchors = self._anchors(key, index)
            if choice.once:
                index = set_apart(index, anchors, key, site.grid, choice.factor)
        kept = [x.gather(2, index[..., None].expand(-1, -1, -1, x.shape[-1])) for x in (key, value)]
        if choice.keys == "mean":
            kept = [select_tokens(x, site.grid, choice.factor, "mean") for x in (key, value)]
        mask = None
        if anchors is not None:
            grid_keys = kept[0].shape[2]
            anchors = anchors[..., None].expand(-1, -1, -1, key.shape[-1])
            kept = [torch.cat([k, x.gather(2, anchors)], 2)
                    for k, x in zip(kept, (key, value), strict=True)]  # fmt: skip
            mask = query.new_zeros(1, kept[0].shape[2])
            mask[:, :grid_keys] = 2 * math.log(choice.factor) if choice.bias else 0
        return functional.scaled_dot_product_attention(query, *kept, attn_mask=mask)

    def _index(self, grid: Grid, key: Tensor) -> Tensor:
        """[B, heads, M], the grid tokens of each head; at a partial edge cell, its last one."""
        batch, heads = key.shape[:2]
        each = [grid_index(grid, self.choice.factor, self._phase(h, heads)) for h in range(heads)]
        return torch.stack(each).to(key.device).expand(batch, -1, -1)

    def _phase(self, head: int, heads: int) -> tuple[int, int]:
        factor = self.choice.factor
        if self.choice.keys == "per head":  # along the diagonal of the cell
            return (head * factor // heads, head * factor // heads)
        if self.choice.keys == "per step":
            return self.order[self.step % len(self.order)]
        return self.choice.phase

    def _anchors(self, key: Tensor, index: Tensor) -> Tensor:
        """[B, heads, A], the longest keys, or the longest that are not on the grid."""
        scores = torch.linalg.vector_norm(key, dim=-1)
        if self.choice.keys != "mean" and not self.choice.once:
            scores = scores.scatter(2, index, -torch.inf)
        return scores.topk(self.choice.anchors, dim=-1).indices

    def _merged(self, site: Site, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Merges before the projections, which commute with it, and spreads the output again."""
        from tomesd.merge import bipartite_soft_matching_random2d

        factor, grid = self.choice.factor, site.grid
        merged = grid.tokens - math.ceil(grid.height / factor) * math.ceil(grid.width / factor)
        merge, unmerge = bipartite_soft_matching_random2d(
            site.block_input, grid.width, grid.height, factor, factor, merged,
            no_rand=self.choice.keys == "merge top-left", generator=self.random,
        )  # fmt: skip

        def by_token(x: Tensor) -> Tensor:
            return x.transpose(1, 2).flatten(2)

        def by_head(x: Tensor) -> Tensor:
            return x.unflatten(2, (query.shape[1], -1)).transpose(1, 2)

        few = [by_head(merge(by_token(x))) for x in (query, key, value)]
        return by_head(unmerge(by_token(functional.scaled_dot_product_attention(*few))))


def grid_index(grid: Grid, factor: int, phase: tuple[int, int]) -> Tensor:
    """Tokens at one phase of every cell, [M]; a partial cell without that place gives its last."""
    coarse = grid.coarse(factor)
    y = (torch.arange(coarse.height) * factor + phase[0]).clamp(max=grid.height - 1)
    x = (torch.arange(coarse.width) * factor + phase[1]).clamp(max=grid.width - 1)
    return (y[:, None] * grid.width + x).flatten()


def set_apart(index: Tensor, anchors: Tensor, key: Tensor, grid: Grid, factor: int) -> Tensor:
    """The grid tokens, [B, heads, M], with the shortest of its cell for each that is an anchor."""
    coarse = grid.coarse(factor)
    lengths = torch.linalg.vector_norm(key, dim=-1).unflatten(2, (grid.height, grid.width))
    beyond = (0, coarse.width * factor - grid.width, 0, coarse.height * factor - grid.height)
    cells = functional.pad(lengths, beyond, value=torch.inf)
    cells = cells.unflatten(3, (coarse.width, factor)).unflatten(2, (coarse.height, factor))
    place = cells.transpose(3, 4).flatten(4).argmin(-1)  # [B, heads, rows, columns], in the cell
    y = torch.arange(coarse.height, device=key.device)[:, None] * factor + place // factor
    x = torch.arange(coarse.width, device=key.device) * factor + place % factor
    shortest = (y * grid.width + x).flatten(2)
    hit = (index[..., None] == anchors[..., None, :]).any(-1)
    return torch.where(hit, shortest, index)


def table(records: list[dict[str, Any]]) -> str:
    """Rows of the table against factors: median (lowest to highest) over phases and seeds."""
    factors = sorted({record["factor"] for record in records})
    lines = []
    for row in dict.fromkeys(record["row"] for record in records):
        cells = [row]
        for factor in factors:
            some = [r["runs"] for r in records if (r["row"], r["factor"]) == (row, factor)]
            numbers = spread([value for runs in some for value in runs]) if some else None
            cells.append("{median:.2g} ({low:.2g} to {high:.2g})".format(**numbers) if some else "")
        lines.append(cells)
    return markdown(["kept keys", *(f"factor {factor}" for factor in factors)], lines)
