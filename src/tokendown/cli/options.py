"""Options that more than one sub-command has, and how their texts are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .._errors import ConfigError
from ..config import PatchConfig
from ..models import builtin
from ..tuned import Options, TunedPlan

_PATCH = "What to keep"
FILM = "Films"

Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="MODEL",
        help="Hub id, diffusers folder, or .safetensors file. Default: the built-in model.",
    ),
]  # fmt: skip
Size = Annotated[
    str | None,
    typer.Option(metavar="WIDTHxHEIGHT", help="Pixels. Default: the model's native size."),
]
Frames = Annotated[
    int | None, typer.Option(help="Of a film. Default: the pipeline's own.", rich_help_panel=FILM)
]
Steps = Annotated[int | None, typer.Option(help="Default: the pipeline's own.")]
Guidance = Annotated[float | None, typer.Option(help="Default: the pipeline's own.")]
Seed = Annotated[int | None, typer.Option(help="Picture i has seed + i. Default 0.")]
NegativePrompt = Annotated[
    str | None, typer.Option("--negative-prompt", "-n", help="What not to show.")
]
Device = Annotated[str | None, typer.Option(help="Default: the first that works.")]
Dtype = Annotated[str | None, typer.Option(help="Default: float32 on cpu, else float16.")]
Folder = Annotated[Path, typer.Option("--out", help="Folder for the files.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
Preset = Annotated[
    str | None,
    typer.Option(metavar="auto|paper", help="Which layers, how coarse.", rich_help_panel=_PATCH),
]
Factor = Annotated[
    str | None,
    typer.Option(
        metavar="N|LEVEL:N,...",
        help="Linear factor: 2 keeps 1/4 of the keys of the finest layers; 1:4,2:2 by level.",
        rich_help_panel=_PATCH,
    ),
]
Budget = Annotated[
    int | None,
    typer.Option(
        help="Most grid keys a layer keeps. Default: the preset's.", rich_help_panel=_PATCH
    ),
]
Anchors = Annotated[
    int | None,
    typer.Option(help="Keys besides the grid. Default 32; 0 in paper.", rich_help_panel=_PATCH),
]
Method = Annotated[
    str | None,
    typer.Option(
        metavar="nearest|mean|jitter",
        help="The first token of a cell, its mean, or another token at every step.",
        rich_help_panel=_PATCH,
    ),
]
Start = Annotated[
    float | None,
    typer.Option(help="Part of the schedule where the patch begins.", rich_help_panel=_PATCH),
]
Stop = Annotated[
    float | None,
    typer.Option(help="Part of the schedule where it ends.", rich_help_panel=_PATCH),
]
Multiplicity = Annotated[
    bool | None,
    typer.Option(
        " /--no-multiplicity", help="A kept key counts once; for ablations.",
        rich_help_panel=_PATCH,
    ),
]  # fmt: skip
References = Annotated[
    int | None,
    typer.Option(help="Factor of reference pictures. Default 1, all.", rich_help_panel=_PATCH),
]
TemporalFactor = Annotated[
    int | None,
    typer.Option(help="Keys of one of so many frames. Default 1.", rich_help_panel=_PATCH),
]
Plan = Annotated[
    Path | None,
    typer.Option(
        "--plan", metavar="FILE", help="Layer by layer, from tokendown tune.",
        rich_help_panel=_PATCH,
    ),
]  # fmt: skip
Plans = Annotated[
    list[Path] | None,
    typer.Option(
        "--plan", metavar="FILE", help="One more method: a plan from tokendown tune. Several."
    ),
]
Dense = Annotated[bool, typer.Option("--dense", help="No patch.", rich_help_panel=_PATCH)]

PATCH_OPTIONS = (
    "preset", "factor", "budget", "anchors", "method", "start", "stop", "multiplicity",
    "references", "temporal_factor",
)  # fmt: skip


MOST_PIXELS = 65536  # a side; more overflows what torch can count


def parse_size(text: str | None) -> tuple[int | None, int | None]:
    """``"1024x768"`` to (width, height); ``"512"`` is square.

    Raises:
        ConfigError: it reads otherwise.
    """
    if text is None:
        return None, None
    match = re.fullmatch(r"(\d{1,6})(?:[xX×](\d{1,6}))?", text.strip())  # noqa: RUF001, people paste it
    if match is None:
        raise ConfigError(f"expected a size such as 1024x768 (width x height), got {text!r}")
    width = int(match[1])
    height = int(match[2] or width)
    if not (0 < width <= MOST_PIXELS and 0 < height <= MOST_PIXELS):
        raise ConfigError(f"expected sides of 1 to {MOST_PIXELS} pixels, got {text!r}")
    return width, height


def parse_factor(text: str) -> int | dict[int, int]:
    """``"2"`` to 2, ``"1:4,2:2"`` to {1: 4, 2: 2}.

    Raises:
        ConfigError: it reads otherwise.
    """
    if re.fullmatch(r"\s*\d+\s*", text):
        return int(text)
    pairs = [re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", part) for part in text.split(",")]
    if None in pairs:
        raise ConfigError(f"expected a factor such as 2 or 1:4,2:2 (level:factor), got {text!r}")
    factors = {int(pair[1]): int(pair[2]) for pair in pairs if pair}
    if len(factors) < len(pairs):
        raise ConfigError(f"expected every level once, got {text!r}")
    return factors


def parse_numbers(text: str | None, default: tuple[int, ...], least: int) -> tuple[int, ...]:
    """``"2,4"`` to (2, 4).

    Raises:
        ConfigError: it reads otherwise, or a number is smaller than ``least``.
    """
    if text is None:
        return default
    if not re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*", text):
        raise ConfigError(f"expected numbers such as 2,4, got {text!r}")
    numbers = tuple(int(part) for part in text.split(","))
    if min(numbers) < least:
        raise ConfigError(f"expected numbers of at least {least}, got {text!r}")
    return numbers


def patch_given(given: Mapping[str, Any]) -> bool:
    """Whether a command was told anything about the patch."""
    names = ("plan", *PATCH_OPTIONS)
    return bool(given.get("dense")) or any(given.get(name) is not None for name in names)


def patch_config(given: Mapping[str, Any]) -> Options | None:
    """From the options of a command; None is dense.

    Raises:
        ConfigError: a value is wrong, or options of a patch stand beside ``--dense`` or ``--plan``.
        LoadError: the plan cannot be read.
    """
    options = {name: given[name] for name in PATCH_OPTIONS if given.get(name) is not None}
    plan = given.get("plan")
    if given.get("dense"):
        unused = next(iter(options), "plan" if plan is not None else None)
        if unused is not None:
            raise ConfigError(f"--dense asks for no patch, so {_flag(unused)} has no use")
        return None
    if plan is not None:
        if options:
            raise ConfigError(f"--plan says it all, so {_flag(next(iter(options)))} has no use")
        return TunedPlan.load(plan)
    if "factor" in options:
        options["factor"] = parse_factor(options["factor"])
    return PatchConfig.from_dict(options)


def _flag(name: str) -> str:
    """An option of a patch as it is typed."""
    return "--no-multiplicity" if name == "multiplicity" else f"--{name.replace('_', '-')}"


def model_name(given: str | None) -> str:
    """The model, or the built-in one."""
    return given or builtin.NAME
