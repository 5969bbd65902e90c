"""What each option of a layer costs: FLOPs as predicted, or seconds as measured here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..adapters import families
from ..adapters.skeleton import Cost
from ..analyze import Analysis
from ..analyze.measures import DENSE, Candidate
from ..config import in_window
from ..models.sources import synchronize
from ..patch import apply_patch
from ..summary import layer_at
from .effects import Calls, Uniform, Window, plan_of

_ROUNDS = 3

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Costs:
    """Of one call of the denoiser, in one unit.

    Attributes:
        unit: "FLOPs" or "seconds".
        whole: of the dense call.
        layers: name to candidate to cost.
    """

    unit: str
    whole: float
    layers: Mapping[str, Mapping[Candidate, float]]

    def of(self, name: str, candidate: Candidate, window: Window, steps: int) -> float:
        """A layer over the whole schedule, dense outside the window."""
        dense, coarse = self.layers[name][DENSE], self.layers[name][candidate]
        active = sum(in_window(step, steps, *window) for step in range(steps))
        return active * coarse + (steps - active) * dense


def predicted(analysis: Analysis, denoiser: Any, cost: Cost) -> Costs:
    """FLOPs, as in a summary.

    Args:
        analysis: of the denoiser.
        denoiser: not patched.
        cost: of one dense call, at the size of the analysis.
    """
    dense = families.make_plan(denoiser, None)
    found: dict[str, dict[Candidate, float]] = {
        layer.name: {DENSE: layer_at(dense, layer, cost).flops_before} for layer in dense.layers
    }
    known = {layer.name: layer.errors for layer in analysis.layers}
    for candidate in dict.fromkeys(pair for errors in known.values() for pair in errors):
        plan = families.make_plan(denoiser, plan_of(analysis, Uniform(candidate)))
        for layer in plan.layers:
            if candidate in known.get(layer.name, ()):
                found[layer.name][candidate] = layer_at(plan, layer, cost).flops_after
    return Costs("FLOPs", cost.flops, found)


def measured(analysis: Analysis, calls: Calls) -> Costs:
    """Seconds of each attention module, in replayed calls; the median of three rounds."""
    candidates = [DENSE, *sorted({pair for layer in analysis.layers for pair in layer.errors})]
    modules = {layer.name: calls.denoiser.get_submodule(layer.name) for layer in analysis.layers}
    device = next(calls.denoiser.parameters()).device
    found: dict[str, dict[Candidate, list[float]]] = {name: {} for name in modules}
    whole: list[float] = []
    for _ in range(_ROUNDS):  # every round has all of them: a slow minute hits all alike
        for candidate in candidates:
            with ExitStack() as stack:
                if candidate != DENSE:
                    plan = plan_of(analysis, Uniform(candidate))
                    stack.enter_context(apply_patch(calls.denoiser, plan))
                watch = stack.enter_context(Stopwatch(modules, device))
                seconds = watch.time(calls)
            if candidate == DENSE:
                whole.append(seconds)
            for layer in analysis.layers:
                if candidate == DENSE or candidate in layer.errors:
                    found[layer.name].setdefault(candidate, []).append(watch.seconds[layer.name])
    return Costs(
        "seconds",
        median(whole),
        {
            name: {pair: median(all_) for pair, all_ in pairs.items()}
            for name, pairs in found.items()
        },
    )


class Stopwatch:
    """Times modules while a ``with`` block runs; on a GPU it waits for every one of them.

    Args:
        modules: by name.
        device: that they are on.

    Attributes:
        seconds: spent in each.
    """

    def __init__(self, modules: Mapping[str, nn.Module], device: torch.device) -> None:
        self.modules = modules
        self.device = device
        self.seconds = dict.fromkeys(modules, 0.0)
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for name, module in self.modules.items():
            # The norms of a patched layer are outside: they are no part of what grows with keys.
            self._handles.append(
                module.register_forward_pre_hook(lambda *_, n=name: self._begin(n))
            )
            self._handles.append(module.register_forward_hook(lambda *_, n=name: self._end(n)))
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def time(self, calls: Calls) -> float:
        """Seconds of the first kept call as a whole."""
        begin = self._now()
        calls.replay(0)
        return self._now() - begin

    def _begin(self, name: str) -> None:
        self.seconds[name] -= self._now()

    def _end(self, name: str) -> None:
        self.seconds[name] += self._now()

    def _now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()
