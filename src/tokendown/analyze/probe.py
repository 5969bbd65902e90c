"""Looks on while a dense denoiser runs, and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._errors import ConfigError, UnsupportedModelError
from ..adapters import families
from ..adapters.plan import Layer
from ..attention import vector_norm
from ..patch import is_patched
from .measures import Candidate, attended, lowest_similarity, sample_queries, sink_measures

if TYPE_CHECKING:
    from typing_extensions import Self


class LayerProbe:
    """Measures one layer at every call.

    Args:
        layer: whose grid is known when it runs.
        attention: its module.
        candidates: (factor, anchors) pairs whose error is wanted.
        queries: how many are looked at.
        order: gets the name of every layer when it first runs.

    Attributes:
        calls: one dict of measures for each call.
        errors: likewise, one error for each candidate.
        received: likewise, [N].
    """

    def __init__(
        self,
        layer: Layer,
        attention: Any,
        candidates: Sequence[Candidate],
        queries: int,
        order: list[str],
    ) -> None:
        self.layer, self.attention, self.order = layer, attention, order
        self.candidates, self.queries = candidates, queries
        self.scores: Tensor | None = None
        self.calls: list[dict[str, float]] = []
        self.errors: list[dict[Candidate, float]] = []
        self.received: list[Tensor] = []

    def usable(self) -> list[Candidate]:
        """The candidates that leave this grid more than a handful of keys."""
        grid = self.layer.grid
        return [(f, a) for f, a in self.candidates if grid.coarse(f).tokens >= LEAST_KEYS]

    def note_scores(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = args[0] if args else next(iter(kwargs.values()))
        self.scores = vector_norm(tokens)

    @torch.no_grad()
    def measure(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens: Tensor = args[0] if args else kwargs["hidden_states"]
        if not self.calls:
            self.order.append(self.layer.name)
        grid = self.layer.grid
        scores = vector_norm(tokens) if self.scores is None else self.scores
        similarity = lowest_similarity(tokens, grid)
        sample = sample_queries(grid.tokens, self.queries)
        seen = attended(self.attention, tokens, scores, grid, self.usable(), sample)
        self.calls.append(
            {
                "similarity": float(similarity.mean()),
                "similarity_low": float(similarity.quantile(0.05)),
                "entropy": seen.entropy,
                **sink_measures(seen.received, scores.mean(0), grid),
            }
        )
        self.errors.append(seen.errors)
        self.received.append(seen.received.cpu())


LEAST_KEYS = 16
"""A coarse grid with fewer keys saves nothing worth having."""


class Probe:
    """A :class:`LayerProbe` on every self-attention layer, for as long as a ``with`` block runs.

    Args:
        model: a dense denoiser.
        candidates: (factor, anchors) pairs.
        queries: how many each layer looks at.

    Attributes:
        layers: one probe a layer; after the run in the order in which they ran.
        times: the timestep of every call.

    Raises:
        ConfigError: the model is patched.
        UnsupportedModelError: no layer of it can be looked into.
    """

    def __init__(self, model: Any, candidates: Sequence[Candidate], queries: int) -> None:
        if is_patched(model):
            raise ConfigError("an analysis looks at a dense model; call remove_patch first")
        self.model = model
        self.times: list[float] = []
        self._order: list[str] = []
        plan = self._plan = families.make_plan(model, None)
        by_name = {layer.name: layer for layer in plan.layers}
        found = [
            (LayerProbe(by_name[name], module, candidates, queries, self._order), norm, module)
            for site in families.find_sites(model)
            for name, norm, module in families.self_attention(site)
            if not by_name[name].reason and hasattr(module, "to_q")
        ]
        if not found:
            raise UnsupportedModelError(
                f"{type(model).__name__} has no self-attention that an analysis can look into"
            )
        self.layers = [probe for probe, _, _ in found]
        self._modules = [(norm, module) for _, norm, module in found]
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        families.install(self.model, self._plan)  # without rules it reads grids only
        add = self._handles.append
        add(self.model.register_forward_pre_hook(self._note_time, with_kwargs=True))
        for probe, (norm, module) in zip(self.layers, self._modules, strict=True):
            add(norm.register_forward_pre_hook(probe.note_scores, with_kwargs=True))
            add(module.register_forward_pre_hook(probe.measure, with_kwargs=True))
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()
        families.uninstall(self.model)
        if len(self._order) == len(self.layers):  # else it was interrupted
            self.layers.sort(key=lambda probe: self._order.index(probe.layer.name))

    def _note_time(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        time = kwargs.get("timestep", args[1] if len(args) > 1 else float("nan"))
        self.times.append(float(torch.as_tensor(time).flatten()[0]))
