"""What to keep, where and when: the options of a patch, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from ._errors import ConfigError

Preset = Literal["auto", "paper"]
Method = Literal["nearest", "mean", "jitter"]
CellMethod = Literal["nearest", "mean"]  # of one call, which knows no steps


def cells_of(method: Method) -> CellMethod:
    """What a method takes of a cell at one step."""
    return "mean" if method == "mean" else "nearest"


# The published set-up always leaves 4096 keys of a square image: factor 2, 3, 4 at 1024, 1536 and
# 2048 pixels of Stable Diffusion 1.5. Source: arXiv:2402.13573 and its authors' public demo.
PAPER_BUDGET = 4096
# By FLOPs a step of SD 1.5 gains 1.59x with 3072 keys at 1024 pixels and 3.47x at 2048 (the paper's
# rule: 1.39x and 2.59x). 1024 keys gain 3 and 7 % more, and cost more quality than that is worth.
# Measured: docs/quality.md, paper/LOG.md.
AUTO_BUDGET = 3072
AUTO_ANCHORS = 32


@dataclass(frozen=True)
class PatchConfig:
    """Options of :func:`tokendown.apply_patch`; immutable, comparable, JSON-ready.

    Args:
        preset: ``"auto"`` coarsens every self-attention layer whose grid has more than ``budget``
            tokens and keeps anchors. ``"paper"`` is ToDo as published: only the layers at full
            resolution, top-left token of each cell, no anchors.
        factor: overrides the preset's choice of layers. An int is the linear factor (2 keeps a
            quarter of the keys) for the layers at the model's finest self-attention resolution;
            a dict maps a layer's own downsampling, relative to the finest token grid of the model,
            to its factor, e.g. ``{1: 4, 2: 2}``. Range: >= 1; 1 leaves a layer dense.
        budget: most grid keys that a layer may keep, >= 1; a layer gets the smallest factor that
            brings it there. None means the preset's own: 3072, or 4096 with ``"paper"``. Without
            effect where ``factor`` is given.
        anchors: tokens that are kept besides the grid, the longest before the norm, >= 0.
            None means 32, or 0 with the preset ``"paper"``.
        method: ``"nearest"`` keeps the top-left token of a cell, ``"mean"`` averages the cell,
            ``"jitter"`` keeps one token, another at every step of the sampling (outside a
            pipeline's steps the top-left one, which a log message says). None means "jitter",
            or "nearest" with the preset ``"paper"``.
        start: fraction of the schedule, in [0, 1), at which the patch becomes active.
        stop: fraction of the schedule, in (start, 1], from which it is inactive again.
        controlnet: patch the ControlNets of a pipeline as well.
        multiplicity: whether a kept key counts as often as it stands for an original token;
            False is for ablations.
        references: linear factor for the tokens of reference pictures in one sequence with the
            picture (FLUX.1 Kontext, Qwen-Image-Edit, FLUX.2), >= 1; 1 keeps them all.
        temporal_factor: keys of one of so many frames of a video are kept, >= 1, in video
            transformers whose attention runs over all frames.

    Raises:
        ConfigError: a value is out of its range.

    Source: Smith, Saxena, Saha 2024, arXiv:2402.13573 (grid); docs/how-it-works.md (anchors).
    """

    preset: Preset = "auto"
    factor: int | Mapping[int, int] | None = None
    budget: int | None = None
    anchors: int | None = None
    method: Method | None = None
    start: float = 0.0
    stop: float = 1.0
    controlnet: bool = False
    multiplicity: bool = True
    references: int = 1
    temporal_factor: int = 1

    def __post_init__(self) -> None:
        expect(self.preset in get_args(Preset), "preset 'auto' or 'paper'", self.preset)
        paper = self.preset == "paper"
        if self.method is None:
            object.__setattr__(self, "method", "nearest" if paper else "jitter")
        expect(self.method in get_args(Method), "method 'nearest', 'mean' or 'jitter'", self.method)
        if self.budget is None:
            object.__setattr__(self, "budget", PAPER_BUDGET if paper else AUTO_BUDGET)
        if self.anchors is None:
            object.__setattr__(self, "anchors", 0 if paper else AUTO_ANCHORS)
        expect(is_int(self.budget, 1), "a budget of at least 1 key", self.budget)
        expect(is_int(self.anchors, 0), "a number of anchors >= 0", self.anchors)
        expect(
            is_window(self.start, self.stop),
            "0 <= start < stop <= 1 (fractions of the schedule)",
            f"start={self.start!r}, stop={self.stop!r}",
        )
        expect(isinstance(self.controlnet, bool), "controlnet True or False", self.controlnet)
        expect(isinstance(self.multiplicity, bool), "multiplicity True or False", self.multiplicity)
        expect(is_int(self.references, 1), "references, a factor >= 1", self.references)
        expect(is_int(self.temporal_factor, 1), "a temporal_factor >= 1", self.temporal_factor)
        if isinstance(self.factor, Mapping):
            expect(
                len(self.factor) > 0
                and all(is_int(k, 1) and is_int(v, 1) for k, v in self.factor.items()),
                "a dict from downsampling to factor, integers >= 1, such as {1: 4, 2: 2}",
                dict(self.factor),
            )
            object.__setattr__(self, "factor", dict(self.factor))
        elif self.factor is not None:
            expect(is_int(self.factor, 1), "an integer factor >= 1 (2 keeps 1/4)", self.factor)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; dict keys become strings only when dumped."""
        return asdict(self)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> PatchConfig:
        """The inverse of :meth:`to_dict`, also after a round trip through JSON.

        Raises:
            ConfigError: an option is unknown or out of range.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ConfigError(f"unknown option {', '.join(unknown)}; the options are {known}")
        options = dict(options)
        if isinstance(options.get("factor"), Mapping):
            options["factor"] = {_level(k): v for k, v in options["factor"].items()}
        return cls(**options)


def _level(key: object) -> object:
    """A key of the factor dict, which JSON has made text."""
    return int(key) if isinstance(key, str) and key.isdecimal() else key


def is_int(value: object, least: int) -> bool:
    """Whether it is an integer, no boolean, of at least so much."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_window(start: Any, stop: Any) -> bool:
    """Whether they are numbers that bound a part of the schedule, which is [0, 1]."""
    numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in (start, stop))
    return numbers and 0.0 <= start < stop <= 1.0


def in_window(step: int, steps: int, start: float, stop: float) -> bool:
    """Whether a step of so many, from 0 on, begins in a part of the schedule."""
    return start <= step / steps < stop


def expect(ok: bool, expected: str, got: object) -> None:
    """Raises a ConfigError unless ``ok``."""
    if not ok:
        raise ConfigError(f"expected {expected}, got {got!r}")
