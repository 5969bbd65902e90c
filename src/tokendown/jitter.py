"""Another token of each cell at every step, so that the steps do not all lose the same.

A grid that never moves leaves out the same tokens at all steps, and what that does to a picture
adds up. Graphics knows the remedy as ordered dithering, and in time as the jitter of temporal
anti-aliasing: move the samples, in an order that covers a cell evenly however early it ends, and
let an average follow. A sampler is such an average. Nothing here is random: a step has one place.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

_QUARTERS = ((0, 0), (1, 1), (0, 1), (1, 0))  # a step and the next are far apart
_MOST = 16  # factors up to here have an order of their own
_MOST_GRIDS = 32  # remembered at a place, twice; a model has a few


@cache
def order(factor: int) -> tuple[tuple[int, int], ...]:
    """Row and column of all places of a cell, each once, such that any first few are spread evenly.

    Of an even factor the quarters take turns, and the places of a quarter are in the order of half
    the factor: Bayer's matrix (1973), where it is a power of two. It begins at its second place,
    which is near the centre. Of an odd factor it begins at the centre, and goes on where it is
    farthest from the places before, as the cell is one of many side by side.

    Args:
        factor: side of the cell, >= 1.
    """
    if factor % 2:
        return _farthest_first(factor)
    first, *others = _from_top_left(factor)
    return (*others, first)


def place_at(factor: int, step: int) -> tuple[int, int]:
    """Row and column at a step, >= 0; the order begins again when it is through."""
    return order(factor)[step % factor**2]


def _from_top_left(factor: int) -> list[tuple[int, int]]:
    """Begun at the top left; an odd order is turned round for that."""
    half = factor // 2
    if factor % 2:
        return [((half - r) % factor, (half - c) % factor) for r, c in order(factor)]
    return [(half * q + r, half * p + c) for r, c in _from_top_left(half) for q, p in _QUARTERS]


def _farthest_first(side: int) -> tuple[tuple[int, int], ...]:
    """By squared distances, the smallest first; of equal places that which is far from the last."""
    squares = [min(step, side - step) ** 2 for step in range(side)]  # opposite edges meet
    left = [(row, column) for row in range(side) for column in range(side)]
    found = [(side // 2, side // 2)]
    left.remove(found[0])
    distances: dict[tuple[int, int], list[int]] = {place: [] for place in left}
    while left:
        row, column = found[-1]
        latest = {(r, c): squares[abs(r - row)] + squares[abs(c - column)] for r, c in left}
        for place, distance in latest.items():
            insort(distances[place], distance)
        found.append(max(left, key=lambda place: (distances[place], latest[place])))
        left.remove(found[-1])
    return tuple(found)


@dataclass(frozen=True, eq=False)
class Place:
    """Where in its cell the kept token stands, for cells of every size.

    Numbers in tensors: a compiled model takes them as inputs, and needs no new graph when they
    change. They are on the CPU, from where any device takes a number without waiting. Layers on the
    same grid share an index: a dozen operations each would keep a fast GPU waiting for Python.

    Args:
        down: from the top, [] each, for the factors 1 to 16; larger cells go by sixteenths of them.
        right: from the left, likewise.
    """

    down: tuple[Tensor, ...]
    right: tuple[Tensor, ...]
    _known: dict[tuple[Any, ...], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.down, self.right)  # copies and pickles remember nothing

    @classmethod
    def at(cls, step: int) -> Place:
        """That of a step.

        Args:
            step: >= 0, or -1 for the top left.
        """
        return cls.by(lambda factor: place_at(factor, step) if step >= 0 else (0, 0))

    @classmethod
    def by(cls, place: Callable[[int], tuple[int, int]]) -> Place:
        """From factor to row and column."""
        down, right = zip(*map(place, range(1, _MOST + 1)), strict=True)
        return cls(*(tuple(torch.tensor(n, device="cpu") for n in each) for each in (down, right)))

    def index(
        self,
        height: int,
        width: int,
        factor: int,
        device: torch.device,
        *,
        frames: int = 1,
        temporal: int = 1,
    ) -> Tensor:
        """The kept tokens of a row-major grid, [M], in its order; shared, so leave it as it is.

        Args:
            height: of the grid, in tokens.
            width: likewise.
            factor: side of a cell; a partial cell keeps its last row or column if it lacks the one.
            device: of the result.
            frames: how many such grids follow each other.
            temporal: one of so many frames is kept, from the first on.
        """
        return self._shared(self._index, (height, width, factor, device, frames, temporal))

    def cells(
        self,
        height: int,
        width: int,
        factor: int,
        device: torch.device,
        *,
        frames: int = 1,
        temporal: int = 1,
    ) -> Tensor:
        """All tokens of the cells of these, [M, temporal * factor * factor]; shared as well.

        A partial cell has some of its tokens several times. Arguments as for ``index``.
        """
        return self._shared(_cells, (height, width, factor, device, frames, temporal))

    def _shared(self, make: Callable[..., Tensor], grid: tuple[Any, ...]) -> Tensor:
        device = grid[3]
        if torch.compiler.is_compiling() or _capturing(device):
            return make(*grid)
        key = (make is _cells, *grid, _stream(device))
        known = self._known.get(key)
        if known is None:
            with torch.inference_mode(False):  # autograd may need what was made without it
                known = make(*grid)
            if type(known) is Tensor:  # not one that a tracer made up
                self._remember(key, known)
        return known

    def _remember(self, key: tuple[Any, ...], index: Tensor) -> None:
        if len(self._known) >= _MOST_GRIDS:
            self._known.clear()
        self._known[key] = index

    def _index(
        self, height: int, width: int, factor: int, device: torch.device, frames: int, temporal: int
    ) -> Tensor:
        rows = _along(height, factor, self.down, device)
        columns = _along(width, factor, self.right, device)
        one = (rows[:, None] * width + columns).flatten()
        if frames == 1:
            return one
        starts = torch.arange(0, frames * height * width, temporal * height * width, device=device)
        return (starts[:, None] + one).flatten()


TOP_LEFT = Place.at(-1)


def _capturing(device: torch.device) -> bool:
    """Whether what is computed now becomes a part of a CUDA graph, with memory of its own."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _stream(device: torch.device) -> Any:
    """The queue that a result is ready in: others would have to wait for it."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


def _along(side: int, factor: int, places: tuple[Tensor, ...], device: torch.device) -> Tensor:
    """One of every ``factor`` rows or columns, [ceil(side / factor)]."""
    starts = torch.arange(0, side, factor, device=device)
    place = places[min(factor, _MOST) - 1]
    if factor > _MOST:
        place = place * factor // _MOST
    return (starts + place).clamp(max=side - 1)


def _cells(
    height: int, width: int, factor: int, device: torch.device, frames: int, temporal: int
) -> Tensor:
    """[M, temporal * factor * factor]"""

    def runs(side: int, step: int) -> Tensor:
        """[ceil(side / step), step]"""
        starts = torch.arange(0, side, step, device=device)[:, None]
        return (starts + torch.arange(step, device=device)).clamp(max=side - 1)

    frame, row, column = runs(frames, temporal), runs(height, factor), runs(width, factor)
    rows = frame[:, None, :, None] * height + row[None, :, None, :]
    tokens = rows[:, :, None, :, :, None] * width + column[None, None, :, None, None, :]
    return tokens.flatten(3).flatten(0, 2)
