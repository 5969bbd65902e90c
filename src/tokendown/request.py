"""Everything that decides the pixels of a picture or film, in one object that its file carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from typing import Any

from ._errors import ConfigError, LoadError
from .config import PatchConfig
from .models import builtin
from .tuned import Options, options_from_dict


@dataclass(frozen=True)
class Request:
    """Everything that decides the pixels of one picture.

    Args:
        prompt: what to show.
        negative_prompt: what not to show; empty means none.
        model: "built-in", a Hub id, a diffusers folder, or a .safetensors file.
        base: where the configuration of a .safetensors file is, see ``load_pipeline``.
        lora: a .safetensors file or a Hub id, or None.
        width: pixels; None means the model's native size.
        height: likewise.
        steps: >= 1; None means the pipeline's default.
        guidance: classifier-free guidance; None means the pipeline's default.
        seed: of the first noise, which is drawn on the CPU whatever the device.
        config: of the patch; None is dense.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        dtype: "auto", "float32", "float16", "bfloat16".
        image: file of a picture that the pipeline starts from, or None.
        image_sha256: of that file; None means that it is not known yet.
        mask: file of a picture that is white where ``image`` may change, or None.
        mask_sha256: likewise.
        frames: of a film, >= 1; None means the pipeline's default, or a still picture.
        fps: frames a second, > 0; None likewise.
        parameters: further arguments of the pipeline's call by name, such as ``strength``.

    Raises:
        ConfigError: a value is out of its range.
    """

    prompt: str = ""
    negative_prompt: str = ""
    model: str = builtin.NAME
    base: str | None = None
    lora: str | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    config: Options | None = field(default_factory=PatchConfig)
    device: str = "auto"
    dtype: str = "auto"
    image: str | None = None
    image_sha256: str | None = None
    mask: str | None = None
    mask_sha256: str | None = None
    frames: int | None = None
    fps: float | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"expected at least 1 step, got {self.steps}")
        if self.guidance is not None and not isfinite(self.guidance):
            raise ConfigError(f"expected a finite guidance, got {self.guidance}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"expected a seed from 0 to 2^63 - 1, got {self.seed}")
        if (self.width is None) != (self.height is None):
            raise ConfigError("expected width and height together")
        if self.frames is not None and self.frames < 1:
            raise ConfigError(f"expected at least 1 frame, got {self.frames}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ConfigError(f"expected more than 0 and at most 1000 frames a second: {self.fps}")
        if self.mask is not None and self.image is None:
            raise ConfigError("a mask says what may change of an image: give --image, too")

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {**asdict(self), "config": None if self.config is None else self.config.to_dict()}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Request:
        """The inverse of :meth:`to_dict`, also after JSON; further entries are ignored.

        Raises:
            LoadError: an entry is missing or has the wrong type.
            ConfigError: the patch options are wrong.
        """
        kinds = {
            **dict.fromkeys(("width", "height", "steps", "seed", "frames"), int),
            **dict.fromkeys(("guidance", "fps"), (int, float)),
            **dict.fromkeys(("config", "parameters"), dict),
        }
        needed = {"prompt", "negative_prompt", "model", "seed", "device", "dtype"}
        given: dict[str, Any] = {}
        for name in (entry.name for entry in fields(cls)):
            value = settings.get(name)
            kind: Any = kinds.get(name, str)
            if not isinstance(value, kind) and not (value is None and name not in needed):
                raise LoadError(f"the settings have no usable {name}: {value!r}")
            given[name] = value
        if given["config"] is not None:
            given["config"] = options_from_dict(given["config"])
        given["parameters"] = given["parameters"] or {}  # files of version 0.1.0 have none
        return cls(**given)
