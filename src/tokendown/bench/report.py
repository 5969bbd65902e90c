"""From cells to rows: medians, spreads and speed-ups, for tables, JSON and plots."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from .cells import FAILED, GROUP, MEASURED, dense_of, turn
from .methods import DENSE
from .shapes import SHAPES

Cell = dict[str, Any]
Dense = dict[tuple[str | None, int], Cell]  # by run and round


@dataclass(frozen=True)
class Row:
    """One method in a group.

    Attributes:
        method: its name.
        detail: what it did at this size.
        seconds: median over rounds; None if nothing was measured. Of the whole model where only a
            few blocks were timed.
        seconds_range: least and most.
        speedup: dense over this, the median of the ratios within a round of one run.
        speedup_range: least and most.
        predicted: dense over this, FLOPs of one denoiser call.
        peak_gib: largest of all rounds; None where it is not told, as for CUDA graphs.
        rounds: measured.
        why: it has no numbers, or empty.
    """

    method: str
    detail: str
    seconds: float | None
    seconds_range: tuple[float, float] | None
    speedup: float | None
    speedup_range: tuple[float, float] | None
    predicted: float | None
    peak_gib: float | None
    rounds: int
    why: str = ""


@dataclass(frozen=True)
class Group:
    """The methods of one model at one size.

    Attributes:
        key: see ``cells.GROUP``.
        rows: dense first, then as they came.
        attention: the backend that was used and the kernel of dense attention, for people.
        notes: what a reader should know.
        software: versions and commits, JSON-ready.
    """

    key: dict[str, Any]
    rows: list[Row]
    attention: str
    notes: list[str]
    software: list[dict[str, Any]]

    @property
    def title(self) -> str:
        """What, where, how, in one line."""
        key = self.key
        what = f"one step, batch {key['batch']}"
        if key["what"] == "picture":
            what = "a picture" + (f" in {key['steps']} steps" if key["steps"] else "")
        parts = [
            f"{key['target']}, {key['width']} x {key['height']}, {what}",
            f"{key['dtype']} on {key['hardware']}",
            f"attention {self.attention}",
        ]
        if key["threads"]:
            parts[1] += f", {key['threads']} threads"
        if key["compile"] != "no":
            graph = key["compile"] == "graph"
            parts.append("a CUDA graph" if graph else f"compiled ({key['compile']})")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON types."""
        return {**asdict(self), "title": self.title}


def summarise(cells: Iterable[Cell]) -> list[Group]:
    """Groups of comparable cells, in the order in which they first appear."""
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(tuple(cell[name] for name in GROUP), []).append(cell)
    return [_group(members) for members in groups.values()]


def _group(cells: list[Cell]) -> Group:
    every = [cell for cell in cells if cell["method"] == DENSE]
    dense = dense_of(cells)
    flops = next((cell["flops"] for cell in every if cell["flops"]), None)  # also without memory
    names = dict.fromkeys([DENSE, *(cell["method"] for cell in cells)])
    by_method = {name: [cell for cell in cells if cell["method"] == name] for name in names}
    software = []
    for cell in cells:
        entry = {"versions": cell.get("versions", {}), "commit": cell.get("commit")}
        if entry not in software:
            software.append(entry)
    return Group(
        key={name: cells[0][name] for name in GROUP},
        rows=[_row(members, dense, flops) for members in by_method.values() if members],
        attention=_attention(cells),
        notes=_notes(cells, dense, software),
        software=software,
    )


def _row(cells: list[Cell], dense: Dense, flops: int | None) -> Row:
    done = [cell for cell in cells if cell["outcome"] == MEASURED]
    last = cells[-1]
    seconds = [seconds_of(cell) for cell in done]
    ratios = [seconds_of(dense[turn(c)]) / seconds_of(c) for c in done if turn(c) in dense]
    # a graph is recorded before its calls are timed, and has its memory from then on
    graph = last["compile"] == "graph"
    peaks = [cell["peak_gib"] for cell in done if cell["peak_gib"] is not None and not graph]
    return Row(
        method=last["method"],
        detail=last["detail"],
        seconds=_median(seconds),
        seconds_range=_range(seconds),
        speedup=_median(ratios),
        speedup_range=_range(ratios),
        predicted=flops / last["flops"] if flops and last["flops"] else None,
        peak_gib=max(peaks, default=None),
        rounds=len({cell["round"] for cell in done}),
        why="" if last["outcome"] == MEASURED else _why(last),
    )


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _range(values: list[float]) -> tuple[float, float] | None:
    return (min(values), max(values)) if values else None


def seconds_of(cell: Cell) -> float:
    """Of the whole model, calculated where only a few blocks of it were timed."""
    found: float = cell["whole_model_seconds"] if "whole_model_seconds" in cell else cell["seconds"]
    return found


def _why(cell: Cell) -> str:
    why = cell.get("why", "")
    return why if cell["outcome"] not in (FAILED, "out of memory") else f"{cell['outcome']}: {why}"


def _attention(cells: list[Cell]) -> str:
    found = {(c["attention"], c["kernel"]) for c in cells if c.get("attention")}
    return " / ".join(
        sorted(kernel if kernel == name else f"{name} ({kernel})" for name, kernel in found)
    )


def _notes(cells: list[Cell], dense: Dense, software: list[dict[str, Any]]) -> list[str]:
    notes = []
    key = cells[0]
    if key["blocks"]:
        depths = SHAPES[key["target"]].depths if key["target"] in SHAPES else {}
        of = ", ".join(f"{min(key['blocks'], n)} of {n} {stack}" for stack, n in depths.items())
        notes.append(f"timed {of}; the others are calculated, memory is that of the timed part")
    turns = [turn(cell) for cell in cells if cell["outcome"] == MEASURED]
    runs = {run for run, _ in turns}
    if len(runs) > 1:
        notes.append(f"measured in {len(runs)} runs; ratios are of one run")
    alone = sum(each not in dense for each in turns)
    if alone and dense:
        notes.append(f"cells that have no dense of their run beside them, and no ratio: {alone}")
    if len(software) > 1:
        notes.append("made by different versions or commits")
    return notes


COLUMNS = ("method", "median, s (range)", "speed-up (range)", "FLOPs", "GiB")


def table(group: Group) -> list[tuple[str, ...]]:
    """Text of every cell of a table with ``COLUMNS``."""
    return [
        (
            row.method,
            _with_range(row.seconds, row.seconds_range, seconds_text),
            _with_range(row.speedup, row.speedup_range, _two_digits),
            _two_digits(row.predicted),
            _two_digits(row.peak_gib),
        )
        for row in group.rows
    ]


def remarks(group: Group) -> list[str]:
    """What each method did, or why it has no numbers, and what else a reader should know."""
    return [f"{row.method}: {row.why or row.detail}" for row in group.rows] + group.notes


def markdown_table(group: Group) -> str:
    """The rows that have numbers."""
    rows = [row for row in table(group) if any(row[1:])]
    lines = [_line(COLUMNS), _line("---" for _ in COLUMNS), *map(_line, rows)]
    return "\n".join(lines) + "\n"


def _line(row: Iterable[str]) -> str:
    return "| " + " | ".join(text.replace("|", "/") for text in row) + " |"


def seconds_text(value: float) -> str:
    """Three digits, and no exponent for long ones."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _two_digits(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _with_range(
    value: float | None, span: tuple[float, float] | None, text: Callable[[float], str]
) -> str:
    if value is None or span is None:
        return ""
    return f"{text(value)} ({text(span[0])}-{text(span[1])})"
