"""An analysis as one HTML page."""

from __future__ import annotations

from statistics import fmean

from ..config import AUTO_ANCHORS, CellMethod
from . import svg
from .analysis import METHODS, Analysis, LayerAnalysis
from .measures import TOP, Candidate
from .page import figure, page, row, section, short_name, table


def similarity_map(analysis: Analysis) -> str:
    """The paper's Figure 4: the lowest similarity in 3 x 3 tokens, by layer and timestep."""
    lowest = min(min(layer.measures["similarity"]) for layer in analysis.layers)
    bounds = (min(0.0, lowest), 1.0)
    return _map(analysis, "similarity", "lowest cosine similarity in 3 x 3 tokens", bounds)


def report(analysis: Analysis) -> str:
    """The page."""
    request = analysis.request
    prompts = len(analysis.prompts)
    lead = (
        f"{analysis.model} of {request['model']}, {request['width']} x {request['height']} pixels, "
        f"{len(analysis.timesteps)} calls, {prompts} prompt{'s' * (prompts > 1)}, dense"
    )
    return page(
        "Self-attention of a diffusion model",
        lead,
        [
            _similarity(analysis),
            _errors(analysis),
            _sinks(analysis),
            _entropy(analysis),
            *_text(analysis),
            _foot(analysis),
        ],
    )


def _similarity(analysis: Analysis) -> str:
    return section(
        "Neighbours are alike",
        "For every token, the lowest cosine similarity between any two tokens of the 3 x 3 "
        "neighbourhood around it; mean over tokens. Where it is high, one token of a cell can "
        "speak for the others.",
        figure(
            similarity_map(analysis),
            "Layers from input to output, timesteps from noise to picture.",
        ),
        figure(
            _map(analysis, "similarity_low", "5 % quantile"),
            "The same for the least alike 5 % of the neighbourhoods: edges and fine detail.",
        ),
    )


def _errors(analysis: Analysis) -> str:
    plots = [plot for method in METHODS for plot in _errors_of(analysis, method)]
    known = [layer for layer in analysis.layers if layer.errors]
    if known:
        finest = min(layer.downsample for layer in known)
        plots.append(_over_time([layer for layer in known if layer.downsample == finest]))
    return section(
        "What fewer keys change",
        "Squared error of each attention module's own output over its squared size, if it alone "
        "had the keys of a coarse grid, without and with anchors; on the true inputs of the dense "
        "run. Kept keys count as often as they stand for a token; text is kept.",
        *plots,
    )


def _errors_of(analysis: Analysis, method: CellMethod) -> list[str]:
    """One map, if there is a candidate of that method."""
    every = sorted({each for layer in analysis.layers for each in layer.errors})
    candidates = [each for each in every if each.method == method]
    if not candidates:
        return []
    rows = {
        short_name(layer.name): [
            layer.error(each) if each in layer.errors else float("nan") for each in candidates
        ]
        for layer in analysis.layers
    }
    names = [_name(each) for each in candidates]
    plot = svg.heat_map(
        rows, names, label=f"output error by layer, {method}", unit="relative squared error",
        log=True, form=".1e",
    )  # fmt: skip
    what = {"nearest": "The top-left token of each cell", "mean": "The mean of each cell"}[method]
    return [
        figure(
            plot,
            f"{what}. Columns: factor, + anchors. Mean over the schedule; gray where the grid is "
            "too small, or means cannot be taken.",
        )
    ]


def _name(candidate: Candidate) -> str:
    return f"{candidate.factor}" + (f" +{candidate.anchors}" if candidate.anchors else "")


def _over_time(layers: list[LayerAnalysis]) -> str:
    series = {}
    every = sorted(layers[0].errors)
    for candidate in [x for x in every if x.method == "nearest" and x.anchors <= AUTO_ANCHORS]:
        of_layers = [layer.errors[candidate] for layer in layers]
        means = [fmean(values) for values in zip(*of_layers, strict=True)]
        series[_name(candidate)] = [(step / len(means), mean) for step, mean in enumerate(means)]
    plot = svg.lines(
        series, label="output error over the schedule", log=True,
        names=("part of the schedule", "relative squared error"),
    )  # fmt: skip
    return figure(plot, "The finest layers, mean: at which steps fewer keys cost most.")


_SINKS = {
    "largest": ("largest", ".1f"),
    "top_mass": (f"share of {TOP}", ".0%"),
    "border": ("at the border", ".0%"),
    "on_grid": ("on grid 2", ".0%"),
    "found": ("kept", ".0%"),
    "stay": ("stay", ".0%"),
    "agree": ("agree", ".0%"),
    "text": ("text", ".0%"),
}


def _sinks(analysis: Analysis) -> str:
    seen = {name for layer in analysis.layers for name in layer.measures}
    shown = {name: value for name, value in _SINKS.items() if name in seen}
    rows = [
        [
            short_name(layer.name),
            f"{layer.grid[0]}x{layer.grid[1]}",
            *(
                format(fmean(layer.measures[name]), form) if name in layer.measures else ""
                for name, (_, form) in shown.items()
            ),
        ]
        for layer in analysis.layers
    ]
    maps = [
        figure(svg.tiles(layer.received, label=short_name(layer.name))) for layer in analysis.layers
    ]
    return section(
        "Attention sinks",
        f"How much attention the tokens receive; 1 would be even. Of the {TOP} tokens that receive "
        "most: their share of all attention, how many lie within two tokens of the border, on the "
        "coarse grid of factor 2 (a quarter does by chance), are kept by that grid and as many "
        "anchors, were among them at the step before, and are so in another prompt too; where text "
        "is in the same sequence, its share of the attention of image tokens. Below, received "
        "attention in the picture plane.",
        table(["layer", "grid", *(name for name, _ in shown.values())], rows),
        row(maps),
    )


def _entropy(analysis: Analysis) -> str:
    shares = {
        short_name(layer.name): [keys / layer.keys for keys in layer.measures["effective_keys"]]
        for layer in analysis.layers
    }
    plot = svg.heat_map(
        shares, _times(analysis), label="effective keys", unit="part of all keys", log=True,
        form=".2g",
    )  # fmt: skip
    return section(
        "How many keys a query uses",
        "The exponential of the entropy of a query's weights, over the number of keys. 1 is the "
        "same weight for all, a small number a sharp choice.",
        figure(plot),
    )


def _text(analysis: Analysis) -> list[str]:
    """How much of it goes to text, where text is in the same sequence."""
    layers = [layer for layer in analysis.layers if "text" in layer.measures]
    if not layers:
        return []
    rows = {short_name(layer.name): layer.measures["text"] for layer in layers}
    plot = svg.heat_map(rows, _times(analysis), label="text", unit="share", bounds=(0.0, 1.0))
    return [
        section(
            "What goes to text",
            "The share of the attention of image tokens that text receives. Without the "
            "multiplicity a grid of factor 2 would multiply the odds by four.",
            figure(plot),
        )
    ]


def _foot(analysis: Analysis) -> str:
    prompts = "; ".join(analysis.prompts)
    return section("How it was made", f"Prompts: {prompts}. Seeds from {analysis.request['seed']}.")


def _map(
    analysis: Analysis, measure: str, unit: str, bounds: tuple[float, float] | None = None
) -> str:
    rows = {short_name(layer.name): layer.measures[measure] for layer in analysis.layers}
    return svg.heat_map(rows, _times(analysis), label=unit, unit=unit, bounds=bounds)


def _times(analysis: Analysis) -> list[str]:
    return [f"{time:.0f}" for time in analysis.timesteps]
