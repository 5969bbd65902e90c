"""Which keys of a joint sequence stay: token grids of images or frames, among exact tokens.

Convention: a joint sequence is ``before`` exact tokens (text), one or more boxes of image tokens,
``after`` exact tokens. A box is row-major: frames, then height, then width. Kept keys come in the
order: exact tokens before, the boxes, anchors, exact tokens after.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import ceil

import torch
from torch import Tensor

from .grid import Grid
from .jitter import TOP_LEFT, Place
from .multiplicity import Runs
from .select import along, set_apart


@dataclass(frozen=True)
class Box:
    """frames x height x width tokens, and how coarsely their keys are kept.

    Args:
        frames: of a video, or 1.
        height: tokens.
        width: tokens.
        factor: linear, in height and width, >= 1.
        temporal: one of so many frames is kept, >= 1.
        index: of the kept tokens, [kept], or [batch, kept] where samples keep different ones; None
            is the top left of every cell.
    """

    frames: int
    height: int
    width: int
    factor: int = 1
    temporal: int = 1
    index: Tensor | None = field(default=None, compare=False)

    @property
    def grid(self) -> Grid:
        """Of one frame."""
        return Grid(self.height, self.width)

    @property
    def tokens(self) -> int:
        return self.frames * self.height * self.width

    @property
    def kept(self) -> int:
        """How many tokens are on the coarse grid."""
        return ceil(self.frames / self.temporal) * self.grid.coarse(self.factor).tokens

    @property
    def multiplicity(self) -> int:
        """How many original tokens a kept one stands for."""
        return self.temporal * self.factor**2

    def at(self, place: Place | None, device: torch.device) -> Box:
        """The same with its kept tokens at a place in their cells; None is the top left."""
        if place is None or self.kept == self.tokens:
            return self
        return replace(self, index=self._index(place, device))

    def with_anchors(
        self, scores: Tensor, count: int, place: Place | None
    ) -> tuple[Box, Tensor | None]:
        """The same, and its anchors, which are not on its coarse grid then.

        Args:
            scores: [batch, tokens], see :func:`set_apart`.
            count: >= 0; fewer where fewer tokens are off the grid.
            place: of kept tokens in their cells; None is the top left.

        Returns:
            The box, and [batch, anchors] indices, or None.
        """
        count = min(count, self.tokens - self.kept)
        if count == 0:
            return self.at(place, scores.device), None
        place = place or TOP_LEFT
        cells = place.cells(
            self.height, self.width, self.factor, scores.device,
            frames=self.frames, temporal=self.temporal,
        )  # fmt: skip
        index, anchors = set_apart(scores, self._index(place, scores.device), cells, count)
        return replace(self, index=index), anchors

    def _index(self, place: Place, device: torch.device) -> Tensor:
        return place.index(
            self.height, self.width, self.factor, device,
            frames=self.frames, temporal=self.temporal,
        )  # fmt: skip

    def take(self, x: Tensor, dim: int) -> Tensor:
        """Keeps ``kept`` of the ``tokens`` entries of a dimension."""
        if self.index is None:
            return self._strided(x, dim).flatten(dim, dim + 2)
        if self.index.ndim == 1:
            return x.index_select(dim, self.index)
        return x.gather(dim, along(self.index, x, dim))

    def put(self, full: Tensor, kept: Tensor) -> None:
        """The inverse along dimension 1, in place: ``full`` has ``tokens`` entries there."""
        if self.index is None:
            target = self._strided(full, 1)
            target.copy_(kept.unflatten(1, target.shape[1:4]))
        elif self.index.ndim == 1:
            full.index_copy_(1, self.index, kept)
        else:
            full.scatter_(1, along(self.index, full, 1), kept)

    def _strided(self, x: Tensor, dim: int) -> Tensor:
        """The kept tokens as a view: ``dim`` becomes (frames, height, width)."""
        maps = x.unflatten(dim, (self.frames, self.height, self.width))
        cells = [slice(None, None, step) for step in (self.temporal, self.factor, self.factor)]
        kept: Tensor = maps[tuple([slice(None)] * dim + cells)]
        return kept


@dataclass(frozen=True)
class Sequence:
    """Boxes of image tokens among exact ones, and the anchors.

    Args:
        boxes: in their order; anchors are chosen in the first.
        before: exact tokens before the boxes.
        after: exact tokens behind them.
        anchors: indices into the first box, [batch, A], or None.
    """

    boxes: tuple[Box, ...]
    before: int = 0
    after: int = 0
    anchors: Tensor | None = None

    @property
    def image_tokens(self) -> int:
        return sum(box.tokens for box in self.boxes)

    @property
    def tokens(self) -> int:
        return self.before + self.image_tokens + self.after

    @property
    def kept(self) -> int:
        count = 0 if self.anchors is None else self.anchors.shape[-1]
        return self.before + sum(box.kept for box in self.boxes) + count + self.after

    def image_only(self, padding: int = 0) -> Sequence:
        """The same without the exact tokens around the boxes, but for the first so many behind."""
        return Sequence(self.boxes, after=padding, anchors=self.anchors)

    def behind(self, count: int) -> Sequence:
        """The same with so many more exact tokens before it."""
        return replace(self, before=self.before + count)

    def with_anchors(self, scores: Tensor, count: int, place: Place | None = None) -> Sequence:
        """The same with anchors in the first box, see :meth:`Box.with_anchors`.

        Args:
            scores: [batch, tokens] of the joint sequence, or of the image tokens alone.
            count: >= 0.
            place: of kept tokens in the cells of that box; None is the top left.
        """
        first, *others = self.boxes
        first, anchors = first.with_anchors(self.first_box(scores), count, place)
        return replace(self, boxes=(first, *others), anchors=anchors)

    def samples(self) -> list[Sequence]:
        """One for each sample of a batch, where these have anchors of their own."""
        first, *others = self.boxes
        assert self.anchors is not None
        assert first.index is not None
        return [
            replace(self, boxes=(replace(first, index=index), *others), anchors=anchors)
            for index, anchors in zip(first.index.split(1), self.anchors.split(1), strict=True)
        ]

    def first_box(self, x: Tensor) -> Tensor:
        """Tokens of the joint sequence, or of the images alone, [batch, tokens, ...] -> its own."""
        first = self.before if x.shape[1] == self.tokens else 0
        return x.narrow(1, first, self.boxes[0].tokens)

    def take(self, x: Tensor, dim: int) -> Tensor:
        """Keeps ``kept`` of the ``tokens`` entries of a dimension, counted from the front."""
        if self.anchors is not None and x.shape[0] < self.anchors.shape[0]:
            # a mask may be one for the whole batch
            x = x.expand(self.anchors.shape[0], *x.shape[1:])
        parts = [x.narrow(dim, 0, self.before)] if self.before else []
        for start, box in self._starts():
            part = x.narrow(dim, start, box.tokens)
            parts.append(box.take(part, dim))
        if self.anchors is not None:
            main = x.narrow(dim, self.before, self.boxes[0].tokens)
            parts.append(main.gather(dim, along(self.anchors, main, dim)))
        if self.after:
            parts.append(x.narrow(dim, self.tokens - self.after, self.after))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)

    def put(self, kept: Tensor) -> Tensor:
        """The inverse of ``take`` along dimension 1; zeros where nothing was kept."""
        full = kept.new_zeros(kept.shape[0], self.tokens, *kept.shape[2:])
        first = self.before
        if first:
            full[:, :first] = kept[:, :first]
        for start, box in self._starts():
            box.put(full.narrow(1, start, box.tokens), kept.narrow(1, first, box.kept))
            first += box.kept
        if self.anchors is not None:
            count = self.anchors.shape[-1]
            anchored = kept.narrow(1, first, count)
            main = self.first_box(full)
            main.scatter_(1, along(self.anchors, main, 1), anchored)
        if self.after:
            full[:, -self.after :] = kept[:, -self.after :]
        return full

    def runs(self) -> Runs:
        """How often the kept keys count."""
        ones = self.after + (0 if self.anchors is None else self.anchors.shape[-1])
        boxes = ((box.kept, box.multiplicity) for box in self.boxes)
        return (self.before, 1), *boxes, (ones, 1)

    def _starts(self) -> Iterator[tuple[int, Box]]:
        start = self.before
        for box in self.boxes:
            yield start, box
            start += box.tokens


def joint_tokens(boxes: tuple[Box, ...], anchors: int) -> tuple[int, int]:
    """How many image tokens there are, and how many of their keys are kept, anchors included."""
    first = boxes[0]
    extra = min(anchors, first.tokens - first.kept)
    return sum(box.tokens for box in boxes), sum(box.kept for box in boxes) + extra
