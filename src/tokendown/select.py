"""Which tokens stay as keys and values, and how many original tokens each one stands for.

Convention: tokens are row-major, height before width. One token is kept per ``factor`` x
``factor`` cell; a partial cell at the right or bottom edge keeps a token too, so a grid leaves
M = ceil(height / factor) * ceil(width / factor) of them. Source: arXiv:2402.13573.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional

from ._errors import GridError
from .config import CellMethod, expect, is_int
from .grid import Grid
from .multiplicity import Runs


@dataclass(frozen=True)
class Selection:
    """Kept tokens: first the coarse grid, then the anchors.

    Args:
        grid: the full grid.
        factor: linear, >= 1.
        method: "nearest" or "mean", see :func:`select_tokens`.
        anchors: indices of tokens kept besides the grid, [..., A], or None.
        index: of the kept tokens, with "nearest", [M], or [..., M] where anchors were set apart;
            None is the top left of every cell.
    """

    grid: Grid
    factor: int
    method: CellMethod = "nearest"
    anchors: Tensor | None = None
    index: Tensor | None = None

    def take(self, x: Tensor) -> Tensor:
        """[..., N, C] -> [..., M + A, C]; leading dimensions as those of the anchors."""
        if self.anchors is None:
            return self._on_grid(x)
        if self.index is None:
            return torch.cat([self._on_grid(x), _at(x, self.anchors)], dim=-2)
        return _at(x, torch.cat([self.index, self.anchors], dim=-1))

    def take_mask(self, mask: Tensor) -> Tensor:
        """Selects the key columns of an attention mask.

        Args:
            mask: [B, ..., N], one column a token; the anchors must be [B, A] or None.

        Returns:
            [B, ..., M + A]

        Raises:
            GridError: cells are averaged; a mask cannot say which part of a mean is masked.
        """
        if self.method == "mean" and self.factor > 1:
            raise GridError(
                "cell averages cannot follow an attention mask over keys; use method='nearest'"
            )
        if self.anchors is None:
            return self._on_grid(mask.unsqueeze(-1)).squeeze(-1)
        mask, last = mask.expand(len(self.anchors), *mask.shape[1:]), mask.ndim - 1
        if self.index is not None:
            index = torch.cat([self.index, self.anchors], dim=-1)
            return mask.gather(last, along(index, mask, last))
        kept = self._on_grid(mask.unsqueeze(-1)).squeeze(-1)
        return torch.cat([kept, mask.gather(last, along(self.anchors, mask, last))], dim=-1)

    def runs(self, exact: int = 0) -> Runs:
        """How often the kept keys count, and ``exact`` further ones that follow them."""
        ones = exact + (0 if self.anchors is None else self.anchors.shape[-1])
        return (self.grid.coarse(self.factor).tokens, self.factor**2), (ones, 1)

    def _on_grid(self, x: Tensor) -> Tensor:
        """[..., N, C] -> [..., M, C]"""
        if self.index is None:
            return _coarse(x, self.grid, self.factor, self.method)
        return x.index_select(-2, self.index)


def select(
    scores: Tensor | None,
    grid: Grid,
    factor: int,
    *,
    anchors: int = 0,
    method: CellMethod = "nearest",
) -> Selection:
    """Chooses the anchors: the highest scores that are not on the coarse grid anyway.

    Args:
        scores: [..., N], one score a token, e.g. the norm of its key. Not needed without anchors.
        grid: N = grid.tokens.
        factor: linear, >= 1.
        anchors: how many, >= 0; fewer where fewer tokens are off the grid.
        method: with "mean" no token itself is on the grid, so every token may be an anchor.
    """
    count = kept_tokens(grid, factor, anchors, method) - grid.coarse(factor).tokens
    if count == 0 or scores is None:
        return Selection(grid, factor, method)
    scores = scores.detach()
    if method == "nearest":
        scores = scores.clone()
        cells = scores.unflatten(-1, (grid.height, grid.width))
        cells[..., ::factor, ::factor] = -torch.inf
    found = scores.topk(count, dim=-1, sorted=False).indices
    return Selection(grid, factor, method, found)


def set_apart(scores: Tensor, index: Tensor, cells: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Makes anchors of the highest scores, and lets no grid key count one of them for a cell.

    A grid key counts as often as its cell has tokens, but an attention sink is one token, however
    much attention it receives: counted for its whole cell it gets all of it (paper/LOG.md). So
    where a high score is on the grid, the lowest of its cell stands for the cell.

    Args:
        scores: [batch, N].
        index: of the tokens on the grid, [M].
        cells: all tokens of their cells, [M, n].
        count: how many anchors, 1 to N.

    Returns:
        The grid, [batch, M], and the anchors, [batch, count].
    """
    scores = scores.detach()
    highest = scores.topk(count, dim=-1, sorted=False)
    least = highest.values.amin(-1, keepdim=True)
    lowest = scores[:, cells].argmin(-1, keepdim=True)
    others = cells.expand(len(scores), -1, -1).gather(2, lowest).squeeze(2)
    return torch.where(scores.index_select(1, index) < least, index, others), highest.indices


