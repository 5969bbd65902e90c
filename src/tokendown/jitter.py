"""Another token of each cell at every step, so that the steps do not all lose the same.

A grid that never moves leaves out the same tokens at all steps, and what that does to a picture
adds up. Graphics knows the remedy as ordered dithering, and in time as the jitter of temporal
anti-aliasing: move the samples, in an order that covers a cell evenly however early it ends, and
let an average follow. A sampler is such an average. Nothing here is random: a step has one place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_QUARTERS = ((0, 0), (1, 1), (0, 1), (1, 0))  # a step and the next are far apart
_DEPTH = 4  # 16 x 16 places
_MOST_GRIDS = 32  # remembered at a place, twice; a model has a few


@dataclass(frozen=True, eq=False)
class Place:
    """Where in its cell the kept token stands, in sixteenths of the side, 0 to 15.

    Two numbers in tensors: a compiled model takes them as inputs, and needs no new graph when they
    change. They are on the CPU, from where any device takes a number without waiting. Layers on the
    same grid share an index: a dozen operations each would keep a fast GPU waiting for Python.

    Args:
        down: [], from the top.
        right: [], from the left.
    """

    down: Tensor
    right: Tensor
    _known: dict[tuple[Any, ...], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.down, self.right)  # copies and pickles remember nothing

    @classmethod
    def at(cls, step: int) -> Place:
        """The order of Bayer's matrix (1973), from its second place on, which is near the centre.

        The matrix begins at the top left, which is the least like a cell. Begun there, errors of
        pictures at factor 4 were twice as large with some weights, and as large with others
        (paper/LOG.md).

        Args:
            step: >= 0, or -1 for the top left.
        """
        down, right, step = 0, 0, step + 1
        for depth in reversed(range(_DEPTH)):
            step, quarter = divmod(step, 4)
            down += _QUARTERS[quarter][0] << depth
            right += _QUARTERS[quarter][1] << depth
        return cls(torch.tensor(down, device="cpu"), torch.tensor(right, device="cpu"))

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
        one = (rows[:, None] * width + _along(width, factor, self.right, device)).flatten()
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


def _along(side: int, factor: int, sixteenths: Tensor, device: torch.device) -> Tensor:
    """One of every ``factor`` rows or columns, [ceil(side / factor)]."""
    starts = torch.arange(0, side, factor, device=device)
    return (starts + (sixteenths * factor >> _DEPTH)).clamp(max=side - 1)


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
