"""What a tuned plan is compared with: the presets, and tomesd where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch

from .._errors import NothingPatchedError
from ..adapters.inputs import denoiser_inputs
from ..adapters.skeleton import on_meta
from ..analyze.measures import Candidate
from ..config import AUTO_ANCHORS, PatchConfig
from ..generate import summary_of
from ..methods import finest_level, merged
from ..patch import find_denoisers
from ..request import Request
from ..scales import spatial_scale
from ..summary import Summary
from .effects import candidate_of


@dataclass(frozen=True)
class Rival:
    """A patch by one rule for all layers.

    Attributes:
        name: for people.
        config: its options.
        summary: what it does at the size in question.
    """

    name: str
    config: PatchConfig
    summary: Summary

    @property
    def candidates(self) -> dict[str, Candidate]:
        """What each layer keeps, by name."""
        return {
            layer.name: candidate_of(self.config, layer.factor) for layer in self.summary.layers
        }


def presets(pipe: Any, request: Request) -> dict[str, Rival]:
    """ "paper" and "auto" where they change something at this size, else their nearest kin."""
    found = {}
    for key, config, instead in (
        ("paper", PatchConfig(preset="paper"), PatchConfig(preset="paper", factor=2)),
        ("auto", PatchConfig(), PatchConfig(factor=2, anchors=AUTO_ANCHORS)),
    ):
        name, chosen = key, config
        try:
            what = summary_of(pipe, replace(request, config=config))
        except NothingPatchedError:
            what = None
        if what is None or not what.changes_anything:
            name, chosen = f"{key}'s way, factor 2", instead
            what = summary_of(pipe, replace(request, config=instead))
        found[key] = Rival(name, chosen, what)
    return found


# tomesd


@dataclass(frozen=True)
class Tome:
    """tomesd at one setting; it merges the tokens of the finest level.

    Attributes:
        ratio: part of the tokens that is merged.
        stride: of its destination tokens, per side.
    """

    ratio: float
    stride: int

    @property
    def name(self) -> str:
        return f"tomesd {self.ratio:.4g}"

    def on(self, model: Any) -> AbstractContextManager[None]:
        """Applied to a U-Net, or that of a pipeline, for as long as the block runs."""
        denoiser = find_denoisers(model)[0]
        return merged(denoiser, self.ratio, self.stride, finest_level(denoiser))


def tomes(pipe: Any, factor: int) -> list[Tome]:
    """At as many kept tokens as the factor, and at its default; none where it cannot run."""
    try:
        import tomesd  # noqa: F401
    except ImportError:
        return []
    if not hasattr(pipe, "unet"):
        return []
    return [Tome(1 - 1 / factor**2, factor), Tome(0.5, 2)]


def tome_speedup(pipe: Any, tome: Tome, height: int, width: int) -> float | None:
    """Dense over patched FLOPs of one call, counted on the skeleton; None if it cannot be."""
    scale = spatial_scale(pipe)

    def count(patched: Callable[[Any], Any] | None) -> int:
        from torch.utils.flop_counter import FlopCounterMode

        model: Any = on_meta(find_denoisers(pipe)[0])
        inputs = denoiser_inputs(model, height // scale, width // scale, batch=2, device="meta")
        first = [inputs.pop("sample"), inputs.pop("timestep")]  # it reads the positional ones
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            if patched is None:
                model(*first, **inputs)
            else:
                with patched(model):
                    model(*first, **inputs)
        return int(counter.get_total_flops())

    try:
        return count(None) / count(tome.on)
    except (NotImplementedError, RuntimeError, KeyError):
        return None
