"""``tokendown summary``: every self-attention layer of a model at a size, before and after."""

from __future__ import annotations

import typer
from rich import box
from rich.table import Table

from ..analyze.page import short_name
from ..models.blueprint import frame_scale, load_skeleton
from ..summary import LayerSummary, Summary
from ..summary import summary as summarise
from . import options as opt
from .output import loading, out, politely, print_json


def summary(
    ctx: typer.Context,
    model: opt.Model = None,
    size: opt.Size = None,
    frames: opt.Frames = None,
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
    as_json: opt.Json = False,
) -> None:
    """List the self-attention layers of a model, keys and FLOPs before and after. No weights."""
    with politely(as_json):
        config = opt.patch_config(ctx.params)
        width, height = opt.parse_size(size)
        name = opt.model_name(model)
        with loading(name):
            denoiser, scale = load_skeleton(name)
            each = None if frames is None else frame_scale(name)
            result = summarise(
                denoiser, config, height=height, width=width, scale=scale,
                frames=frames, frame_scale=each,
            )  # fmt: skip
        if as_json:
            print_json(result.to_dict())
        else:
            _print(result)


def _print(result: Summary) -> None:
    title = f"{result.model}, {result.width} x {result.height} pixels"
    title += "" if result.frames is None else f", {result.frames} frames"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("layer", no_wrap=True)
    for column in ("grid", "factor", "keys", "GFLOP"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for layer in result.layers:
        table.add_row(*_row(layer), style="" if layer.keys_after < layer.keys_before else "dim")
    console = out()
    console.print(table)
    lines = str(result).splitlines()
    for line in lines[2 + len(result.layers) :]:  # the foot of the plain table
        console.print(line, markup=False)


def _row(layer: LayerSummary) -> tuple[str, ...]:
    name = short_name(layer.name)
    if layer.grid is None:
        return name, "", "", "", "", layer.note
    coarser = layer.keys_after < layer.keys_before
    return (
        name,
        f"{layer.grid[0]}x{layer.grid[1]}",
        str(layer.factor) if coarser else "",
        f"{layer.keys_before} -> {layer.keys_after}" if coarser else str(layer.keys_before),
        f"{layer.flops_before / 1e9:,.2f}"
        + (f" -> {layer.flops_after / 1e9:,.2f}" if coarser else ""),
        "" if layer.note.startswith("at most") else layer.note,  # dense, and within the budget
    )
