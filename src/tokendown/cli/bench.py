"""``tokendown bench``: what each method costs, measured side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from .._errors import ConfigError, RunError
from ..bench.cells import FAILED, GROUP, MEASURED, CellFile, read_cells
from ..bench.jobs import Job, preset
from ..bench.machine import busy
from ..bench.plot import check_plot, draw
from ..bench.report import COLUMNS, Group, remarks, seconds_of, seconds_text, summarise, table
from ..bench.run import Deadline, run
from . import options as opt
from .output import end_with, err, hushed, out, politely, print_json, warn

_WHAT, _HOW, _FILES = "What is measured", "How", "Files"
_PLAIN = ("shape", "whole", "rounds", "batch", "steps", "dtype", "device", "backend", "compile",
          "blocks", "warmup")  # fmt: skip
Sizes = Annotated[
    list[str] | None,
    typer.Option("--size", metavar="WIDTHxHEIGHT", help="Pixels; may be repeated.",
                 rich_help_panel=_WHAT),
]  # fmt: skip


def _option(help_: str, panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help_, rich_help_panel=panel, **more)


def bench(
    ctx: typer.Context,
    model: opt.Model = None,
    shape: Annotated[
        str | None,
        _option("Random weights in the shape of sd15, sd21, sdxl, pixart-sigma, flux, sd3, "
                "sd35-medium, qwen-image, z-image, wan-1.3b, wan-14b or hunyuan-video.", _WHAT),
    ] = None,
    size: Sizes = None,
    method: Annotated[
        list[str] | None,
        _option("dense, paper, auto, minimal, nearest, nearest-exact, tomesd-equal, tomesd-half, "
                "bound; may be repeated. Default: all. Also a "
                "patch: factor=2,anchors=0.", _WHAT),
    ] = None,
    factor: Annotated[
        list[str] | None,
        _option("One more method: these factors, with anchors; may be repeated.", _WHAT,
                metavar="N|LEVEL:N,..."),
    ] = None,
    budget: Annotated[
        list[int] | None, _option("One more method: auto with this budget.", _WHAT)
    ] = None,
    plan: opt.Plans = None,
    whole: Annotated[
        bool | None, _option("Whole pictures instead of one step.", _WHAT, "--whole")
    ] = None,
    steps: Annotated[int | None, _option("Of a whole picture.", _WHAT)] = None,
    batch: Annotated[int | None, _option("Of a step; default 1.", _WHAT)] = None,
    blocks: Annotated[
        int | None,
        _option("Build and time so few blocks of a deep shape, calculate the rest.", _WHAT),
    ] = None,
    rounds: Annotated[int | None, _option("Turns of every method; default 3.", _HOW)] = None,
    warmup: Annotated[int | None, _option("Calls before the timed ones.", _HOW)] = None,
    device: Annotated[str | None, _option("cuda, mps, cpu. Default: the first here.", _HOW)] = None,
    dtype: Annotated[
        str | None,
        _option("float32, float16, bfloat16. Default: float32 on cpu, else float16.", _HOW),
    ] = None,
    backend: Annotated[
        str | None,
        _option("Attention kernel: default, flash, cudnn, efficient, math, or best, which takes "
                "the fastest for dense.", _HOW),
    ] = None,
    compile_: Annotated[
        str | None,
        _option("torch.compile the repeated blocks, or the whole denoiser; or a CUDA graph of it.",
                _HOW, "--compile", metavar="blocks|model|graph"),
    ] = None,
    preset_name: Annotated[
        str | None, _option("A whole matrix: gpu or cpu.", _HOW, "--preset", metavar="gpu|cpu")
    ] = None,
    minutes: Annotated[
        float | None,
        _option("Stop in time between two cells; --resume goes on later.", _HOW),
    ] = None,
    out_file: Annotated[
        Path, _option("File for the cells, one JSON line each.", _FILES, "--out")
    ] = Path("out/bench.jsonl"),
    resume: Annotated[
        Path | None,
        _option("Go on with this file; what is in it is not measured again.", _FILES,
                metavar="FILE"),
    ] = None,
    show: Annotated[
        Path | None, _option("Only show what is in this file.", _FILES, metavar="FILE")
    ] = None,
    plot: Annotated[
        Path | None, _option("Also draw bars: .png, .pdf or .svg.", _FILES, metavar="FILE")
    ] = None,
    as_json: opt.Json = False,
) -> None:  # fmt: skip
    """Measure a denoiser step or a picture: dense, patched, peers and the bound, in turns."""
    with politely(as_json):
        if plot is not None:
            check_plot(plot)
        complete, failed = True, []
        if show is not None:
            cells = read_cells(show)
        else:
            jobs, deadline = read_jobs({**ctx.params, "compile": compile_}), Deadline(minutes)
            file = CellFile(resume or out_file, resume=resume is not None)
            before = len(file.cells)
            complete = _measure(jobs, file, deadline, as_json)
            cells = file.cells
            failed = failures(cells[before:])
        groups = summarise(cells)
        if plot is not None:
            draw(groups, plot)
        if as_json:
            found = {"complete": complete, "failed": failed}
            print_json({**found, "groups": [group.to_dict() for group in groups]})
        else:
            for group in groups:
                _print(group)
        if plot is not None and not as_json:
            out().print(str(plot), markup=False, soft_wrap=True)
        if failed:
            reasons = f"failed: {', '.join(failed)}; the reasons are in the table"
            end_with(RunError(reasons), as_json)


def read_jobs(given: Mapping[str, Any]) -> list[Job]:
    """From the options of the command.

    Raises:
        ConfigError: an option is wrong, or does not go with another.
    """
    changes = {name: given[name] for name in _PLAIN if given.get(name) is not None}
    if given.get("model") is not None:
        if given.get("shape") is not None:
            raise ConfigError("expected --model or --shape, got both")
        changes["model"] = given["model"]
    if given.get("size"):
        changes["sizes"] = tuple(_size(text) for text in given["size"])
    more = [f"factor {_plain_factor(text)}" for text in given.get("factor") or ()]
    more += [f"budget {keys}" for keys in given.get("budget") or ()]
    more += [f"plan={path}" for path in given.get("plan") or ()]
    if given.get("method"):
        changes["methods"] = (*given["method"], *more)
    elif more:
        changes["methods"] = (*Job.methods, *more)
    if given.get("preset_name") is None:
        return [Job(**changes)]
    if {"shape", "model", "whole", "compile"} & set(changes):
        raise ConfigError("a preset chooses models and compilation itself; leave those options out")
    return [replace(job, **changes) for job in preset(given["preset_name"])]


def _size(text: str) -> tuple[int, int]:
    width, height = opt.parse_size(text)
    assert width is not None and height is not None, "only no text means no size"  # noqa: PT018
    return width, height


def _plain_factor(text: str) -> str:
    """ "1:4, 2:2" to "1:4,2:2", so that one method has one name."""
    factor = opt.parse_factor(text)
    if isinstance(factor, int):
        return str(factor)
    return ",".join(f"{level}:{each}" for level, each in sorted(factor.items()))


def _measure(jobs: list[Job], file: CellFile, deadline: Deadline, as_json: bool) -> bool:
    """Whether all is done."""
    if jobs[0].device in ("cpu", "auto"):
        for remark in busy():
            warn(remark)
    before = len(file.cells)
    try:
        with hushed():
            complete = run(jobs, file, deadline=deadline, report=lambda cell: _tell(cell, as_json))
    except (KeyboardInterrupt, SystemExit):
        warn(f"{len(file.cells) - before} new lines; go on with --resume {file.path}")
        raise
    rest = "all is measured" if complete else f"not all yet, go on with --resume {file.path}"
    warn(f"{len(file.cells) - before} new lines in {file.path}; {rest}")
    return complete


def _tell(cell: dict[str, Any], as_json: bool) -> None:
    """One line on stderr for every cell."""
    size = f"{cell['target']} {cell['width']}x{cell['height']}"
    outcome = cell["outcome"]
    if outcome == MEASURED:
        outcome = f"round {cell['round'] + 1}: {seconds_text(seconds_of(cell))} s"
    elif cell.get("why"):
        outcome += f": {cell['why']}"
    if not as_json:
        err().print(f"{size}, {cell['method']}: {outcome}", markup=False, soft_wrap=True)


def _print(group: Group) -> None:
    console = out()
    console.print(group.title, markup=False, soft_wrap=True)
    grid = Table(box=box.SIMPLE_HEAD)
    for column in COLUMNS:
        grid.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for row in table(group):
        grid.add_row(*map(escape, row), style=None if row[1] else "dim")
    console.print(grid)
    for remark in remarks(group):
        console.print(f"  {remark}", markup=False, soft_wrap=True)
    console.print()


def failures(cells: list[dict[str, Any]]) -> list[str]:
    """Methods that never came to an end; with ``--resume`` they are tried again.

    A benchmark in which one failed has failed, however much of it is good.
    """

    def place(cell: dict[str, Any]) -> tuple[Any, ...]:
        return (*(cell[name] for name in GROUP), cell["method"], cell["round"])

    done = {place(cell) for cell in cells if cell["outcome"] == MEASURED}
    failed = [c for c in cells if c["outcome"] == FAILED and place(c) not in done]
    return sorted({f"{c['method']} at {c['target']} {c['width']}x{c['height']}" for c in failed})
