"""Speed relative to dense attention, as bars: one picture a file of cells.

The layout is plain numbers; matplotlib only draws it.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._errors import BenchError, ConfigError
from .report import Group

_SUFFIXES = (".png", ".pdf", ".svg")
_GAP = 1.0  # between the bars of two sizes, in bars
_LONG = 3  # panels that fit one below the other; more go in two columns


@dataclass(frozen=True)
class Bar:
    """One method at one size.

    Attributes:
        x: centre of the bar; bars are 1 wide.
        method: its name.
        speedup: over dense, its height.
        low: of the rounds.
        high: of the rounds.
        predicted: by FLOPs, or None.
    """

    x: float
    method: str
    speedup: float
    low: float
    high: float
    predicted: float | None


@dataclass(frozen=True)
class Panel:
    """One model, its sizes side by side.

    Attributes:
        title: above it.
        bars: of all sizes.
        ticks: centre of each size's bars, and the size with the attention that ran there.
    """

    title: str
    bars: list[Bar]
    ticks: list[tuple[float, str]]


def layout(groups: list[Group]) -> list[Panel]:
    """One panel for each model and setting, with the sizes from small to large.

    Raises:
        BenchError: no group has a dense baseline and a method beside it.
    """
    panels: dict[str, list[Group]] = {}
    for group in groups:
        if any(row.speedup is not None for row in group.rows[1:]):
            panels.setdefault(_setting(group), []).append(group)
    if not panels:
        raise BenchError("nothing to plot: no method was measured in the same round as dense")
    return [_panel(title, members) for title, members in panels.items()]


def _setting(group: Group) -> str:
    key = group.key
    what = "step" if key["what"] == "step" else "picture"
    compiled = {"no": "", "graph": ", as a CUDA graph"}.get(
        key["compile"], f", compiled {key['compile']}"
    )
    blocks = f", {key['blocks']} blocks timed" if key["blocks"] else ""
    return (
        f"{key['target']}, {what}, {key['dtype']}{compiled}{blocks}\n"
        f"{key['hardware']}, attention backend {key['backend']}"
    )


def _panel(title: str, groups: list[Group]) -> Panel:
    bars: list[Bar] = []
    ticks = []
    x = 0.0
    for group in sorted(groups, key=lambda item: item.key["width"] * item.key["height"]):
        first = x
        for row in group.rows:
            if row.speedup is not None and row.speedup_range is not None:
                bars.append(Bar(x, row.method, row.speedup, *row.speedup_range, row.predicted))
                x += 1.0
        name = f"{group.key['width']} x {group.key['height']}\n{group.attention}"
        ticks.append(((first + x - 1.0) / 2, name))
        x += _GAP
    return Panel(title, bars, ticks)


def check_plot(path: Path) -> None:
    """Says before anything is measured whether a plot can be drawn.

    Raises:
        ConfigError: of another kind than PNG, PDF or SVG.
        BenchError: matplotlib is missing.
    """
    if path.suffix not in _SUFFIXES:
        raise ConfigError(f"expected a plot named .png, .pdf or .svg, got {path}")
    if importlib.util.find_spec("matplotlib") is None:
        raise BenchError(
            "the plot needs an extra: pip install 'tokendown[bench]' (matplotlib is missing)"
        )


def draw(groups: list[Group], path: Path) -> None:
    """Draws the panels below and beside each other.

    Raises:
        ConfigError, BenchError: as ``check_plot`` and ``layout``.
    """
    check_plot(path)
    panels = layout(groups)
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(bar.method for panel in panels for bar in panel.bars))
    palette = colormaps["tab10" if len(methods) <= 10 else "tab20"]
    colours = {method: palette(number % palette.N) for number, method in enumerate(methods)}
    widest = max(panel.bars[-1].x for panel in panels)
    columns = 1 if len(panels) <= _LONG else 2
    rows = -(-len(panels) // columns)
    size = (columns * max(6.0, 2.0 + 0.35 * widest), 3.4 * rows)
    figure = Figure(figsize=size, dpi=150 if columns == 1 else 100)
    for number, panel in enumerate(panels, start=1):
        _draw_panel(figure.add_subplot(rows, columns, number), panel, colours)
    figure.tight_layout()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror}") from error


def _draw_panel(axes: Any, panel: Panel, colours: dict[str, Any]) -> None:
    named: set[str] = set()
    for bar in panel.bars:
        label = None if bar.method in named else bar.method
        named.add(bar.method)
        spread = [[bar.speedup - bar.low], [bar.high - bar.speedup]]
        axes.bar(
            bar.x, bar.speedup, width=0.9, color=colours[bar.method], label=label, yerr=spread,
            error_kw={"elinewidth": 0.8},
        )  # fmt: skip
        axes.annotate(
            f"{bar.speedup:.2f}", (bar.x, bar.low), (0, -2), textcoords="offset points",
            ha="center", va="top", fontsize=7, color="white",
        )  # fmt: skip
    known = [bar for bar in panel.bars if bar.predicted is not None]
    axes.plot(
        [bar.x for bar in known], [bar.predicted for bar in known], "k_", ms=9, label="by FLOPs"
    )
    axes.axhline(1.0, color="grey", lw=0.6)
    axes.set_xticks([x for x, _ in panel.ticks], [name for _, name in panel.ticks])
    axes.set_ylabel("speed relative to dense")
    axes.set_title(panel.title, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
