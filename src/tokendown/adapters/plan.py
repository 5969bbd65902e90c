"""What a patch will do to one denoiser, layer by layer.

The plan is shared by everything that is installed on the denoiser, is copied and pickled with it,
and is read while ``torch.compile`` traces: integers become guards, so that one image size means
one graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from .._errors import ConfigError, NothingPatchedError, UnsupportedModelError
from ..config import CellMethod, Method, PatchConfig, cells_of, in_window
from ..grid import Grid
from ..jitter import Place
from ..select import kept_tokens
from ..tuned import Options, TunedPlan

Shape = tuple[int, int, int]


@dataclass(eq=False)
class Layer:
    """One self-attention layer.

    Args:
        name: dotted path in the denoiser.
        downsample: of its grid relative to the finest token grid of the model.
        channels: width of its tokens.
        heads: number of heads.
        head_dim: channels a head.
        key_width: channels of the key projection: fewer where heads of queries share one of keys.
        rule: what it keeps; None leaves it dense.
        reason: why it is left dense, for people.
        clock: when it is coarse, and which tokens it keeps; None means the same at all steps.
        height, width: its grid in the latest forward pass; 0 before the first.
        shapes: (frames, height, width) of all boxes of its sequence then; none on a classic model.
        scores: [batch, tokens], on their way from the block's norm to its attention; else None.
        tokens_first: whether that norm is given [tokens, batch, channels].
        present: to go back to when its attention has run again for a gradient; else None.
    """

    name: str
    downsample: int
    channels: int
    heads: int
    head_dim: int
    key_width: int
    rule: Rule | None = None
    reason: str = ""
    clock: Clock | None = None
    height: int = 0
    width: int = 0
    shapes: tuple[Shape, ...] = ()
    scores: Tensor | None = None
    tokens_first: bool = False
    present: Moment | None = None

    @property
    def inner_dim(self) -> int:
        """Channels of all heads of queries."""
        return self.heads * self.head_dim

    @property
    def grid(self) -> Grid:
        return Grid(self.height, self.width)

    def factor(self, grid: Grid) -> int:
        """The linear factor at a grid; 1 is dense, as it is where anchors would be all the rest."""
        rule = self.rule
        if rule is None:
            return 1
        factor = rule.factor(grid)
        every = rule.cells == "nearest" and kept_tokens(grid, factor, rule.anchors) == grid.tokens
        return 1 if every else factor

    def drops(self, grid: Grid) -> bool:
        """Whether keys are dropped at a grid, of a frame or whole frames."""
        return self.factor(grid) > 1 or (self.rule is not None and self.rule.temporal > 1)

    @property
    def active(self) -> bool:
        """Whether this step is in its window; never where its patch is gone.

        Raises:
            ConfigError: there is a window, but nothing tells how far the sampling has come.
        """
        if self.rule is None:
            return False
        if self.clock is None or self.clock.whole:
            return True
        if not self.clock.running:
            raise ConfigError(
                f"the patch is limited to the part {self.clock.start} to {self.clock.stop} of "
                "the schedule, but no scheduler that it follows is running; give apply_patch the "
                "pipeline, or call patch.set_progress(step, steps) in a loop of your own"
            )
        return self.clock.active

    def take_scores(self) -> Tensor | None:
        """Those for this run of its attention, once."""
        scores, self.scores = self.scores, None
        return scores

    def anchored(self, scores: Tensor | None) -> Tensor | None:
        """Scores by which to choose anchors, or None where there are to be none.

        Raises:
            ConfigError: anchors are wanted, and nothing has scored the tokens.
        """
        if self.rule is None or not self.rule.anchors:
            return None
        if scores is None:
            raise ConfigError(
                f"{self.name}: expected the norm before it to run first, to score its tokens for "
                "the anchors; where the model was compiled before apply_patch, and its graph "
                "breaks between the two, call torch.compiler.reset() after apply_patch, or use "
                "anchors=0"
            )
        return scores

    def finish(self) -> None:
        """Its attention has run: back to the present, where it ran for a backward pass."""
        if self.present is not None:
            self.go_to(self.present)
            self.present = None

    def moment(self) -> Moment:
        """What it goes by: the step, and the size of the picture."""
        return self.clock, self.height, self.width, self.shapes

    def go_to(self, moment: Moment) -> None:
        """To a moment of before."""
        self.clock, self.height, self.width, self.shapes = moment

    @property
    def place(self) -> Place | None:
        """Of the kept token in its cell; None is the top left."""
        moves = self.rule is not None and self.rule.jitter
        return self.clock.place if moves and self.clock else None


@dataclass(frozen=True)
class Rule:
    """What a layer keeps: a fixed factor, or the smallest that leaves at most ``budget`` keys.

    Args:
        fixed: linear factor, or None.
        budget: most grid keys, where no factor is fixed.
        anchors: kept besides the grid.
        method: of taking the grid, see :class:`tokendown.PatchConfig`.
        window: fractions of the schedule between which the layer is coarse.
        multiplicity: whether a kept key counts as often as it stands for a token.
        references: linear factor of reference pictures in the same sequence.
        temporal: one of so many frames is kept, where attention runs over all of them.
    """

    fixed: int | None = None
    budget: int = 1
    anchors: int = 0
    method: Method = "nearest"
    window: tuple[float, float] = (0.0, 1.0)
    multiplicity: bool = True
    references: int = 1
    temporal: int = 1

    def __str__(self) -> str:
        return f"at most {self.budget} keys" if self.fixed is None else f"factor {self.fixed}"

    @property
    def cells(self) -> CellMethod:
        """What is taken of a cell at one step."""
        return cells_of(self.method)

    @property
    def jitter(self) -> bool:
        """Whether the kept token of a cell is another one at every step."""
        return self.method == "jitter"

    def factor(self, grid: Grid) -> int:
        return grid.factor_for(self.budget) if self.fixed is None else self.fixed


@dataclass(eq=False)
class Clock:
    """How far the sampling has come, counted in steps: reading a timestep would stall a GPU.

    ``active`` and ``place`` are decided when a step ends, not when a layer runs: a compiled model
    sees a boolean that changes at most twice and the values of tensors, not a step index that
    would recompile it at every step.

    Args:
        start, stop: fractions of the schedule between which the patch is active.
        steps: length of the schedule; 0 before the first.
        step: index of the current step.
        detached: whether its patch is gone, so that no scheduler need tell it anything.
        place: of kept tokens in their cells at this step, where a layer moves them.
    """

    start: float
    stop: float
    steps: int = 0
    step: int = 0
    running: bool = False
    active: bool = False
    detached: bool = False
    place: Place = field(default_factory=lambda: Place.at(-1))

    @property
    def whole(self) -> bool:
        """Whether the patch is active at all steps, so that nobody has to tell which one it is."""
        return self.start <= 0.0 and self.stop >= 1.0

    def set(self, step: int, steps: int) -> None:
        self.step, self.steps = step, steps
        self.running = step < steps
        self.place = Place.at(step if self.running else -1)
        self.active = self.running and in_window(step, steps, self.start, self.stop)


# What a layer goes by: clock, height, width, and shapes.
Moment = tuple[Clock | None, int, int, tuple[Shape, ...]]


@dataclass(eq=False)
class Plan:
    """The layers of one denoiser, and the clocks that they follow.

    Args:
        config: what the user asked for.
        layers: every self-attention layer on an image grid, in model order.
        left_alone: name to reason, for other attention that looks like self-attention.
        clocks: one for each step window, where a layer has to know the step.
    """

    config: Options
    layers: list[Layer]
    left_alone: dict[str, str] = field(default_factory=dict)
    clocks: list[Clock] = field(default_factory=list)
    said_unchanged: set[Grid] = field(default_factory=set)

    def retire(self) -> None:
        """Makes layers dense whose stand-in is out of reach, under what others put around it."""
        for layer in self.layers:
            layer.rule = None
        for clock in self.clocks:
            clock.detached = True

    @property
    def patched(self) -> list[Layer]:
        return [layer for layer in self.layers if layer.rule is not None]


def assign_rules(plan: Plan, classes: list[str]) -> None:
    """Decides which layers are coarsened, and when.

    Args:
        plan: its layers are without rules.
        classes: names of the class of the denoiser and of its bases.

    Raises:
        NothingPatchedError: no layer, or a level of the factor dict has none.
        UnsupportedModelError: the options are a plan for another architecture.
    """
    if isinstance(plan.config, TunedPlan):
        _follow_tuned(plan, plan.config, classes)
    else:
        _follow_config(plan, plan.config)
    clocks: dict[tuple[float, float], Clock] = {}
    for layer in plan.patched:
        assert layer.rule is not None, "patched layers have one"
        if layer.rule.jitter or layer.rule.window != (0.0, 1.0):
            layer.clock = clocks.setdefault(layer.rule.window, Clock(*layer.rule.window))
    plan.clocks = list(clocks.values())


def _follow_tuned(plan: Plan, tuned: TunedPlan, classes: list[str]) -> None:
    here = {layer.name: (layer.channels, layer.heads) for layer in plan.layers}
    there = {choice.name: (choice.channels, choice.heads) for choice in tuned.layers}
    needed = {layer.name for layer in plan.layers if not layer.reason}
    different = sorted(dict(there.items() - here.items()).keys() | needed - there.keys())
    if tuned.model not in classes or different:
        raise UnsupportedModelError(
            f"this plan was made for another architecture: {tuned.model} with {len(there)} "
            f"self-attention layers, not {classes[0]} with {len(here)}"
            + (f"; they differ at {different[0]}" if different else "")
            + "; make one for this model with tokendown tune"
        )
    choices = {choice.name: choice for choice in tuned.layers}
    for layer in plan.layers:
        choice = choices.get(layer.name)
        if layer.reason or choice is None:
            continue  # it cannot be coarse
        if choice.factor == 1:
            layer.reason = "dense in the plan"
        else:
            window = (choice.start, choice.stop)
            layer.rule = Rule(
                choice.factor, anchors=choice.anchors, method=choice.method, window=window
            )
    if not plan.patched:
        raise NothingPatchedError("this plan leaves every layer of the model dense")


def _follow_config(plan: Plan, config: PatchConfig) -> None:
    candidates = [layer for layer in plan.layers if not layer.reason]
    found = _levels(candidates)
    if not found:
        reasons = {*plan.left_alone.values(), *(layer.reason for layer in plan.layers)}
        raise NothingPatchedError(
            "no self-attention layer of this model can be patched: "
            + ("; ".join(sorted(reasons)) or "it has none")
        )
    wanted = _wanted(config, found)
    missing = sorted(set(wanted) - set(found))
    if missing:
        raise NothingPatchedError(
            f"no self-attention at downsampling {', '.join(map(str, missing))}; this model has it "
            f"at {_describe(found)}. Try factor={{{min(found)}: 2}}."
        )
    for layer in candidates:
        layer.rule = wanted.get(layer.downsample)
        if layer.rule is None:
            layer.reason = f"downsampling {layer.downsample} was not asked for"


def _wanted(config: PatchConfig, found: dict[int, int]) -> dict[int, Rule]:
    """Level to rule."""
    assert config.budget is not None, "PatchConfig fills it in"
    assert config.anchors is not None, "PatchConfig fills it in"
    assert config.method is not None, "PatchConfig fills it in"
    rule = Rule(
        None, config.budget, config.anchors, config.method,
        window=(config.start, config.stop), multiplicity=config.multiplicity,
        references=config.references, temporal=config.temporal_factor,
    )  # fmt: skip
    if isinstance(config.factor, int):
        return {min(found): replace(rule, fixed=config.factor)}
    if config.factor is not None:
        return {level: replace(rule, fixed=factor) for level, factor in config.factor.items()}
    return dict.fromkeys([1] if config.preset == "paper" else found, rule)


def _levels(layers: list[Layer]) -> dict[int, int]:
    """Downsampling to number of layers, finest first."""
    levels: dict[int, int] = {}
    for layer in sorted(layers, key=lambda item: item.downsample):
        levels[layer.downsample] = levels.get(layer.downsample, 0) + 1
    return levels


def _describe(found: dict[int, int]) -> str:
    return ", ".join(f"{level} ({count} layers)" for level, count in found.items())
