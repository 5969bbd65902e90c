"""A way of making a picture, in one word: dense, a patch, or tomesd for comparison.

dense                       no patch
paper  auto                 a preset
factor=2,anchors=0          options of PatchConfig; a preset may come first: auto,anchors=8
factor=1:4+2:2              a factor for each level
plan=FILE                   layer by layer, from tokendown tune
tomesd=0.75,stride=2        the package tomesd, with its ratio; U-Nets only
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, get_args

import torch
from torch import nn

from ._errors import ConfigError, UnsupportedModelError
from .adapters.families import make_plan
from .config import PatchConfig, Preset
from .patch import apply_patch, find_denoisers
from .tuned import Options, TunedPlan


@dataclass(frozen=True)
class Method:
    """One way of making a picture.

    Attributes:
        name: as it was typed, or for people.
        config: of the patch; None without one.
        tomesd: None, or the ratio of tokens that tomesd merges away and its stride.
    """

    name: str  # decides the rest, so that it alone is compared and hashed
    config: Options | None = field(default=None, compare=False)
    tomesd: tuple[float, int] | None = field(default=None, compare=False)

    @contextmanager
    def on(self, pipe: Any, seed: int = 0) -> Iterator[None]:
        """Puts the method to work on a pipeline, and takes it off again.

        Args:
            pipe: a diffusers pipeline.
            seed: of what tomesd draws at random.

        Raises:
            ConfigError: tomesd is not installed.
            UnsupportedModelError: the model is not one for this method.
            NothingPatchedError: no layer matches.
        """
        if self.config is not None:
            with apply_patch(pipe, self.config):
                yield
        elif self.tomesd is not None:
            with _merge(pipe, *self.tomesd, seed):
                yield
        else:
            yield

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "name": self.name,
            "config": None if self.config is None else self.config.to_dict(),
            "tomesd": None
            if self.tomesd is None
            else dict(zip(("ratio", "stride"), self.tomesd, strict=True)),
        }


DENSE = Method("dense")
PLAN = "plan="


def parse_method(text: str) -> Method:
    """Reads a method as it is typed; the head of this file shows the forms.

    Raises:
        ConfigError: it reads otherwise, or an option is unknown or out of range.
        LoadError: a plan cannot be read.
    """
    if text.startswith(PLAN):
        return Method(text, TunedPlan.load(text.removeprefix(PLAN)))
    name = text.replace(" ", "")
    if name == DENSE.name:
        return DENSE
    first, *rest = name.split(",")
    if first.startswith("tomesd"):
        return Method(name, tomesd=_read_tomesd(text, first, rest))
    preset = first in get_args(Preset)
    options = _read_pairs(text, rest if preset else [first, *rest], _READERS)
    if preset:
        options["preset"] = first
    return Method(name, PatchConfig.from_dict(options))


def _read_pairs(
    text: str, parts: list[str], readers: dict[str, Callable[[str], Any]]
) -> dict[str, Any]:
    options = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals or name not in readers:
            raise ConfigError(
                f"expected a method such as dense, paper, auto, factor=2,anchors=0, plan=FILE or "
                f"tomesd=0.75 (options: {', '.join(readers)}), got {text!r}"
                + ("" if part == text else f" with {part!r}")
            )
        try:
            options[name] = readers[name](value)
        except (ValueError, KeyError) as error:
            raise ConfigError(f"cannot read {part!r} of the method {text!r}") from error
    return options


def _read_factor(text: str) -> int | dict[int, int]:
    if ":" not in text:
        return int(text)
    pairs = [pair.split(":") for pair in text.split("+")]
    factors = {int(level): int(factor) for level, factor in pairs}
    if len(factors) < len(pairs):
        raise ValueError("a level twice")
    return factors


def _read_flag(text: str) -> bool:
    return {"0": False, "1": True}[text]


_BY_TYPE: dict[str, Callable[[str], Any]] = {
    "int | None": int,
    "int": int,
    "float": float,
    "bool": _read_flag,
    "Method | None": str,
    "int | Mapping[int, int] | None": _read_factor,
}
# The options of PatchConfig that one word can say, whatever they are in this version.
_READERS = {
    option.name: _BY_TYPE[str(option.type)]
    for option in fields(PatchConfig)
    if str(option.type) in _BY_TYPE
}


# tomesd


def _read_tomesd(text: str, first: str, rest: list[str]) -> tuple[float, int]:
    options = _read_pairs(text, [first, *rest], {"tomesd": float, "stride": int})
    ratio = options["tomesd"]
    if not 0 < ratio < 1:
        raise ConfigError(f"expected a ratio of tomesd between 0 and 1, got {text!r}")
    # One token in stride x stride stays whatever the ratio; the least stride that allows it, where
    # 0.89 means eight of nine.
    least = math.ceil((1 / (1 - ratio)) ** 0.5 - 0.02)
    stride = options.get("stride", max(2, least))
    if stride < least:
        raise ConfigError(
            f"tomesd with stride {stride} merges at most {1 - 1 / max(stride, 1) ** 2:.4g} of the "
            f"tokens; give stride={least} or more, or none"
        )
    return ratio, stride


def _merge(pipe: Any, ratio: float, stride: int, seed: int) -> AbstractContextManager[None]:
    """On the finest level that has self-attention; what a pipeline lacks for it is an error."""
    denoiser = find_denoisers(pipe)[0]
    if getattr(pipe, "unet", None) is None:
        raise UnsupportedModelError(
            f"tomesd works on U-Nets only, and {type(pipe).__name__} has a "
            f"{type(denoiser).__name__}"
        )
    return merged(denoiser, ratio, stride, finest_level(denoiser), seed)


def finest_level(denoiser: nn.Module) -> int:
    """The least downsampling at which it has self-attention."""
    return min(layer.downsample for layer in make_plan(denoiser, None).layers)


@contextmanager
def merged(
    model: nn.Module, ratio: float, stride: int, level: int = 1, seed: int = 0
) -> Iterator[None]:
    """tomesd around the self-attention of a U-Net; the one place that calls the package.

    Args:
        model: the U-Net, with weights or without.
        ratio: part of the tokens that is merged.
        stride: of its destination tokens, per side.
        level: greatest downsampling at which tokens are merged.
        seed: of what it draws at random; torch's own state is put back afterwards.

    Raises:
        ConfigError: tomesd is not installed.
    """
    try:
        import tomesd
    except ImportError as error:
        raise ConfigError("the method tomesd needs: pip install tomesd") from error
    before = {module: set(vars(module)) for module in model.modules()}
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)  # its generator starts from torch's state
        try:
            tomesd.apply_patch(model, ratio=ratio, sx=stride, sy=stride, max_downsample=level)
            yield
        finally:
            tomesd.remove_patch(model)
            for module, names in before.items():  # it leaves its settings behind
                for name in set(vars(module)) - names:
                    delattr(module, name)
