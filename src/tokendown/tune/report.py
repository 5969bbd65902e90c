"""A tuning as one HTML page: the trade-off, the plan, and what it was chosen from."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from ..analyze import svg
from ..analyze.page import figure, page, section, short_name, table
from .tuning import Tuning


def to_dict(tuning: Tuning) -> dict[str, Any]:
    """All of it but the analysis and the plan, which have files of their own, as JSON types."""
    return {
        "tuning": 1,
        "request": tuning.analysis.request,
        "prompts": list(tuning.analysis.prompts),
        "held_out": tuning.plan.made["held_out"],
        "gains": tuning.gains,
        "part_weights": tuning.weights,  # "weights" of a record are those of the model
        "curve": [list(place) for place in tuning.curve],
        "entries": [entry.to_dict() for entry in tuning.entries],
        "notes": tuning.notes,
    }


def pareto_plot(tuning: Tuning) -> str:
    """Speed-up and error on held-out prompts, and the curve that the model predicts."""
    groups: dict[str, list[tuple[float, float, str]]] = {"presets": [], "tuned": [], "tomesd": []}
    for entry in tuning.entries[1:]:  # dense has no error: it is not on a logarithmic axis
        kind = next((k for k in ("tuned", "tomesd") if entry.name.startswith(k)), "presets")
        if entry.error > 0:
            groups[kind].append((entry.speedup, entry.error, entry.name))
    return svg.points(
        groups,
        label="error of the picture against predicted speed-up",
        names=("predicted speed-up of the denoising (FLOPs)", "error of the picture"),
        curve=[place for place in tuning.curve if place[1] > 0],
    )


def report(tuning: Tuning) -> str:
    """The page."""
    request = tuning.analysis.request
    lead = (
        f"{tuning.analysis.model} of {request['model']}, {request['width']} x {request['height']} "
        f"pixels, {request['steps']} steps"
    )
    sections = [_front(tuning), _plan(tuning), _effects(tuning), _made(tuning)]
    return page("A tuned plan", lead, sections)


def front_rows(tuning: Tuning) -> list[list[str]]:
    """The head and a row a method: what each gains and costs on the held-out prompts."""
    head = ["method", "speed-up", "error", "expected", "PSNR, dB", "SSIM", "seconds"]
    rows = [
        [
            entry.name,
            f"{entry.speedup:.2f}",
            f"{entry.error:.3g}",
            "" if entry.predicted_error is None else f"{entry.predicted_error:.3g}",
            "" if entry.psnr_db is None else f"{entry.psnr_db:.1f}",
            f"{entry.ssim:.3f}",
            f"{entry.seconds:.2f}",
        ]
        for entry in tuning.entries
    ]
    return [head, *rows]


def better_words(tuning: Tuning) -> str:
    """How often it is better, whatever the others cost."""
    made = tuning.plan.made
    wins = ", ".join(f"{name} on {count}" for name, count in made["better_on"].items())
    return f"Of {len(made['held_out'])} held-out prompts it has less error than {wins}"


def _front(tuning: Tuning) -> str:
    head, *rows = front_rows(tuning)
    return section(
        "What is gained and what it costs",
        "Whole pictures of prompts that nothing was chosen on. Error: squared difference of the "
        "final latents from the dense ones of the same seed over their variance; 2 is another "
        "picture altogether. "
        "Speed-up: FLOPs of all steps, predicted. Seconds: measured one after the other. "
        + " ".join(f"Note: {note}." for note in tuning.notes),
        figure(
            pareto_plot(tuning),
            "Right and down is better. The dashed curve is what the additive model expects of the "
            "best plan at each speed-up, on the prompts that it was fitted to.",
        ),
        table(head, rows),
    )


def _plan(tuning: Tuning) -> str:
    grids = {layer.name: layer.grid for layer in tuning.analysis.layers}
    rows = [
        [
            short_name(layer.name),
            "{}x{}".format(*grids[layer.name]),
            "dense" if layer.factor == 1 else str(layer.factor),
            "" if layer.factor == 1 else layer.method,
            "" if layer.factor == 1 else str(layer.anchors),
            "" if layer.factor == 1 else f"{layer.start:.0%} to {layer.stop:.0%}",
        ]
        for layer in tuning.plan.layers
    ]
    return section(
        "The plan",
        "What every layer keeps, and in which part of the schedule.",
        table(["layer", "grid", "factor", "of a cell", "anchors", "steps"], rows),
    )


def _effects(tuning: Tuning) -> str:
    parts = len(tuning.weights)
    names = [f"{index / parts:.0%}" for index in range(parts)]
    effect = {
        short_name(name): [gain * w for gain, w in zip(gains, tuning.weights, strict=True)]
        for name, gains in tuning.gains.items()
    }
    return section(
        "Which layers matter when",
        "Error of the picture for each unit of error in a layer's own output: the gain of the "
        "layer (it alone coarse, in a replayed call) times the weight of the part of the schedule "
        "(all coarse there alone, whole pictures). Errors are taken to add up, a first "
        "approximation.",
        figure(
            svg.heat_map(
                effect, names, label="effect of layers", unit="picture error / layer error",
                log=True, form=".1e",
            ),
            "Columns: where the part of the schedule begins.",
        ),
    )  # fmt: skip


def _made(tuning: Tuning) -> str:
    made = tuning.plan.made
    gain = fmean(layer.factor > 1 for layer in tuning.plan.layers)
    return section(
        "How it was made",
        f"Chosen on: {'; '.join(made['prompts'])}. Checked on: {'; '.join(made['held_out'])}. "
        f"Target: {made['target']}; costs in {made['cost']}. {gain:.0%} of the layers are coarse. "
        f"On the held-out prompts it has less error at no more cost than: "
        f"{', '.join(made['dominates']) or 'none of the others'}. {better_words(tuning)}.",
    )
