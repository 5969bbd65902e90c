"""What a patch will do to a transformer of the registry: boxes of tokens instead of one grid."""

from __future__ import annotations

from dataclasses import dataclass

from .._errors import GridError
from ..grid import Grid
from ..sequence import Box
from .plan import Layer, Plan, Rule, Shape


@dataclass(eq=False)
class JointLayer(Layer):
    """One self-attention layer of a transformer.

    Args:
        text_first: whether exact tokens come before the image tokens in the joint sequence.
        rotary: name of the argument with the rotary positions, or None.
        rotary_inside: its name in the processor, where that is another one.
        selects_first: whether keys and values have projections of their own.
        references: whether reference pictures are in its sequence, where there are any.
        text_asks: whether exact tokens have queries, not keys alone.
        by_sample: whether attention is called once a sample, with its valid text alone.
    """

    text_first: bool = False
    rotary: str | None = None
    rotary_inside: str | None = None
    selects_first: bool = True
    references: bool = True
    text_asks: bool = True
    by_sample: bool = False

    def factor(self, grid: Grid) -> int:
        """That of its rule: anchors are among the tokens of all frames."""
        return 1 if self.rule is None else self.rule.factor(grid)


@dataclass(eq=False)
class JointPlan(Plan):
    """A plan, and the token boxes of the latest forward pass.

    Args:
        shapes: (frames, height, width) in tokens, of the picture or video, then of references.
        others: how many tokens of the latent are of no shape: frames of conditions.
    """

    shapes: tuple[Shape, ...] = ()
    others: int = 0

    def set_shapes(self, shapes: tuple[Shape, ...]) -> None:
        """Notes them.

        Raises:
            GridError: an adapter's grid told something else.
        """
        if not all(isinstance(shape, tuple) and len(shape) == 3 for shape in shapes):
            raise GridError(
                "expected a grid to tell ((frames, height, width), ...) in tokens, the picture "
                f"first, got {shapes}"
            )
        self.shapes = shapes
        for layer in self.layers if shapes else ():
            layer.shapes = shapes
            _, layer.height, layer.width = shapes[0]

    def boxes(
        self, layer: JointLayer, shapes: tuple[Shape, ...], ranks: int = 1
    ) -> tuple[Box, ...]:
        """What one of ``ranks`` sees under context parallelism, and how coarsely it is kept.

        Args:
            layer: that sees it.
            shapes: of all boxes of the sequence.
            ranks: that share it.

        Raises:
            GridError: the ranks cannot share it so that each has whole cells.
        """
        (frames, height, width), *references = shapes
        references = references if layer.references else []
        rule = layer.rule or Rule(fixed=1)
        factor, temporal = rule.factor(Grid(height, width)), min(rule.temporal, frames)
        main = Box(frames, height, width, factor, temporal)
        boxes = (main, *(Box(*shape, rule.references) for shape in references))
        if ranks == 1 or all(box.kept == box.tokens for box in boxes):
            return boxes
        if references or self.others:
            # The first ranks get the picture and the last ones the references: their keys are not
            # equally many, which neither Ulysses nor a ring can exchange.
            besides = f"{len(references)} reference pictures and {self.others} tokens of conditions"
            raise GridError(
                f"{ranks} ranks cannot share a sequence with {besides}; use one process, or "
                "remove_patch(model)"
            )
        return (_shard(main, ranks),)


def _shard(box: Box, ranks: int) -> Box:
    """An equal part of the rows of all frames.

    Raises:
        GridError: the parts are not equal, or one does not start where a cell starts.
    """
    rows, rest = divmod(box.frames * box.height, ranks)
    if rest == 0 and rows % box.height == 0 and (rows // box.height) % box.temporal == 0:
        return Box(rows // box.height, box.height, box.width, box.factor, box.temporal)
    if rest == rows % box.factor == box.height % box.factor == 0 and box.temporal == 1:
        # Where frames are whole cells high, kept rows are equally far apart across frames too.
        return Box(1, rows, box.width, box.factor)
    step = ranks * box.factor
    raise GridError(
        f"{ranks} ranks cannot share {box.frames} x {box.height} rows of tokens at factor "
        f"{box.factor}: every part has to start on a multiple of {box.factor} rows; use a height "
        f"of a multiple of {step} tokens, for example {-(-box.height // step) * step}"
    )
