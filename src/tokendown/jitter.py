"""Another token of each cell at every step, so that the steps do not all lose the same.

A grid that never moves leaves out the same tokens at all steps, and what that does to a picture
adds up. Graphics knows the remedy as ordered dithering, and in time as the jitter of temporal
anti-aliasing: move the samples, in an order that covers a cell evenly however early it ends, and
let an average follow. A sampler is such an average. Nothing here is random: a step has one place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_QUARTERS = ((0, 0), (1, 1), (0, 1), (1, 0))  # a step and the next are far apart
_DEPTH = 4  # 16 x 16 places


@dataclass(frozen=True, eq=False)
class Place:
    """Where in its cell the kept token stands, in sixteenths of the side, 0 to 15.

    Two numbers in tensors: a compiled model takes them as inputs, and needs no new graph when they
    change. They are on the CPU, from where any device takes a number without waiting.

    Args:
        down: [], from the top.
        right: [], from the left.
    """

    down: Tensor
    right: Tensor

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

    def index(self, height: int, width: int, factor: int, device: torch.device) -> Tensor:
        """The kept tokens of a row-major grid, [M], in its order.

        Args:
            height: of the grid, in tokens.
            width: likewise.
            factor: side of a cell; a partial cell keeps its last row or column if it lacks the one.
            device: of the result.
        """
        rows = _along(height, factor, self.down, device)
        return (rows[:, None] * width + _along(width, factor, self.right, device)).flatten()


def _along(side: int, factor: int, sixteenths: Tensor, device: torch.device) -> Tensor:
    """One of every ``factor`` rows or columns, [ceil(side / factor)]."""
    starts = torch.arange(0, side, factor, device=device)
    return (starts + (sixteenths * factor >> _DEPTH)).clamp(max=side - 1)
