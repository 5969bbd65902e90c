"""Plots as SVG text: a heat map, lines, points. Readable in a browser without anything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

# Dark to light in even steps of lightness, readable without colour vision too.
_RAMP = [(13, 8, 60), (84, 15, 109), (158, 40, 100), (222, 79, 60), (251, 155, 6), (252, 242, 155)]
COLOURS = ("#3563c9", "#d1495b", "#2a9d6f", "#a15bc4", "#c77f1a", "#4b9fb8", "#6b7280", "#8a6d3b")
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
_INK, _FAINT = "#1f2933", "#d5dbe1"
_TILES = 120  # width of a small map in pixels
_FONT = 'font-family="system-ui, sans-serif"'


def colour(fraction: float) -> str:
    """A place on the ramp, 0 is dark; gray where there is no number."""
    if not math.isfinite(fraction):
        return "#eef0f2"
    place = min(max(fraction, 0.0), 1.0) * (len(_RAMP) - 1)
    index = min(int(place), len(_RAMP) - 2)
    low, high = _RAMP[index], _RAMP[index + 1]
    mixed = (round(a + (b - a) * (place - index)) for a, b in zip(low, high, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def text(
    x: float, y: float, words: str, *, size: int = 11, anchor: str = "start", **more: str
) -> str:
    """One line of text; ``anchor`` is start, middle or end."""
    more.setdefault("fill", _INK)
    extra = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f"{extra[1:]}>{escape(words)}</text>"
    )


def picture(width: float, height: float, parts: Sequence[str], label: str) -> str:
    """The whole of a plot; ``label`` is for those who cannot see it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" role="img" aria-label="{escape(label, quote=True)}" {_FONT}>'
        + "".join(parts)
        + "</svg>"
    )


def heat_map(
    rows: Mapping[str, Sequence[float]],
    columns: Sequence[str],
    *,
    label: str,
    unit: str,
    bounds: tuple[float, float] | None = None,
    log: bool = False,
    form: str = ".2f",
) -> str:
    """A row a name, a column a value; the scale stands at the right.

    Args:
        rows: name to as many values as there are columns.
        columns: their names; as many are written as there is room for.
        label: what it shows.
        unit: of the values, written above.
        bounds: of the scale; None means those of the values.
        log: whether the scale is logarithmic.
        form: of numbers, as in a format string.
    """
    values = [v for row in rows.values() for v in row if math.isfinite(v) and (v > 0 or not log)]
    low, high = bounds or (min(values, default=0.0), max(values, default=1.0))
    if log:
        low = max(low, high * 1e-8)
    shape: Callable[[float], float] = (lambda v: math.log(max(v, low))) if log else float
    span = (shape(high) - shape(low)) or 1.0
    left, top, tall = 8 + 6.3 * max(map(len, rows)), 26, 17
    wide = max(9.0, min(34.0, 640 / len(columns)))
    parts = [text(left, 14, unit)]
    for i, (name, row) in enumerate(rows.items()):
        parts.append(text(left - 6, top + (i + 0.72) * tall, name, anchor="end"))
        for j, value in enumerate(row):
            place = (shape(value) - shape(low)) / span if math.isfinite(value) else math.nan
            parts.append(
                f'<rect x="{left + j * wide:.1f}" y="{top + i * tall}" width="{wide - 0.6:.1f}" '
                f'height="{tall - 1}" fill="{colour(place)}"><title>{escape(name)}, '
                f"{escape(columns[j])}: {value:{form}}</title></rect>"
            )
    bottom, right = top + len(rows) * tall, left + len(columns) * wide
    every = max(1, math.ceil(34 / wide))
    parts += [
        text(left + (j + 0.5) * wide, bottom + 14, columns[j], size=10, anchor="middle")
        for j in range(0, len(columns), every)
    ]
    parts += _scale(right + 18, top, max(60, bottom - top), low, high, form)
    width = max(right + 80, left + 6.3 * len(unit))
    return picture(width, max(bottom, top + 60) + 24, parts, label)


def _scale(x: float, y: float, height: float, low: float, high: float, form: str) -> list[str]:
    steps = 24
    bars = [
        f'<rect x="{x:.1f}" y="{y + height * i / steps:.1f}" width="12" '
        f'height="{height / steps + 0.5:.1f}" fill="{colour(1 - i / (steps - 1))}"/>'
        for i in range(steps)
    ]
    top, bottom = f"{high:{form}}", f"{low:{form}}"
    return [*bars, text(x + 17, y + 9, top, size=10), text(x + 17, y + height, bottom, size=10)]


def tiles(rows: Sequence[Sequence[float]], *, label: str) -> str:
    """A small map without axes on a logarithmic scale, its largest value written below.

    Args:
        rows: values > 0.
        label: what it shows.
    """
    high = max(map(max, rows))
    span = math.log(max(high, 1.001) / min(1.0, high) * 10)
    places: dict[str, list[str]] = {}
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            fraction = 1 + math.log(max(value / high, 1e-9)) / span
            ink = colour(round(fraction * 16) / 16)
            places.setdefault(ink, []).append(f"M{j} {i}h1v1h-1z")
    scale = _TILES / len(rows[0])
    paths = "".join(f'<path fill="{ink}" d="{"".join(d)}"/>' for ink, d in places.items())
    height = scale * len(rows)
    parts = [
        f'<g transform="scale({scale:.4f})" shape-rendering="crispEdges">{paths}</g>',
        text(0, height + 12, label, size=9),
        text(0, height + 23, f"largest {high:.3g}", size=9),
    ]
    return picture(_TILES, height + 26, parts, label)


