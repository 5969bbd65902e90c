"""``tokendown tune``: a plan for one model and size, with the evidence for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from .. import pictures
from .._errors import ConfigError
from ..analyze.analysis import ANCHORS, FACTORS
from ..analyze.prompts import pick_prompts
from ..bench.machine import hardware, software
from ..models.loading import fingerprint
from ..tune import Target, Tuning
from ..tune import tune as choose_plan
from ..tune.report import better_words, front_rows, pareto_plot, report, to_dict
from . import analyze as study
from . import options as opt
from .output import out, politely, print_json, save_texts, steps_bar, warn

_TARGET = "What to reach (one of these)"


def tune(
    ctx: typer.Context,
    prompts: study.Prompts = None,
    prompt_file: study.PromptFile = None,
    held_out: Annotated[
        int | None, typer.Option(min=1, help="How many of the last prompts only check. Default 2.")
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="paper|auto",
            help="Least error, no dearer than this preset. Default: auto.",
            rich_help_panel=_TARGET,
        ),
    ] = None,
    speedup: Annotated[
        float | None, typer.Option(help="Least error at this speed-up.", rich_help_panel=_TARGET)
    ] = None,
    error: Annotated[
        float | None,
        typer.Option(help="Least time at this error of the picture.", rich_help_panel=_TARGET),
    ] = None,
    model: opt.Model = None,
    size: opt.Size = None,
    steps: opt.Steps = None,
    guidance: opt.Guidance = None,
    seed: opt.Seed = None,
    factors: study.Factors = None,
    anchors: study.AnchorCounts = None,
    parts: Annotated[
        int | None, typer.Option(min=1, help="Parts of the schedule that windows are made of.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time the layers here instead of counting FLOPs.")
    ] = False,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    out_folder: opt.Folder = Path("out/plan"),
    quick: study.Quick = False,
    as_json: opt.Json = False,
) -> None:
    """Choose factor, anchors and steps of every layer from a few prompts; write a plan."""
    with politely(as_json):
        pictures.check_folder(out_folder)
        if error is None and speedup is None and like is None:
            like = "auto"
        target = Target(error, speedup, like)  # type: ignore[arg-type]
        tuning, origin = _tune(ctx.params, target)
        files = _save(out_folder, tuning, origin)
        for note in tuning.notes:
            warn(note)
        if as_json:
            paths = [str(path) for path in files]
            print_json({**to_dict(tuning), **origin, "plan": tuning.plan.to_dict(), "paths": paths})
        else:
            _print(tuning, files)


def _tune(given: Mapping[str, Any], target: Target) -> tuple[Tuning, dict[str, Any]]:
    """The tuning, and the weights and the machine that it comes from."""
    quick, own = given["quick"], given["prompts"] or given["prompt_file"]
    checks = given["held_out"] or (1 if quick else 2)
    default = checks + (1 if quick else 2)
    words = pick_prompts(given["prompts"], given["prompt_file"], None if own else default)
    words = list(dict.fromkeys(words))  # else one could be both chosen on and held out
    if len(words) <= checks:
        raise ConfigError(f"expected more than {checks} different prompts, got {len(words)}")
    candidates = {
        "factors": opt.parse_numbers(given["factors"], FACTORS, least=2),
        "anchors": opt.parse_numbers(given["anchors"], ANCHORS, least=0),
    }
    pipe, request = study.open_for_study(given, quick)
    with steps_bar("pictures") as advance:
        tuning = choose_plan(
            pipe, request, words[:-checks], words[-checks:], target, **candidates,
            parts=given["parts"] or (2 if quick else 4), measure=given["measure"],
            progress=advance,
        )  # fmt: skip
    made_on = hardware(torch.device(request.device))
    return tuning, {"weights": fingerprint(pipe), "hardware": made_on, **software()}


def _save(folder: Path, tuning: Tuning, origin: dict[str, Any]) -> list[Path]:
    plan = json.dumps(tuning.plan.to_dict(), indent=1) + "\n"
    return [
        *save_texts(
            folder,
            {
                "plan.json": plan,
                "tuning.json": json.dumps({**to_dict(tuning), **origin}, allow_nan=False) + "\n",
                "tuning.html": report(tuning),
                "pareto.svg": pareto_plot(tuning) + "\n",
            },
        ),
        *study.save_analysis(folder, tuning.analysis),
    ]


def _print(tuning: Tuning, files: list[Path]) -> None:
    table = Table(title="held-out prompts", title_justify="left", box=box.SIMPLE_HEAD)
    head, *rows = front_rows(tuning)
    for index, column in enumerate(head):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    console = out()
    console.print(table)
    beaten = tuning.plan.made["dominates"]
    if beaten:
        console.print(f"tuned: less error at no more cost than {', '.join(beaten)}", markup=False)
    console.print(better_words(tuning), markup=False, soft_wrap=True)
    for path in files:
        console.print(str(path), markup=False, soft_wrap=True)
