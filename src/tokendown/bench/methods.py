"""The methods that are compared: each goes into a denoiser, and comes out without a trace."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

from torch import nn

from .._errors import BenchError, ConfigError, NothingPatchedError
from ..adapters import families
from ..adapters.joint_plan import JointLayer, JointPlan
from ..adapters.plan import Layer, Rule
from ..adapters.skeleton import Cost, measure
from ..config import PAPER_BUDGET, PatchConfig
from ..grid import Grid
from ..methods import PLAN, merged, parse_method
from ..patch import apply_patch
from ..select import kept_tokens
from ..tuned import Options, TunedPlan

DENSE = "dense"
DEFAULT = (
    DENSE, "paper", "auto", "minimal", "nearest", "nearest-exact", "tomesd-equal", "tomesd-half",
    "bound",
)  # fmt: skip
_STEPS = 1000  # of a schedule, of which the timed step of a patch with a window is in the window
_FURTHER = re.compile(r"(factor|budget) (\S+)")


@dataclass(frozen=True)
class Method:
    """A method at one size.

    Args:
        name: as typed, and as recorded.
        detail: what exactly it does at this size, for people.
        apply: puts it into a denoiser for as long as the context lasts.
        keys: kept keys of each layer that it changes, 0 where the layer is removed; None where the
            cost does not follow from that.
        windowed: whether it is at work in a part of the schedule only.
    """

    name: str
    detail: str
    apply: Callable[[Any], AbstractContextManager[Any]]
    keys: Mapping[str, int] | None = None
    windowed: bool = False


class Useless(Exception):
    """A method has nothing to do at this size or on this model; says why."""


@dataclass(frozen=True)
class Scene:
    """Where self-attention on an image grid is, at one size.

    Args:
        model: the denoiser without weights.
        cost: of one dense call of it.
        layers: those that can be coarsened.
        whole: whether pictures are timed, whose scheduler tells a patch the step.
    """

    model: Any
    cost: Cost
    layers: list[Layer]
    whole: bool = False

    @classmethod
    def of(cls, model: Any, height: int, width: int, batch: int, whole: bool = False) -> Scene:
        """At one size of the latent."""
        layers = [x for x in families.make_plan(model, None).layers if not x.reason]
        if not layers:
            raise BenchError(f"{type(model).__name__} has no self-attention that can be patched")
        return cls(model, measure(model, height, width, batch), layers, whole)

    @property
    def level(self) -> int:
        """Downsampling of the finest layers."""
        return min(layer.downsample for layer in self.layers)

    @property
    def finest(self) -> list[str]:
        """Their names."""
        return [layer.name for layer in self.layers if layer.downsample == self.level]

    @property
    def joint(self) -> bool:
        """Whether other tokens are in the same sequence, or positions rotated."""
        return isinstance(self.cost.plan, JointPlan)

    def grid(self, name: str) -> Grid:
        """Of a layer."""
        return self.cost.layers[name].grid

    @property
    def factor(self) -> int:
        """Of the methods that coarsen the finest level only: the paper's, and 2 at least."""
        return max(2, self.grid(self.finest[0]).factor_for(PAPER_BUDGET))


def check_name(name: str) -> str:
    """The name of a method as it is recorded.

    Raises:
        ConfigError: there is no such method.
        LoadError: its plan cannot be read.
    """
    if name not in DEFAULT:
        _options(name)
    return name


def make_method(name: str, scene: Scene) -> Method:
    """The method of that name at one size.

    Raises:
        ConfigError: there is no such method.
        Useless: it has nothing to do here.
        BenchError: it needs a package that is not installed.
    """
    if name not in DEFAULT:
        return _patched(name, _options(name), scene)
    if name == DENSE:
        return Method(DENSE, "every key", lambda _: contextlib.nullcontext(), {})
    if name in ("paper", "auto"):
        return _patched(name, PatchConfig(preset=name), scene)  # type: ignore[arg-type]
    if name == "bound":
        if any(isinstance(x, JointLayer) and not x.selects_first for x in scene.layers):
            raise Useless("its attention shares projections with the rest of a block")
        names = [layer.name for layer in scene.layers]
        removed = partial(without_attention, names=names)
        keys = None if scene.joint else dict.fromkeys(names, 0)
        return Method(name, f"{len(names)} layers removed", removed, keys)
    if name.startswith("tomesd"):
        return _tomesd(name, scene)
    return _by_hand(name, scene)


def _options(name: str) -> Options:
    """Of a patch in the notation of :mod:`tokendown.methods`, or in the two words of --factor."""
    further = _FURTHER.fullmatch(name)
    if further:
        return _config(*further.groups())
    options = parse_method(name).config if "=" in name else None
    if options is None:
        raise ConfigError(
            f"expected a method of {', '.join(DEFAULT)}, or a patch such as factor=2,anchors=0 or "
            f"{PLAN}FILE, got {name!r}"
        )
    return options


