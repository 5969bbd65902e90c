"""Where a transformer is told its image tokens by the values of their positions alone.

Values have to be read, which stalls a GPU, and which a compiled model cannot do: that is told the
grid (``Patch.set_grid``) and checks it on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._errors import GridError
from .grids import Shapes

_ANOTHER_GRID = (
    "the positions have another grid than the one that is known, and a compiled model cannot read "
    "it: call patch.set_grid((height, width)) with the new size in tokens"
)


class IdGrid:
    """Positions of every token, [tokens, axes] or [batch, tokens, axes].

    Axis 0 tells pictures apart, axes 1 and 2 are row and column. Values have to be read, which
    stalls a GPU, and which a compiled model cannot do.

    Args:
        argument: of the model's forward.
        references: another argument with the positions of reference pictures, or None.
    """

    def __init__(self, argument: str = "img_ids", references: str | None = None) -> None:
        self.argument, self.references = argument, references

    def wanted(self, arguments: Mapping[str, Any]) -> bool:
        """Whether a call tells its grid so."""
        return arguments.get(self.argument) is not None

    def given(self, arguments: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The positions in a call, and those of references where these have an argument."""
        names = (self.argument, self.references)
        return tuple(ids for name in names if name and (ids := arguments.get(name)) is not None)

    def read(self, ids: Tensor) -> Shapes:
        """The pictures, in their order.

        Raises:
            GridError: a picture is not a row-major grid, or the batch has several layouts.
        """
        values = self._of_one_image(ids)
        starts = [0, *_changes(values[:, 0])]
        shapes = []
        for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
            rows = values[start:end, 1]
            width = next(iter(_changes(rows)), len(rows))
            shapes.append((1, len(rows) // width, width))
        tokens = sum(height * width for _, height, width in shapes)
        if tokens != len(values) or not bool(_fits(values, tuple(shapes))):
            raise GridError(f"the positions in {self.argument} are not those of row-major grids")
        return tuple(shapes)

    def check(self, ids: Tensor, shapes: Shapes) -> None:
        """Fails on the device, without reading anything, where the pictures are others."""
        ids = ids[0] if ids.ndim == 3 else ids
        tokens = sum(frames * height * width for frames, height, width in shapes)
        if ids.shape[0] != tokens:
            raise GridError(
                f"the grid is {shapes}, {tokens} tokens, but {self.argument} has {ids.shape[0]}: "
                "call patch.set_grid((height, width)) with the new size in tokens"
            )
        torch._assert_async(_fits(ids, shapes), _ANOTHER_GRID)

    def _of_one_image(self, ids: Tensor) -> Tensor:
        """[tokens, axes] on the CPU."""
        values = ids.detach().cpu()
        if values.ndim == 3:
            if not bool((values == values[:1]).all()):
                raise GridError(f"expected one layout for the whole batch in {self.argument}")
            values = values[0]
        return values


class JoinedIdGrid(IdGrid):
    """Krea 2: positions of text, all at the origin, and of one picture behind it."""

    def read(self, ids: Tensor) -> Shapes:
        """The picture, which begins at the last token at the origin.

        Raises:
            GridError: it is not a row-major grid, or the batch has several layouts.
        """
        values = self._of_one_image(ids)
        origins = (values == 0).all(dim=1).nonzero().flatten().tolist()
        return super().read(values[max(origins, default=0) :])

    def check(self, ids: Tensor, shapes: Shapes) -> None:
        ((_, height, width),) = shapes
        super().check(ids[-height * width :], shapes)


class OffsetIdGrid(IdGrid):
    """Ideogram 4: positions of padding, text, and one picture behind them, [batch, tokens, 3].

    Args:
        argument: of the model's forward.
        offset: where those of the picture begin; all others are smaller.
    """

    def __init__(self, argument: str = "position_ids", offset: int = 65536) -> None:
        super().__init__(argument)
        self.offset = offset

    def read(self, ids: Tensor) -> Shapes:
        """The picture.

        Raises:
            GridError: it is not one row-major grid at the end, or the batch has several layouts.
        """
        ids = ids.detach().cpu()
        pictured = ids[..., 0] >= self.offset
        tokens = int(pictured[0].sum())
        first = ids.shape[1] - tokens
        at_the_end = bool(pictured[:, first:].all()) and not bool(pictured[:, :first].any())
        shapes = super().read(ids[:, first:]) if tokens and at_the_end else ()
        if len(shapes) != 1 or bool((ids[0, first :: shapes[0][2], 1].diff() < 1).any()):
            raise GridError(
                f"expected one picture at the end of {self.argument}, as diffusers' pipeline has "
                "it; several samples in one sequence are not supported"
            )
        return shapes

    def check(self, ids: Tensor, shapes: Shapes) -> None:
        ((_, height, width),) = shapes
        super().check(ids[:, -height * width :], shapes)
        first = ids[0, -height * width]
        torch._assert_async((first == self.offset).all(), _ANOTHER_GRID)


class CoordinateGrid(IdGrid):
    """LTX: coordinates in time, height and width, [batch, 3, tokens], of a video.

    Frames that the video is conditioned on may come before it; they are exact tokens.
    """

    def read(self, ids: Tensor) -> Shapes:
        """The video, whose frames are the last ones, each later than the one before.

        Raises:
            GridError: a frame is not a row-major grid, or the batch has several layouts.
        """
        values = self._of_one_image(ids.transpose(1, 2))
        starts = [0, *_changes(values[:, 0])]
        size, first = len(values) - starts[-1], len(starts) - 1
        while first and starts[first] - starts[first - 1] == size:
            if values[starts[first - 1], 0] > values[starts[first], 0]:
                break
            first -= 1
        frames = len(starts) - first
        rows = values[starts[-1] :, 1]
        width = next(iter(_changes(rows)), size)
        shapes = ((1, size // width, width),) * frames
        if size % width or not bool(_fits(values[starts[first] :], shapes)):
            raise GridError(f"the positions in {self.argument} are not those of row-major grids")
        return ((frames, size // width, width),)

    def check(self, ids: Tensor, shapes: Shapes) -> None:
        ((frames, height, width),) = shapes
        tokens = frames * height * width
        super().check(ids[0].T[-tokens:], ((1, height, width),) * frames)


class IntervalGrid(IdGrid):
    """LTX-2: where a token starts and ends in time, height and width, [batch, 3, tokens, 2].

    The video comes first. In it a frame, a row or a token starts where the one before ends, which
    frames of conditions behind it do not: they are exact tokens. Calls that tell numbers as well
    mean the same by them, and numbers cost nothing to read.

    Args:
        argument: of the model's forward.
        number: another argument, that of the frames.
    """

    def __init__(self, argument: str, number: str = "num_frames") -> None:
        super().__init__(argument)
        self.number = number

    def wanted(self, arguments: Mapping[str, Any]) -> bool:
        return super().wanted(arguments) and arguments.get(self.number) is None

    def read(self, ids: Tensor) -> Shapes:
        """The video.

        Raises:
            GridError: a frame is not a row-major grid, or the batch has several layouts.
        """
        values = self._of_one_image(ids.transpose(1, 2).flatten(2)).unflatten(1, (3, 2))
        width = _run(values[:, 2])
        height = _run(values[::width, 1])
        frames = _run(values[:: width * height, 0])
        video = values[: frames * height * width, :, 0]
        shapes = ((1, height, width),) * frames
        if len(video) != frames * height * width or not bool(_fits(video, shapes)):
            raise GridError(f"the positions in {self.argument} are not those of row-major grids")
        return ((frames, height, width),)

    def check(self, ids: Tensor, shapes: Shapes) -> None:
        ((frames, height, width),) = shapes
        tokens = frames * height * width
        super().check(ids[0, :, :tokens, 0].T, ((1, height, width),) * frames)


def _run(intervals: Tensor) -> int:
    """How many of [n, 2], from the first on, start where the one before ends."""
    breaks = (intervals[1:, 0] != intervals[:-1, 1]).nonzero()
    return int(breaks[0]) + 1 if len(breaks) else len(intervals)


def _changes(values: Tensor) -> list[int]:
    """Where a value differs from the one before."""
    return [int(index) + 1 for index in (values[1:] != values[:-1]).nonzero()]


def _fits(ids: Tensor, shapes: Shapes) -> Tensor:
    """Whether rows are constant along a row, and all rows have the same columns; a boolean.

    Compares positions with each other only: large ones are rounded in bfloat16. The number of
    tokens has to be that of the shapes.
    """
    fits, start = ids.new_ones((), dtype=torch.bool), 0
    for frames, height, width in shapes:
        part = ids[start : start + frames * height * width].unflatten(0, (frames * height, width))
        fits = (
            fits & (part[..., 1] == part[:, :1, 1]).all() & (part[..., 2] == part[:1, :, 2]).all()
        )
        fits = fits & (part[..., 0] == part[:1, :1, 0]).all()
        start += frames * height * width
    return fits
