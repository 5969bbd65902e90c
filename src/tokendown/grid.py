"""The (height, width) grid that a row of image tokens was flattened from."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from types import NoneType

from ._errors import GridError


@dataclass(frozen=True)
class Grid:
    """A row-major token grid: token ``row * width + column`` sits at (row, column).

    Args:
        height: rows, >= 1.
        width: columns, >= 1.

    Raises:
        GridError: a side is no integer, or smaller than 1.
    """

    height: int
    width: int

    def __post_init__(self) -> None:
        for side in (self.height, self.width):
            if isinstance(side, float | str | list | tuple | NoneType) or side < 1:
                raise GridError(
                    f"expected sides of at least 1 token, got {self.height} x {self.width}"
                )

    @property
    def tokens(self) -> int:
        """height * width."""
        return self.height * self.width

    def coarse(self, factor: int) -> Grid:
        """The grid with one token per ``factor`` (>= 1) squared cell; partial edge cells count."""
        return Grid(ceil(self.height / factor), ceil(self.width / factor))

    def factor_for(self, budget: int) -> int:
        """The smallest factor whose coarse grid has at most ``budget`` (>= 1) tokens.

        Raises:
            GridError: no grid has so few.
        """
        if budget < 1:
            raise GridError(f"expected a budget of at least 1 token, got {budget}")
        factor = 1
        while ceil(self.height / factor) * ceil(self.width / factor) > budget:
            factor += 1
        return factor

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"
