"""How an error in one layer shows in the picture: two measured numbers that scale it.

``gain`` of a layer: squared error of the denoiser's output when this layer alone is coarse, over
the error of the layer's own output. ``weight`` of a part of the schedule: error of the picture when
a reference plan is active in this part alone, over the denoiser errors that the gains predict for
it. Errors of layers are taken to add up, and so are those of parts: a first approximation, true
for small independent errors. The choice is therefore checked on pictures that it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
from torch import Tensor

from ..analyze import Analysis, LayerAnalysis
from ..analyze.measures import DENSE, Candidate, expect_finite
from ..config import PatchConfig, cells_of, in_window
from ..generate import make_picture
from ..patch import apply_patch
from ..sampling import Picture
from ..tuned import LayerChoice, TunedPlan

Window = tuple[float, float]
Tick = Callable[[], None]
_TINY = 1e-9  # an error in float32 that says nothing


def parts_of(count: int) -> list[Window]:
    """The schedule in equal parts."""
    return [(i / count, (i + 1) / count) for i in range(count)]


@dataclass(frozen=True)
class Uniform:
    """The same candidate wherever it is usable, or in one layer only.

    Args:
        candidate: for every layer that has it.
        only: name of a layer.
    """

    candidate: Candidate
    only: str | None = None

    def __call__(self, layer: LayerAnalysis) -> Candidate:
        meant = self.only in (None, layer.name) and self.candidate in layer.errors
        return self.candidate if meant else DENSE


def plan_of(
    analysis: Analysis, choose: Callable[[LayerAnalysis], Candidate], window: Window = (0.0, 1.0)
) -> TunedPlan:
    """A plan that chooses by layer, in one window."""
    layers = tuple(choice_of(layer, choose(layer), window) for layer in analysis.layers)
    return TunedPlan(analysis.model, layers, (size_of(analysis),))


def choice_of(layer: LayerAnalysis, candidate: Candidate, window: Window) -> LayerChoice:
    """A line of a plan; the dense one has no window.

    Single tokens of cells are jittered: at one step that is as good as the top left ones, which
    were measured, and over all steps better.
    """
    if candidate.factor == 1:
        return LayerChoice(layer.name, layer.channels, layer.heads)
    factor, anchors, cells = candidate
    return LayerChoice(
        layer.name, layer.channels, layer.heads, factor, anchors, *window,
        method="mean" if cells == "mean" else "jitter",
    )  # fmt: skip


def candidate_of(choice: LayerChoice | PatchConfig, factor: int) -> Candidate:
    """What a choice was measured as, at a factor."""
    if factor == 1:
        return DENSE
    assert choice.method is not None, "PatchConfig fills it in"
    return Candidate(factor, choice.anchors or 0, cells_of(choice.method))


def size_of(analysis: Analysis) -> tuple[int, int]:
    """(width, height) in pixels."""
    return int(analysis.request["width"]), int(analysis.request["height"])


# Gains


class Calls:
    """Keeps the inputs of the calls of a denoiser, until it is released.

    Args:
        denoiser: whose.
    """

    def __init__(self, denoiser: Any) -> None:
        self.denoiser = denoiser
        self.kept: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._handle = denoiser.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.kept.append((_copy(args), _copy(kwargs)))

    def release(self) -> None:
        """Looks no longer."""
        self._handle.remove()

    def keep(self, wanted: Sequence[int]) -> None:
        """Forgets the others."""
        self.kept = [self.kept[index] for index in wanted]

    @torch.no_grad()
    def replay(self, index: int) -> Tensor:
        """The output of a kept call of the denoiser as it is now, flat."""
        args, kwargs = self.kept[index]
        result = self.denoiser(*args, **kwargs)[0]
        parts = result if isinstance(result, list) else [result]  # Z-Image has one an image
        return torch.cat([part.float().flatten() for part in parts])


def _copy(value: Any) -> Any:
    """Containers and tensors are copied: a pipeline may reuse them."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _copy(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_copy(item) for item in value)
    return value


def middle_calls(calls: int, steps: int, parts: int) -> list[int]:
    """The first call of the step in the middle of each part; no more parts than steps."""
    inside = [[i for i in range(steps) if in_window(i, steps, *part)] for part in parts_of(parts)]
    return [each[len(each) // 2] * (calls // steps) for each in inside]


def measure_gains(
    analysis: Analysis, calls: Calls, reference: Callable[[LayerAnalysis], Candidate]
) -> dict[str, list[float]]:
    """For every layer with a usable reference one gain a part of the schedule."""
    parts = parts_of(len(calls.kept))
    dense = [calls.replay(index) for index in range(len(parts))]
    dtype = next(calls.denoiser.parameters()).dtype
    gains = {}
    for layer in analysis.layers:
        candidate = reference(layer)
        if candidate.factor == 1:
            continue
        only = plan_of(analysis, Uniform(candidate, layer.name))
        with apply_patch(calls.denoiser, only):
            outputs = [calls.replay(index) for index in range(len(parts))]
        errors = [relative_error(a, b) for a, b in zip(outputs, dense, strict=True)]
        expect_finite(f"the output with a coarse {layer.name}", errors, dtype)
        gains[layer.name] = [
            error / max(layer.error(candidate, *part), _TINY)
            for error, part in zip(errors, parts, strict=True)
        ]
    return gains


# Weights


def measure_weights(
    analysis: Analysis,
    gains: dict[str, list[float]],
    pipe: Any,
    dense: Sequence[Picture],
    reference: Callable[[LayerAnalysis], Candidate],
    tick: Tick,
) -> list[float]:
    """One weight a part: picture error for each unit of predicted denoiser error."""
    count = len(next(iter(gains.values())))
    weights = []
    for index, part in enumerate(parts_of(count)):
        predicted = sum(
            gains[layer.name][index] * layer.error(reference(layer), *part)
            for layer in analysis.layers
            if layer.name in gains
        )
        errors = []
        for picture in dense:
            request = replace(picture.request, config=plan_of(analysis, reference, part))
            errors.append(picture_error(make_picture(pipe, request), picture))
            tick()
        weights.append(sum(errors) / len(errors) / max(predicted, _TINY))
    return weights


def picture_error(picture: Picture, dense: Picture) -> float:
    """Mean squared difference over the variance of the dense picture.

    Of the final latents, so that no rounding to eight bits hides small errors; of the pixels where
    a pipeline does not show its latents.
    """
    made, wanted = (_numbers(each) for each in (picture, dense))
    error = relative_error(made - wanted.mean(), wanted - wanted.mean())
    dtype = torch.float32 if dense.latents is None else dense.latents.dtype
    expect_finite(f"the picture of {picture.request.prompt!r}", [error], dtype)
    return error


def _numbers(picture: Picture) -> Tensor:
    if picture.latents is not None:
        return picture.latents.double().cpu().flatten()
    return torch.from_numpy(numpy.array(picture.image)).double().flatten()


def relative_error(output: Tensor, wanted: Tensor) -> float:
    """Squared difference over squared size."""
    return float((output - wanted).square().sum() / wanted.square().sum().clamp_min(1e-30))