def _config(kind: str, value: str) -> PatchConfig:
    """Of "factor 2", "factor 1:4,2:2" or "budget 4096"."""
    try:
        if kind == "budget":
            return PatchConfig(budget=int(value))
        if ":" not in value:
            return PatchConfig(factor=int(value))
        pairs = (pair.split(":") for pair in value.split(","))
        return PatchConfig(factor={int(level): int(factor) for level, factor in pairs})
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(
            f"expected 'factor 2', 'factor 1:4,2:2' or 'budget 4096', got '{kind} {value}'"
        ) from error


# tokendown


def _patched(name: str, config: Options, scene: Scene) -> Method:
    try:
        plan = families.make_plan(scene.model, config)
    except NothingPatchedError as error:
        raise Useless(str(error)) from error
    grids = {layer: scene.grid(layer.name) for layer in plan.patched}
    rules = {layer: layer.rule for layer in grids if layer.rule is not None}
    if not any(layer.drops(grid) for layer, grid in grids.items()):
        raise Useless("changes nothing at this size")
    windows = sorted({rule.window for rule in rules.values()})
    windowed = windows != [(0.0, 1.0)]
    if len(windows) > 1 and not scene.whole:
        raise Useless("its layers are coarse at different steps: time whole pictures, with --whole")
    keys = {
        layer.name: kept_tokens(grids[layer], layer.factor(grids[layer]), rule.anchors, rule.cells)
        for layer, rule in rules.items()
    }

    def apply(model: Any) -> AbstractContextManager[Any]:
        patch = apply_patch(model, config)
        grid = next(iter(grids.values()))
        if scene.joint:  # positions cannot be read on the meta device, or when it is compiled
            patch.set_grid((grid.height, grid.width))
        if windowed:
            patch.set_progress(ceil(windows[0][0] * _STEPS), _STEPS)
        return patch

    detail = _detail(config, grids, rules)
    return Method(name, detail, apply, None if scene.joint else keys, windowed)


def _detail(config: Options, grids: Mapping[Layer, Grid], rules: Mapping[Layer, Rule]) -> str:
    """What a patch does, for people."""
    factors = dict[int, set[int]]()
    for layer, grid in grids.items():
        if layer.drops(grid):
            factors.setdefault(layer.downsample, set()).add(layer.factor(grid))
    parts = [
        f"factor {_either(found)} at downsampling {at}" for at, found in sorted(factors.items())
    ]
    anchors = {rule.anchors for rule in rules.values() if rule.anchors}
    if anchors:
        parts.append(f"{_either(anchors)} anchors")
    windows = sorted({rule.window for rule in rules.values()} - {(0.0, 1.0)})
    parts += [f"from {start:.0%} to {stop:.0%} of the steps" for start, stop in windows]
    if isinstance(config, TunedPlan):  # a file may change
        text = json.dumps(config.to_dict(), sort_keys=True)
        parts.append(f"plan {hashlib.sha256(text.encode()).hexdigest()[:8]}")
    return ", ".join(parts)


def _either(numbers: Iterable[int]) -> str:
    return " or ".join(map(str, sorted(numbers)))


# By hand


def _by_hand(name: str, scene: Scene) -> Method:
    from .processors import Interpolated, Strided

    if scene.joint:
        raise Useless("written for sequences of image tokens alone")
    factor = scene.factor
    processors = {
        layer: Strided(scene.grid(layer), factor)
        if name == "minimal"
        else Interpolated(scene.grid(layer), factor, name)
        for layer in scene.finest
    }
    detail = f"factor {factor} at downsampling {scene.level}, hand-written"
    keys = {layer: scene.grid(layer).coarse(factor).tokens for layer in scene.finest}
    return Method(name, detail, partial(_with_processors, processors=processors), keys)


@contextlib.contextmanager
def _with_processors(model: Any, processors: dict[str, Any]) -> Iterator[None]:
    attentions = {name: model.get_submodule(name) for name in processors}
    before = {name: attention.processor for name, attention in attentions.items()}
    try:
        for name, attention in attentions.items():
            attention.set_processor(processors[name])
        yield
    finally:
        for name, attention in attentions.items():
            attention.set_processor(before[name])


@contextlib.contextmanager
def without_attention(model: nn.Module, names: list[str]) -> Iterator[None]:
    from .processors import NoAttention

    kept = {name: model.get_submodule(name) for name in names}
    try:
        for name in names:
            _replace(model, name, NoAttention())
        yield
    finally:
        for name, attention in kept.items():
            _replace(model, name, attention)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


# tomesd


def _tomesd(name: str, scene: Scene) -> Method:
    if not type(scene.model).__name__.startswith("UNet2D"):
        raise Useless("tomesd 0.1.3 patches U-Nets only")
    if importlib.util.find_spec("tomesd") is None:
        raise BenchError(
            "tomesd is not installed: pip install 'tokendown[bench]', or leave it out with --method"
        )
    stride = scene.factor if name == "tomesd-equal" else 2
    ratio = 1 - 1 / stride**2 if name == "tomesd-equal" else 0.5
    level = scene.level
    detail = f"ratio {ratio:.4g}, stride {stride}, at downsampling {level} at most"
    return Method(name, detail, partial(merged, ratio=ratio, stride=stride, level=level))
