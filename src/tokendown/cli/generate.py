"""``tokendown generate``: pictures and films from a prompt, patched, dense, or both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from .. import generate as gen
from .. import pictures, videos
from .._errors import ConfigError
from ..bench.machine import busy
from ..models.loading import fingerprint
from ..models.sources import versions
from ..tuned import TunedPlan
from . import options as opt
from .comparison import keys_text, print_comparison, save_comparison
from .output import loading, out, politely, print_json, steps_bar, warn

_PLAIN = ("negative_prompt", "model", "base", "lora", "steps", "guidance", "seed", "device",
          "dtype", "frames", "fps")  # fmt: skip
_START = "What else goes in"

Fps = Annotated[
    float | None,
    typer.Option(help="Frames a second. Default: the model's own.", rich_help_panel=opt.FILM),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format", metavar="png|mp4", rich_help_panel=opt.FILM,
        help="Animated PNG loses nothing; mp4 needs an extra. Default png.",
    ),
]  # fmt: skip
Original = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Picture to start from.", rich_help_panel=_START),
]
Mask = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="White where the picture may change.", rich_help_panel=_START
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", rich_help_panel=_START,
        help="Any other argument of the pipeline's call: --set strength=0.5. Can be repeated.",
    ),
]  # fmt: skip


def generate(
    ctx: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="What to show.")] = None,
    negative_prompt: opt.NegativePrompt = None,
    model: opt.Model = None,
    base: Annotated[
        str | None,
        typer.Option(help="Folder or Hub id with the configuration of a .safetensors MODEL."),
    ] = None,
    lora: Annotated[
        str | None, typer.Option(metavar="LORA", help=".safetensors file or Hub id.")
    ] = None,
    size: opt.Size = None,
    steps: opt.Steps = None,
    guidance: opt.Guidance = None,
    seed: opt.Seed = None,
    count: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 1,
    image: Original = None,
    mask: Mask = None,
    parameters: Set = None,
    frames: opt.Frames = None,
    fps: Fps = None,
    film_format: Format = None,
    preset: opt.Preset = None,
    factor: opt.Factor = None,
    budget: opt.Budget = None,
    anchors: opt.Anchors = None,
    method: opt.Method = None,
    start: opt.Start = None,
    stop: opt.Stop = None,
    multiplicity: opt.Multiplicity = None,
    references: opt.References = None,
    temporal_factor: opt.TemporalFactor = None,
    plan: opt.Plan = None,
    dense: opt.Dense = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps. Default: the first that works.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, float16, bfloat16. Default: float32 on cpu, else float16."),
    ] = None,
    out_folder: opt.Folder = Path("out"),
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Repeat a picture; other options change it."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Dense and patched from one seed, side by side.")
    ] = False,
    as_json: opt.Json = False,
) -> None:
    """Make pictures and films with a patched model; every file carries its settings."""
    with politely(as_json):
        _generate(ctx.params, out_folder, source, compare, count, as_json)


def _generate(
    given: Mapping[str, Any],
    folder: Path,
    source: Path | None,
    compare: bool,
    count: int,
    as_json: bool,
) -> None:
    pictures.check_folder(folder)
    kind = given["film_format"] or (source.suffix.lower()[1:] if source else "png")
    videos.check_format(kind)
    recorded = None if source is None else pictures.read_settings(source)
    request = read_request(given, recorded)
    compare = compare or (recorded or {}).get("kind") == "comparison"
    if compare and request.config is None:  # said before the model is loaded
        raise ConfigError("nothing to compare: --dense asks for no patch")
    with loading(request.model):
        pipe, request = gen.open_pipeline(request)
        plan = gen.predict(pipe, request)
        notes = remarks(pipe, request, recorded, plan)
        if compare and request.device == "cpu":
            notes += busy()
    for note in notes:
        warn(note)
    if request.frames is None:
        if given["film_format"] not in (None, "png"):
            raise ConfigError(f"{type(pipe).__name__} makes still pictures, and those as png")
        kind = "png"
    job = _Job(pipe, request, folder, as_json, notes, kind)
    for index in range(count):
        one = replace(request, seed=request.seed + index)
        label = f"picture {index + 1} of {count}" if count > 1 else "picture"
        (job.compare if compare else job.make)(one, label, plan)
    job.report()


def read_request(given: Mapping[str, Any], recorded: Mapping[str, Any] | None) -> gen.Request:
    """The recorded request or the default one, changed by the options that were given.

    Raises:
        ConfigError: an option is wrong, or there is no prompt.
        LoadError: the recorded settings are damaged.
    """
    anything = given["prompt"] or given["image"] or given["parameters"]
    if recorded is None and not anything:
        raise ConfigError('expected a prompt, such as: tokendown generate "a red heart"')
    request = gen.Request() if recorded is None else gen.Request.from_dict(recorded)
    changes = {name: given[name] for name in _PLAIN if given[name] is not None}
    if given["prompt"]:
        changes["prompt"] = given["prompt"]
    for name in ("image", "mask"):
        if given[name] is not None:  # another file is a change like any other
            changes |= {name: given[name], f"{name}_sha256": None}
    if given["parameters"]:
        changes["parameters"] = {
            **request.parameters, **parse_parameters(given["parameters"])
        }  # fmt: skip
    if given["size"] is not None:
        changes["width"], changes["height"] = opt.parse_size(given["size"])
    if opt.patch_given(given):  # these replace recorded ones together: a factor excludes a budget
        changes["config"] = opt.patch_config(given)
    return replace(request, **changes)


def parse_parameters(texts: list[str] | None) -> dict[str, Any]:
    """``["strength=0.5", "prompt_2=a cat"]`` to {"strength": 0.5, "prompt_2": "a cat"}.

    Raises:
        ConfigError: it reads otherwise, or a value is an object.
    """
    parameters: dict[str, Any] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ConfigError(f"expected --set NAME=VALUE, such as strength=0.5, got {text!r}")
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value  # a word or more
        if isinstance(parsed, float) and not isfinite(parsed):
            raise ConfigError(f"--set {name}: expected a finite number, got {value}")
        if parsed is None or isinstance(parsed, dict):
            raise ConfigError(f"--set {name}: expected a number, text, true, false or a list")
        parameters[name.strip()] = parsed
    return parameters


def remarks(pipe: Any, request: gen.Request, recorded: Any, plan: Any) -> list[str]:
    """What the user should know before waiting."""
    notes = []
    if plan is not None and not plan.changes_anything:
        notes.append(
            f"the patch changes nothing at {request.width}x{request.height}; try a larger --size, "
            "a smaller --budget, or --factor 2"
        )
    elif plan is not None and plan.speedup_over(request.steps or 1) == 1:
        notes.append(f"the patch is active at none of the {request.steps} steps")
    tuned = request.config if isinstance(request.config, TunedPlan) else None
    if plan is not None and tuned and not tuned.made_for(request.width, request.height):
        notes.append("the plan was not made for this size: its error was not measured here")
    notes += gen.hints(pipe, request)
    if recorded is None:
        return notes
    here = versions()
    there = recorded.get("versions")
    for package, version in (there if isinstance(there, dict) else {}).items():
        if package in here and here[package] != version:
            notes.append(f"made with {package} {version}, here {here[package]}: pixels may differ")
    if recorded.get("weights") != fingerprint(pipe):
        notes.append("made with other weights of this model, or another LoRA: pixels will differ")
    for name in ("image", "mask"):
        if recorded.get(f"{name}_sha256") != getattr(request, f"{name}_sha256"):
            notes.append(f"made with another {name}: pixels will differ")
    threads = torch.get_num_threads()
    if request.device == "cpu" and recorded.get("threads") != threads:
        notes.append(
            f"made with {recorded.get('threads')} threads, here {threads}: last bits may differ"
        )
    return notes


class _Job:
    """Makes, saves and reports the pictures of one command, and keeps what JSON will say."""

    def __init__(
        self, pipe: Any, request: gen.Request, folder: Path, as_json: bool, notes: list[str],
        kind: str = "png",
    ) -> None:  # fmt: skip
        self.pipe = pipe
        self.folder = folder
        self.as_json = as_json
        self.record: dict[str, Any] = {"request": request.to_dict(), "notes": notes, "images": []}
        self.film: dict[str, Any] = {"fps": request.fps, "kind": kind}

    def make(self, request: gen.Request, label: str, plan: Any) -> None:
        with steps_bar(label) as advance:
            picture = gen.make_picture(self.pipe, request, advance)
        stem = pictures.stem_for(request.prompt, request.seed)
        settings = gen.describe(self.pipe, picture)
        parts = {"": (picture.frames, settings)}
        [path] = pictures.save(self.folder, stem, parts, **self.film)
        self.note(picture)
        entry = {
            "path": str(path),
            "seed": request.seed,
            "seconds": round(picture.seconds, 3),
            "denoising_seconds": round(picture.denoising_seconds, 3),
            "predicted_speedup": None if plan is None else round(gen.speedup_of(plan, picture), 3),
        }
        self.record["images"].append(entry)
        if not self.as_json:
            keys = "" if plan is None else keys_text(plan)
            said = "; ".join([f"{picture.seconds:.1f} s", *([keys] if keys else [])])
            out().print(f"{path} ({said})", markup=False, soft_wrap=True)

    def compare(self, request: gen.Request, label: str, plan: Any) -> None:
        with steps_bar(f"{label}, dense and patched") as advance:
            result = gen.compare(self.pipe, request, advance, plan)
        numbers, files = save_comparison(self.pipe, self.folder, result, self.film)
        self.note(result.patched)
        names = dict(zip(("dense", "patched", "side_by_side"), map(str, files), strict=True))
        self.record["images"].append({**numbers, "paths": names})
        if not self.as_json:
            print_comparison(result, numbers)
            for path in files:
                out().print(str(path), markup=False, soft_wrap=True)

    def note(self, picture: gen.Picture) -> None:
        if picture.note:
            warn(picture.note)
            self.record["notes"].append(picture.note)

    def report(self) -> None:
        if self.as_json:
            print_json(self.record)
