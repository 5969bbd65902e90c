"""Looks on while a dense denoiser runs, and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._errors import ConfigError, UnsupportedModelError
from ..adapters import families
from ..adapters.classic import key_source, lengths
from ..adapters.joint import check
from ..adapters.joint_plan import JointLayer, JointPlan
from ..adapters.plan import Layer
from ..attention import vector_norm
from ..patch import is_patched
from ..sequence import Box
from .measures import Call, Candidate, attended, expect_finite, lowest_similarity, sink_measures
from .seen import ClassicCall, JointCall, Look, Onlooker

if TYPE_CHECKING:
    from typing_extensions import Self


class LayerProbe:
    """Measures one layer at every call.

    Args:
        layer: whose grid is known when it runs.
        attention: its module.
        candidates: whose error is wanted.
        queries: how many are looked at.
        order: gets the name of every layer when it first runs.

    Attributes:
        box: of its image tokens, in the latest call.
        keys: of the whole sequence, likewise.
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
        joint = isinstance(layer, JointLayer)
        self.candidates = [x for x in candidates if x.method == "nearest" or not joint]
        self.queries = queries
        self.scores: Tensor | None = None
        self.box = Box(1, 1, 1)
        self.keys = 1
        self.calls: list[dict[str, float]] = []
        self.errors: list[dict[Candidate, float]] = []
        self.received: list[Tensor] = []

    def usable(self) -> list[Candidate]:
        """The candidates that leave this grid more than a handful of keys, and fewer than all."""
        kept = {x: replace(self.box, factor=x.factor).kept for x in self.candidates}
        return [x for x, n in kept.items() if LEAST_KEYS <= n < self.box.tokens - x.anchors]

    def note_scores(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.scores = lengths(self.layer, args, kwargs)

    @torch.no_grad()
    def before_classic(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook on a classic module."""
        tokens = key_source(self.attention, args[0] if args else kwargs["hidden_states"])
        grid = self.layer.grid
        scores = vector_norm(tokens) if self.scores is None else self.scores
        call = ClassicCall(self.attention, tokens, scores, grid, self.queries)
        self._measure(tokens, scores, Box(1, grid.height, grid.width), call)

    @torch.no_grad()
    def after_joint(self, tokens: Tensor, look: Look) -> None:
        """Called by an :class:`Onlooker`."""
        sequence = look.sequence
        scores = vector_norm(tokens) if self.scores is None else self.scores
        call = JointCall(self.attention, look, scores, self.queries)
        own = [sequence.first_box(x) for x in (tokens, scores)]
        self._measure(own[0], own[1], sequence.boxes[0], call)

    def _measure(self, tokens: Tensor, scores: Tensor, box: Box, call: Call) -> None:
        """Of the image tokens [B, N, C] of a call."""
        if not self.calls:
            self.order.append(self.layer.name)
        self.box, self.keys = box, call.key.shape[2]
        frames = tokens.unflatten(1, (box.frames, -1)).flatten(0, 1)
        similarity = lowest_similarity(frames, box.grid)
        seen = attended(call, self.usable())
        self.calls.append(
            {
                "similarity": float(similarity.mean()),
                "similarity_low": float(similarity.quantile(0.05)),
                "entropy": seen.entropy,
                **sink_measures(seen.received, scores.mean(0), box),
                **({"text": seen.text} if call.text else {}),
            }
        )
        numbers = [*self.calls[-1].values(), *seen.errors.values()]
        expect_finite(f"self-attention layer {self.layer.name}", numbers, tokens.dtype)
        self.errors.append(seen.errors)
        self.received.append(seen.received.cpu())


LEAST_KEYS = 16
"""A coarse grid with fewer keys saves nothing worth having."""


class Probe:
    """A :class:`LayerProbe` on every self-attention layer, for as long as a ``with`` block runs.

    Args:
        model: a dense denoiser.
        candidates: whose error is wanted.
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
        layers = zip(plan.layers, families.attentions(model), strict=True)
        self._places = [
            (LayerProbe(layer, module, candidates, queries, self._order), norm, module)
            for layer, (_, norm, module) in layers
            if not layer.reason
        ]
        if not self._places:
            raise UnsupportedModelError(
                f"{type(model).__name__} has no self-attention that an analysis can look into"
            )
        self.layers = [probe for probe, _, _ in self._places]
        for probe, _, module in self._places if isinstance(plan, JointPlan) else ():
            check(probe.layer.name, module)
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        families.install(self.model, self._plan)  # without rules it reads grids only
        add = self._handles.append
        add(self.model.register_forward_pre_hook(self._note_time, with_kwargs=True))
        for probe, norm, module in self._places:
            add(norm.register_forward_pre_hook(probe.note_scores, with_kwargs=True))
            if isinstance(self._plan, JointPlan):
                assert isinstance(probe.layer, JointLayer), "all of its layers are"
                Onlooker(module, self._plan, probe.layer, probe.after_joint).install()
            else:
                add(module.register_forward_pre_hook(probe.before_classic, with_kwargs=True))
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()
        families.uninstall(self.model)
        if len(self._order) == len(self.layers):  # else it was interrupted
            self.layers.sort(key=lambda probe: self._order.index(probe.layer.name))

    def _note_time(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = {**dict(zip(("", "timestep"), args, strict=False)), **kwargs}
        time = named.get("timestep", named.get("t", 0.0))
        self.times.append(float(torch.as_tensor(time).flatten()[0]))
