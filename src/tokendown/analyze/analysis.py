"""Dense runs of a few prompts, looked at layer by layer and call by call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from statistics import fmean
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional

from .._errors import ConfigError
from ..config import CellMethod, in_window
from ..grid import Grid
from ..patch import find_denoisers
from ..request import Request
from ..rounding import significant
from ..sampling import Picture, Progress, nth, sample
from .measures import Candidate, overlap, top_tokens
from .probe import LayerProbe, Probe

FACTORS = (2, 3, 4, 6, 8)
# With 512 anchors a grid of 64 x 64 at factor 3 has fewer keys than at factor 2 without any.
ANCHORS = (0, 8, 32, 128, 512)
METHODS: tuple[CellMethod, ...] = get_args(CellMethod)
QUERIES = 256
_MAP = 32  # most rows and columns of a map that is kept


@dataclass(frozen=True)
class LayerAnalysis:
    """One self-attention layer, mean over prompts.

    Attributes:
        name: dotted path in the denoiser.
        grid: (height, width) of its tokens.
        downsample: of its grid relative to the finest one.
        channels: width of its tokens.
        heads: number of heads.
        head_dim: channels a head.
        keys: of its whole sequence, text and all frames included.
        measures: name to one value a step: those of :mod:`.measures`, ``effective_keys`` (the
            exponential of the entropy), ``stay`` (part of the most attended tokens that were so at
            the step before: one value fewer, and none in a single step) and ``agree`` (part that
            they share with another prompt); ``text`` (share of all attention of image tokens)
            where text is in the sequence.
        errors: of each candidate one relative squared error a step.
        received: share of all attention times the number of tokens, a map of at most 32 x 32
            (the largest of those that fall together).
    """

    name: str
    grid: tuple[int, int]
    downsample: int
    channels: int
    heads: int
    head_dim: int
    keys: int
    measures: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[Candidate, list[float]] = field(default_factory=dict)
    received: list[list[float]] = field(default_factory=list)

    def error(self, candidate: Candidate, start: float = 0.0, stop: float = 1.0) -> float:
        """Mean over the steps of a part of the schedule; 0 for factor 1."""
        if candidate.factor == 1:
            return 0.0
        steps = self.errors[candidate]
        return fmean(x for i, x in enumerate(steps) if in_window(i, len(steps), start, stop))


@dataclass(frozen=True)
class Analysis:
    """All layers of a denoiser.

    Attributes:
        model: class name of the denoiser.
        request: how the pictures were made, as JSON types.
        prompts: of the pictures.
        timesteps: of each step.
        layers: in the order in which they run.
    """

    model: str
    request: dict[str, Any]
    prompts: tuple[str, ...]
    timesteps: tuple[float, ...]
    layers: tuple[LayerAnalysis, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        layers = []
        for layer in self.layers:
            errors = {str(candidate): values for candidate, values in layer.errors.items()}
            layers.append({**asdict(replace(layer, errors={})), "errors": errors})
        return {
            "analysis": 1,
            "model": self.model,
            "request": self.request,
            "prompts": list(self.prompts),
            "timesteps": list(self.timesteps),
            "layers": layers,
        }


def analyze(
    pipe: Any,
    request: Request,
    prompts: Sequence[str],
    *,
    factors: Sequence[int] = FACTORS,
    anchors: Sequence[int] = ANCHORS,
    methods: Sequence[CellMethod] = METHODS,
    queries: int = QUERIES,
    progress: Progress | None = None,
    made: Callable[[Picture], None] | None = None,
) -> Analysis:
    """Makes one dense picture of each prompt and looks at every self-attention layer meanwhile.

    Args:
        pipe: a diffusers pipeline that makes pictures from text, not patched.
        request: size, steps, guidance and first seed (prompt i has seed + i), all filled in as
            ``open_pipeline`` does; its prompt and patch are not used.
        prompts: at least one.
        factors: >= 2, whose error is wanted.
        anchors: >= 0, likewise.
        methods: likewise; cell means are skipped where positions are rotated.
        queries: of a layer that are looked at in each call; more are more exact and slower.
        progress: called after every step with those of all pictures together.
        made: called with every picture.

    Raises:
        ConfigError: the pipeline is patched, or an argument is out of its range.
        UnsupportedModelError: no layer can be looked into.
        RunError: out of memory.
    """
    if not prompts or queries < 1 or min(factors, default=0) < 2 or min(anchors, default=-1) < 0:
        raise ConfigError("expected a prompt, factors >= 2, anchors >= 0 and a query at least")
    denoiser: Any = find_denoisers(pipe)[0]
    candidates = [
        Candidate(factor, count, method)
        for factor in sorted(set(factors))
        for count in sorted(set(anchors))
        for method in methods
    ]
    runs = []
    for index, prompt in enumerate(prompts):
        one = replace(request, prompt=prompt, seed=request.seed + index, config=None)
        with Probe(denoiser, candidates, queries) as probe:
            picture = sample(pipe, one, nth(progress, index, len(prompts)))
        runs.append(probe)
        if made is not None:
            made(picture)
    settings = {**request.to_dict(), "config": None, "prompt": ""}
    calls, steps = len(runs[0].times), request.steps or 1
    each = calls // steps if calls % steps == 0 else 1  # two where guidance is a call of its own
    return Analysis(
        type(denoiser).__name__,
        settings,
        tuple(prompts),
        tuple(runs[0].times[::each]),
        tuple(
            _gather(list(probes), each)
            for probes in zip(*(run.layers for run in runs), strict=True)
        ),
    )


def _gather(probes: list[LayerProbe], each: int) -> LayerAnalysis:
    """The same layer in the runs of all prompts, with so many calls a step."""
    layer, grid = probes[0].layer, probes[0].box.grid
    calls = range(len(probes[0].calls))
    measures = {
        name: [fmean(probe.calls[call][name] for probe in probes) for call in calls]
        for name in probes[0].calls[0]
    }
    measures["effective_keys"] = [math.exp(entropy) for entropy in measures["entropy"]]
    tops = [[top_tokens(received) for received in probe.received] for probe in probes]
    if len(calls) > each:  # a single step has none before it
        measures["stay"] = [
            fmean(overlap(top[call], top[call - each]) for top in tops) for call in calls[each:]
        ]
    if len(probes) > 1:
        measures["agree"] = [
            fmean(overlap(a[call], b[call]) for a, b in pairwise(tops)) for call in calls
        ]
    received = torch.stack([torch.stack(probe.received).mean(0) for probe in probes]).mean(0)
    per_frame = (received * len(received)).view(-1, grid.tokens).mean(0)
    return LayerAnalysis(
        layer.name,
        (grid.height, grid.width),
        layer.downsample,
        layer.channels,
        layer.heads,
        layer.head_dim,
        probes[0].keys,
        {name: _by_step(values, each) for name, values in measures.items()},
        {
            candidate: _by_step(
                [fmean(p.errors[call][candidate] for p in probes) for call in calls], each
            )
            for candidate in probes[0].errors[0]
        },
        _small_map(per_frame, grid),
    )


def _by_step(values: Sequence[float], each: int) -> list[float]:
    """Mean over the calls of a step."""
    return [significant(fmean(values[i : i + each]), 4) for i in range(0, len(values), each)]


def _small_map(values: Tensor, grid: Grid) -> list[list[float]]:
    size = (min(_MAP, grid.height), min(_MAP, grid.width))
    pooled = functional.adaptive_max_pool2d(values.view(1, grid.height, grid.width), size)
    return [[significant(value, 4) for value in row] for row in pooled[0].tolist()]