class Axes:
    """A frame with ticks; x is linear, y may be logarithmic.

    Args:
        x: lowest and highest.
        y: likewise.
        names: what the axes show.
        log: whether y is logarithmic.
        size: of the frame.
    """

    left, top, right, bottom = 64, 12, 170, 44

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        names: tuple[str, str],
        log: bool = False,
        size: tuple[int, int] = (520, 300),
    ) -> None:
        self.x, self.y, self.names, self.log, self.size = x, y, names, log, size

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A point in the picture; what is outside lands on the edge."""
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        low, high, value = self.y[0], self.y[1], min(max(y, self.y[0]), self.y[1])
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        up = (value - low) / ((high - low) or 1)
        return self.left + across * self.size[0], self.top + (1 - up) * self.size[1]

    def frame(self) -> list[str]:
        """Grid lines, ticks and names."""
        width, height = self.size
        parts = []
        for value in self._ticks():
            _, y = self.at(self.x[0], value)
            parts.append(
                f'<line x1="{self.left}" x2="{self.left + width}" y1="{y:.1f}" y2="{y:.1f}" '
                f'stroke="{_FAINT}"/>'
            )
            parts.append(text(self.left - 6, y + 4, f"{value:.3g}", size=10, anchor="end"))
        for value in _round_steps(*self.x):
            x, y = self.at(value, self.y[0])
            parts.append(text(x, y + 16, f"{value:.4g}", size=10, anchor="middle"))
        middle = self.top + height / 2
        parts.append(
            text(14, middle, self.names[1], anchor="middle", transform=f"rotate(-90 14 {middle})")
        )
        across = self.left + width / 2
        parts.append(text(across, self.top + height + 36, self.names[0], anchor="middle"))
        return parts

    def _ticks(self) -> list[float]:
        low, high = self.y
        if not self.log:
            return _round_steps(low, high)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        inside = [10.0**power for power in powers if low <= 10.0**power <= high]
        return inside if len(inside) > 1 else [low, high]

    def picture(self, parts: Sequence[str], label: str) -> str:
        width, height = self.size
        return picture(
            self.left + width + self.right,
            self.top + height + self.bottom,
            [*self.frame(), *parts],
            label,
        )


def _round_steps(low: float, high: float) -> list[float]:
    """About five round numbers between two others."""
    rough = (high - low) / 5 or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    label: str,
    names: tuple[str, str],
    log: bool = False,
) -> str:
    """One line a name, its name at the right; values <= 0 are left out of a logarithmic plot."""
    shown = {
        name: [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not log)]
        for name, points in series.items()
    }
    axes = Axes(*_bounds([p for points in shown.values() for p in points], log), names, log)
    parts = []
    for index, (name, points) in enumerate(shown.items()):
        ink, dash = COLOURS[index % len(COLOURS)], _DASHES[index // len(COLOURS) % len(_DASHES)]
        path = " ".join("{:.1f},{:.1f}".format(*axes.at(*point)) for point in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{ink}" stroke-width="1.8" '
            f'stroke-dasharray="{dash}"><title>{escape(name)}</title></polyline>'
        )
        x, y = axes.left + axes.size[0] + 12, axes.top + 10 + 16 * index
        parts.append(
            f'<line x1="{x}" x2="{x + 22}" y1="{y - 4}" y2="{y - 4}" stroke="{ink}" '
            f'stroke-width="2.5" stroke-dasharray="{dash}"/>'
        )
        parts.append(text(x + 28, y, name))
    return axes.picture(parts, label)


def points(
    groups: Mapping[str, Sequence[tuple[float, float, str]]],
    *,
    label: str,
    names: tuple[str, str],
    curve: Sequence[tuple[float, float]] = (),
) -> str:
    """Named points over a logarithmic axis, a colour a group, and a curve below them.

    Args:
        groups: name to (x, y, name of the point), y > 0.
        label: what it shows.
        names: what the axes show.
        curve: points of a dashed line, as far as it lies within the frame.
    """
    everything = [(x, y) for group in groups.values() for x, y, _ in group]
    (_, right), (low, high) = _bounds(everything, log=True)
    axes = Axes((1.0, 1.0 + (right - 1.0) * 1.15), (low / 3, high * 2), names, log=True)
    inside = [axes.at(x, y) for x, y in curve if x <= axes.x[1] and axes.y[0] <= y <= axes.y[1]]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in inside)
    parts = [
        f'<polyline points="{path}" fill="none" stroke="#9aa5b1" stroke-width="1.5" '
        'stroke-dasharray="4 3"/>'
    ]
    taken: list[tuple[float, float]] = []
    for ink, (_, members) in zip(COLOURS, groups.items(), strict=False):
        for value, error, name in members:
            x, y = axes.at(value, error)
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{ink}" stroke="white"><title>'
                f"{escape(name)}: {value:.3g}, {error:.3g}</title></circle>"
            )
            height = y + 4
            while any(abs(x - a) < 110 and abs(height - b) < 13 for a, b in taken):
                height += 13
            taken.append((x, height))
            parts.append(text(x + 9, height, name, fill=ink))
    return axes.picture(parts, label)


def _bounds(
    places: Sequence[tuple[float, float]], log: bool
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Lowest and highest of both axes with some room."""
    xs = [x for x, _ in places] or [0.0, 1.0]
    ys = [y for _, y in places if y > 0 or not log] or [0.1, 1.0]
    low, high = min(ys), max(ys)
    if log:
        return (min(xs), max(xs)), (low / 1.5, high * 1.5)
    room = (high - low) * 0.05 or 0.5
    return (min(xs), max(xs)), (low - room, high + room)
