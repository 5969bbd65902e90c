"""A plan for one architecture that says for every self-attention layer what it keeps, and when."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from ._errors import ConfigError, LoadError
from .config import Method, PatchConfig, expect, is_int, is_window
from .files import write_whole

VERSION = 1


@dataclass(frozen=True)
class LayerChoice:
    """What one self-attention layer keeps.

    Args:
        name: dotted path in the denoiser.
        channels: width of its tokens; with the heads, what tells another architecture apart.
        heads: number of heads.
        factor: linear, >= 1; 1 leaves the layer dense.
        anchors: tokens that are kept besides the grid, >= 0.
        start: fraction of the schedule, in [0, 1), from which the layer is coarse.
        stop: fraction of the schedule, in (start, 1], from which it is dense again.
        method: "nearest" keeps the top-left token of each cell, "mean" averages the cell, "jitter"
            keeps another token of it at every step.

    Raises:
        ConfigError: a value is out of its range.
    """

    name: str
    channels: int
    heads: int
    factor: int = 1
    anchors: int = 0
    start: float = 0.0
    stop: float = 1.0
    method: Method = "nearest"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ConfigError(f"a plan: expected the name of a layer, got {self.name!r}")
        for name, least in (("channels", 1), ("heads", 1), ("factor", 1), ("anchors", 0)):
            value = getattr(self, name)
            if not is_int(value, least):
                raise ConfigError(
                    f"a plan, {self.name}: expected {name} of at least {least}, got {value!r}"
                )
        if self.method not in get_args(Method):
            raise ConfigError(
                f"a plan, {self.name}: expected a method of {', '.join(get_args(Method))}, got "
                f"{self.method!r}"
            )
        if not is_window(self.start, self.stop):
            raise ConfigError(
                f"a plan, {self.name}: expected 0 <= start < stop <= 1, got {self.start!r}, "
                f"{self.stop!r}"
            )


@dataclass(frozen=True)
class TunedPlan:
    """Every self-attention layer of one architecture; made by ``tokendown tune``, or by hand.

    Args:
        model: class name of the denoiser.
        layers: all its self-attention layers on an image grid, also those that stay dense.
        sizes: (width, height) in pixels for which it was made; at others it works, unmeasured.
        made: how it was made and what it costs, as JSON types; for people, nothing reads it.

    Raises:
        ConfigError: a layer is named twice, or a value is out of its range.
    """

    model: str
    layers: tuple[LayerChoice, ...]
    sizes: tuple[tuple[int, int], ...] = ()
    made: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"a plan: the layer {twice[0]} is named twice")

    def made_for(self, width: int | None, height: int | None) -> bool:
        """Whether this size in pixels is one that it was made for."""
        return not self.sizes or (width, height) in self.sizes

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "plan": VERSION,
            "model": self.model,
            "sizes": [list(size) for size in self.sizes],
            "layers": [asdict(layer) for layer in self.layers],
            "made": dict(self.made),
        }

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> TunedPlan:
        """The inverse of :meth:`to_dict`, also after a round trip through JSON.

        Raises:
            ConfigError: an entry is missing, unknown, or out of range.
        """
        if settings.get("plan") != VERSION:
            raise ConfigError(f"expected a plan of version {VERSION}, got {settings.get('plan')!r}")
        try:
            layers = tuple(LayerChoice(**layer) for layer in settings["layers"])
            sizes = tuple((int(width), int(height)) for width, height in settings["sizes"])
            return cls(str(settings["model"]), layers, sizes, dict(settings["made"]))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"not a plan of tokendown: {error}") from error

    def save(self, path: str | Path) -> None:
        """Writes it as JSON, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        write_whole({Path(path): json.dumps(self.to_dict(), indent=1) + "\n"})

    @classmethod
    def load(cls, path: str | Path) -> TunedPlan:
        """Reads what :meth:`save` wrote.

        Raises:
            LoadError: no such file, or no JSON object.
            ConfigError: not a plan.
        """
        try:
            settings = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise LoadError(f"{path}: {error.strerror or 'cannot be read'}") from error
        except ValueError as error:
            raise LoadError(f"{path}: not a JSON file") from error
        if not isinstance(settings, dict):
            raise LoadError(f"{path}: not a plan of tokendown")
        return cls.from_dict(settings)


Options = PatchConfig | TunedPlan
"""What a patch does: one rule for all layers, or one a layer."""


def expect_options(config: Any) -> None:
    """Checks what takes the place of options by name.

    Raises:
        ConfigError: neither None nor such an object.
    """
    expect(
        config is None or isinstance(config, Options),
        "a PatchConfig or a TunedPlan (options go by name, such as preset='paper' or factor=2)",
        config,
    )


def options_from_dict(settings: Mapping[str, Any]) -> Options:
    """The inverse of either ``to_dict``.

    Raises:
        ConfigError: neither fits.
    """
    kind = TunedPlan if "plan" in settings else PatchConfig
    return kind.from_dict(settings)
