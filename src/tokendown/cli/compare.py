"""``tokendown compare``: a contact sheet of prompts and methods, and every number as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from .. import generate as gen
from .. import pictures, quality, sheets
from .._errors import ConfigError, TokendownError
from ..analyze.prompts import read_prompts
from ..methods import DENSE, Method, parse_method
from ..summary import Summary
from . import options as opt
from .output import end_with, loading, out, politely, print_json, steps_bar, warn

_DEFAULT = ("paper", "auto")
_PLAIN = ("negative_prompt", "model", "base", "lora", "steps", "guidance", "frames", "device",
          "dtype")  # fmt: skip


Prompts = Annotated[list[str] | None, typer.Argument(help="What to show; several.")]
PromptFile = Annotated[
    Path | None, typer.Option("--prompts", metavar="FILE", help="One prompt a line.")
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method", metavar="METHOD",
        help="paper, auto, factor=2,anchors=0, factor=1:4+2:2, auto,budget=4096, "
        "factor=2,method=mean, plan=FILE, tomesd=0.75, ... Several. Default: paper and auto.",
    ),
]  # fmt: skip
Base = Annotated[str | None, typer.Option(help="Configuration of a .safetensors MODEL.")]
Lora = Annotated[str | None, typer.Option(help=".safetensors file or Hub id.")]
Frames = Annotated[
    int | None,
    typer.Option(min=1, help="Of a film, measured whole; its first frame is shown."),
]
Seed = Annotated[int, typer.Option(help="The first seed of each prompt.")]
Count = Annotated[int, typer.Option(min=1, help="Seeds a prompt.")]
Weights = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="LPIPS weights; scripts/fetch_metrics.py makes them."),
]
Limit = Annotated[
    int, typer.Option("--cell", min=64, help="Most pixels of a picture's side on the sheet.")
]
Keep = Annotated[bool, typer.Option("--keep", help="Save every picture as well.")]


def compare(
    ctx: typer.Context,
    prompts: Prompts = None,
    prompt_file: PromptFile = None,
    method: Methods = None,
    plan: opt.Plans = None,
    negative_prompt: opt.NegativePrompt = None,
    model: opt.Model = None,
    base: Base = None,
    lora: Lora = None,
    size: opt.Size = None,
    steps: opt.Steps = None,
    guidance: opt.Guidance = None,
    frames: Frames = None,
    seed: Seed = 0,
    count: Count = 1,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    lpips: Weights = None,
    limit: Limit = 384,
    keep: Keep = False,
    out_folder: opt.Folder = Path("out"),
    as_json: opt.Json = False,
) -> None:
    """Compare methods on prompts from the same seeds: a contact sheet, and numbers as JSON."""
    with politely(as_json):
        pictures.check_folder(out_folder)
        names = [*(method or ()), *map("plan={}".format, plan or ())]
        methods = [parse_method(text) for text in names or _DEFAULT]
        requests = read_requests(ctx.params, read_prompts(prompts, prompt_file))
        weights = None if lpips is None else quality.load_lpips(lpips)
        drawn = _draw(requests, methods, weights)
        files = _save(drawn, out_folder, limit, keep)
        if as_json:
            print_json({**drawn.record, "paths": [str(path) for path in files]})
        else:
            _print(drawn.record, files)
        if drawn.stopped is not None:
            end_with(drawn.stopped, as_json)


@dataclass(frozen=True)
class _Drawn:
    """What was made.

    Attributes:
        pipe: that made it.
        rows: at least one.
        record: of them.
        stopped: what came before the last row; None if nothing did.
    """

    pipe: Any
    rows: list[sheets.Row]
    record: dict[str, Any]
    stopped: BaseException | None


def _draw(
    requests: list[gen.Request], methods: list[Method], lpips: quality.Lpips | None
) -> _Drawn:
    """All rows, or those that were finished when something came between."""
    with loading(requests[0].model):
        pipe, filled = gen.open_pipeline(requests[0])
        plans = sheets.plan(pipe, filled, methods)
    requests = [replace(filled, prompt=one.prompt, seed=one.seed) for one in requests]
    notes = remarks(filled, plans)
    for note in notes:
        warn(note)
    with steps_bar(f"{len(requests) * len(plans)} pictures") as advance:
        made = sheets.make_rows(pipe, requests, list(plans), lpips=lpips, progress=advance)
        rows, stopped = _finished(made)
    if stopped is not None:
        notes.append(f"stopped after {len(rows)} of {len(requests)} rows, which are saved")
        warn(notes[-1])
    notes += [p.note for row in rows for p in row.pictures.values() if p.note]
    return _Drawn(pipe, rows, sheets.record(pipe, plans, rows, notes), stopped)


def _finished(made: Iterable[sheets.Row]) -> tuple[list[sheets.Row], BaseException | None]:
    """What was made before an interruption or an error, and that, if there is anything."""
    rows: list[sheets.Row] = []
    try:
        rows.extend(made)
    except (KeyboardInterrupt, SystemExit, TokendownError) as error:
        if not rows:
            raise
        return rows, error
    return rows, None


def read_requests(given: Mapping[str, Any], prompts: Sequence[str]) -> list[gen.Request]:
    """One for each prompt and seed.

    Raises:
        ConfigError: there is no prompt, or an option is wrong.
    """
    if not prompts:
        raise ConfigError('expected a prompt, such as: tokendown compare "a red heart" "a dog"')
    options = {name: given[name] for name in _PLAIN if given[name] is not None}
    width, height = opt.parse_size(given["size"])
    return [
        gen.Request(prompt, width=width, height=height, seed=seed, config=None, **options)
        for prompt in prompts
        for seed in range(given["seed"], given["seed"] + given["count"])
    ]


def remarks(request: gen.Request, plans: Mapping[Method, Summary | None]) -> list[str]:
    """What the user should know before waiting."""
    notes = []
    for method, plan in plans.items():
        if method.config is None or plan is None:
            continue
        if not plan.changes_anything:
            notes.append(
                f"{method.name} changes nothing at {request.width}x{request.height}: "
                "its pictures are the dense ones"
            )
        elif plan.speedup_over(request.steps or 1) == 1:
            notes.append(
                f"{method.name} is active at none of the {request.steps} steps: its pictures are "
                "the dense ones"
            )
    return notes


def _save(drawn: _Drawn, folder: Path, limit: int, keep: bool) -> list[Path]:
    """The sheet, the record, and with ``keep`` every picture: all of them or none."""
    pipe, rows, record = drawn.pipe, drawn.rows, drawn.record
    first = rows[0].request
    foot = [
        f"{first.width} x {first.height}, steps: {first.steps}, guidance: {first.guidance}, "
        f"{first.dtype} on {first.device}; distances are to the dense picture",
        *record["notes"],
    ]
    settings = {key: record[key] for key in ("kind", "weights", "versions")}
    parts = {"-sheet": (sheets.contact_sheet(rows, foot, limit), settings)}
    if keep:
        for number, row in enumerate(rows):
            for index, (method, picture) in enumerate(row.pictures.items()):
                name = pictures.stem_for(method.name, row.request.seed)  # may be cut short
                suffix = f"-{number}-{index}-{name}"
                described = {**gen.describe(pipe, picture), "method": method.to_dict()}
                parts[suffix] = (picture.image, described)
    return pictures.save(folder, "compare", parts, record)


_COLUMNS = {
    "mse": ("MSE", "{:.1e}"),
    "psnr_db": ("PSNR, dB", "{:.1f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "ms_ssim": ("MS-SSIM", "{:.3f}"),
    "lpips": ("LPIPS", "{:.3f}"),
    "hpf": ("HPF", "{:.4f}"),
}


def _print(record: dict[str, Any], files: list[Path]) -> None:
    count = len(record["rows"])
    title = f"{count} picture{'s' * (count > 1)} a method; means, against dense"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    known = [c for c in _COLUMNS if any(m["means"][c] is not None for m in record["methods"])]
    table.add_column("method", no_wrap=True)
    for column in known:
        table.add_column(_COLUMNS[column][0], justify="right", no_wrap=True)
    table.add_column("predicted speed-up", justify="right")
    for entry in record["methods"]:
        speedup = entry["predicted_speedup"]
        table.add_row(
            escape(entry["name"]),
            *(_number(entry, column) for column in known),
            "" if speedup is None else f"{speedup:.2f}",
        )
    console = out()
    console.print(table)
    for path in files:
        console.print(str(path), markup=False, soft_wrap=True)


def _number(entry: dict[str, Any], column: str) -> str:
    value = entry["means"][column]
    if value is None or (entry["name"] == DENSE.name and column != "hpf"):
        return ""
    return _COLUMNS[column][1].format(value)
