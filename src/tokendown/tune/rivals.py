"""What a tuned plan is compared with: the presets, and tomesd where it is installed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from .._errors import NothingPatchedError
from ..adapters.inputs import denoiser_inputs
from ..adapters.skeleton import on_meta
from ..analyze.measures import Candidate
from ..config import AUTO_ANCHORS, PatchConfig
from ..counting import counted_flops
from ..generate import summary_of
from ..methods import finest_level
from ..methods import merged as merge
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
        return merge(denoiser, self.ratio, self.stride, finest_level(denoiser))


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
    model: Any = on_meta(find_denoisers(pipe)[0])
    inputs = denoiser_inputs(model, height // scale, width // scale, batch=2, device="meta")
    dense, merged = counted_flops(model, inputs), counted_flops(model, inputs, tome.on)
    return dense / merged if dense and merged else None
