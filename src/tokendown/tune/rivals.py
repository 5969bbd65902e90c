"""What a tuned plan is compared with: the presets, and tomesd where it is installed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from .._errors import NothingPatchedError
from ..adapters.skeleton import on_meta
from ..analyze.measures import Candidate
from ..config import AUTO_ANCHORS, PatchConfig
from ..counting import counted_flops
from ..generate import summary_of
from ..inputs import denoiser_inputs
from ..methods import Method, finest_level, merged
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


def tomes(pipe: Any, factor: int) -> list[Method]:
    """At as many kept tokens as the factor, and at its default; none where it cannot run."""
    try:
        import tomesd  # noqa: F401
    except ImportError:
        return []
    if not hasattr(pipe, "unet"):
        return []
    settings = [(1 - 1 / factor**2, factor), (0.5, 2)]
    return [Method(f"tomesd {each[0]:.4g}", tomesd=each) for each in settings]


def tome_speedup(pipe: Any, tome: Method, height: int, width: int) -> float | None:
    """Dense over patched FLOPs of one call, counted on the skeleton; None if it cannot be."""
    assert tome.tomesd is not None, "the caller asks for no other method"
    ratio, stride = tome.tomesd
    scale = spatial_scale(pipe)
    model: Any = on_meta(find_denoisers(pipe)[0])
    merge = partial(merged, ratio=ratio, stride=stride, level=finest_level(model))
    inputs = denoiser_inputs(model, height // scale, width // scale, batch=2, device="meta")
    dense, fewer = counted_flops(model, inputs), counted_flops(model, inputs, merge)
    return dense / fewer if dense and fewer else None
