"""``tokendown analyze``: what the self-attention of a pipeline does, as JSON and as a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import generate as gen
from .. import pictures
from ..analyze import Analysis
from ..analyze import analyze as analyse
from ..analyze.analysis import ANCHORS, FACTORS, QUERIES
from ..analyze.prompts import pick_prompts
from ..analyze.report import report, similarity_map
from . import options as opt
from .output import loading, out, politely, print_json, save_texts, steps_bar

Prompts = Annotated[list[str] | None, typer.Argument(help="What to show. Default: a fixed few.")]
PromptFile = Annotated[
    Path | None,  # and a path in ctx.params, which older typer leaves as text
    typer.Option("--prompts", path_type=Path, help="A file, one prompt a line."),
]
Factors = Annotated[str | None, typer.Option(metavar="N,...", help="Candidate factors.")]
AnchorCounts = Annotated[
    str | None, typer.Option("--anchors", metavar="N,...", help="Candidate numbers of anchors.")
]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer prompts and steps: a first look.")]

QUICK_STEPS = 8
_REQUEST = ("model", "steps", "guidance", "seed", "device", "dtype")


def analyze(
    ctx: typer.Context,
    prompts: Prompts = None,
    prompt_file: PromptFile = None,
    model: opt.Model = None,
    size: opt.Size = None,
    steps: opt.Steps = None,
    guidance: opt.Guidance = None,
    seed: opt.Seed = None,
    factors: Factors = None,
    anchors: AnchorCounts = None,
    queries: Annotated[int, typer.Option(min=1, help="Looked at in every layer.")] = QUERIES,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    out_folder: opt.Folder = Path("out/analysis"),
    quick: Quick = False,
    as_json: opt.Json = False,
) -> None:
    """Look into the self-attention of a dense model: similarity, sinks, entropy, errors."""
    with politely(as_json):
        pictures.check_folder(out_folder)
        words = pick_prompts(prompts, prompt_file, None if prompts or prompt_file else 4)
        words = words[:1] if quick else words
        chosen = (
            opt.parse_numbers(factors, FACTORS, least=2),
            opt.parse_numbers(anchors, ANCHORS, least=0),
        )
        pipe, request = open_for_study(ctx.params, quick)
        with steps_bar(f"{len(words)} dense pictures") as advance:
            analysis = analyse(
                pipe, request, words, factors=chosen[0], anchors=chosen[1], queries=queries,
                progress=advance,
            )  # fmt: skip
        files = save_analysis(out_folder, analysis)
        if as_json:
            print_json({**analysis.to_dict(), "paths": [str(path) for path in files]})
            return
        for path in files:
            out().print(str(path), markup=False, soft_wrap=True)


def open_for_study(given: Mapping[str, Any], quick: bool) -> tuple[Any, gen.Request]:
    """The pipeline of a command and what its pictures have in common.

    Raises:
        As generate.open_pipeline.
    """
    changes = {name: given[name] for name in _REQUEST if given[name] is not None}
    width, height = opt.parse_size(given["size"])
    if quick:
        changes.setdefault("steps", QUICK_STEPS)
    request = gen.Request(width=width, height=height, config=None, **changes)
    with loading(request.model):
        pipe, request = gen.open_pipeline(request)
    return pipe, request


def save_analysis(folder: Path, analysis: Analysis) -> list[Path]:
    """Writes the numbers, the page, and the paper's Figure 4.

    Raises:
        RunError: the folder cannot be written.
    """
    return save_texts(
        folder,
        {
            "analysis.json": json.dumps(analysis.to_dict(), allow_nan=False) + "\n",
            "analysis.html": report(analysis),
            "figure4.svg": similarity_map(analysis) + "\n",
        },
    )