def along(index: Tensor, x: Tensor, dim: int) -> Tensor:
    """[batch, n] to the shape of what it picks from a dimension of ``x``, as for ``gather``."""
    batch, count = index.shape
    index = index.view(batch, *[1] * (dim - 1), count, *[1] * (x.ndim - dim - 1))
    return index.expand(*x.shape[:dim], count, *x.shape[dim + 1 :])


def _at(x: Tensor, index: Tensor) -> Tensor:
    """[..., N, C], [..., n] -> [..., n, C]"""
    return x.gather(-2, index.unsqueeze(-1).expand(*index.shape, x.shape[-1]))


def kept_tokens(grid: Grid, factor: int, anchors: int, method: CellMethod = "nearest") -> int:
    """How many keys are kept: the coarse grid, and as many anchors as there are tokens off it."""
    if factor == 1:
        return grid.tokens
    coarse = grid.coarse(factor).tokens
    return coarse + min(anchors, grid.tokens - (0 if method == "mean" else coarse))


def select_tokens(x: Tensor, grid: Grid, factor: int, method: CellMethod = "nearest") -> Tensor:
    """Keeps one token per ``factor`` x ``factor`` cell of a row-major token grid.

    Args:
        x: tokens, [..., N, C] with N = grid.tokens, for example [batch, tokens, channels].
        grid: (height, width) of the tokens.
        factor: linear, >= 1; 2 keeps a quarter of the tokens, 1 returns ``x`` itself.
        method: "nearest" keeps the top-left token, "mean" averages the tokens of the cell (those
            that exist, at a partial edge cell).

    Returns:
        [..., M, C], same dtype and device.

    Raises:
        GridError: N differs from grid.tokens, or ``grid`` is no Grid.
        ConfigError: the factor or the method is none of these.

    Source: Smith, Saxena, Saha 2024, arXiv:2402.13573.
    """
    expect_choice(grid, factor, method)
    return _coarse(x, grid, factor, method)


def expect_choice(grid: Grid, factor: int, method: CellMethod) -> None:
    """Checks what the functions of the package are given.

    Raises:
        GridError: no grid.
        ConfigError: no factor, or no method of taking the keys of one call.
    """
    if not isinstance(grid, Grid):
        raise GridError(f"expected a Grid, such as Grid(height, width), got {grid!r}")
    expect(is_int(factor, 1), "an integer factor >= 1 (2 keeps 1/4)", factor)
    expect(method in get_args(CellMethod), "method 'nearest' or 'mean'", method)


def _coarse(x: Tensor, grid: Grid, factor: int, method: CellMethod) -> Tensor:
    if x.shape[-2] != grid.tokens:
        raise GridError(f"expected {grid.tokens} tokens for a {grid} grid, got {x.shape[-2]}")
    if factor == 1:
        return x
    cells = x.unflatten(-2, (grid.height, grid.width))
    coarse: Tensor = (
        cells[..., ::factor, ::factor, :] if method == "nearest" else _mean(cells, factor)
    )
    return coarse.flatten(-3, -2)


def _mean(cells: Tensor, factor: int) -> Tensor:
    """[..., height, width, C] -> [..., M_h, M_w, C], averages over cells."""
    maps = cells.reshape(-1, *cells.shape[-3:]).movedim(-1, 1)
    pooled = functional.avg_pool2d(maps, factor, ceil_mode=True, count_include_pad=False)
    averages = pooled.movedim(1, -1)
    return averages.reshape(*cells.shape[:-3], *averages.shape[1:])
