"""A denoiser without weights: tells its token grids and its FLOPs at any size, in a second."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..grid import Grid
from .families import install, make_plan
from .inputs import denoiser_inputs


def on_meta(model: Any) -> nn.Module:
    """The same architecture on the meta device, un-patched, without weights."""
    return build_on_meta(type(model), model.config)


def build_on_meta(kind: Any, config: Any) -> nn.Module:
    """A diffusers model class with a configuration, on the meta device."""
    with torch.device("meta"):
        skeleton: nn.Module = kind.from_config(config)
    # some position tables are made by numpy and land on the CPU
    return skeleton.to("meta").eval()


@dataclass(frozen=True)
class Cost:
    """One dense call of a denoiser.

    Attributes:
        flops: of the whole call.
        grids: of each self-attention layer, by name.
        batches: of each self-attention layer, by name; images times frames.
    """

    flops: int
    grids: dict[str, Grid]
    batches: dict[str, int]


def measure(model: Any, height: int, width: int, batch: int, frames: int | None = None) -> Cost:
    """Runs the skeleton of a denoiser once.

    Args:
        model: a supported denoiser; only its class and config are used.
        height: of the latent.
        width: of the latent.
        batch: of the call.
        frames: of the latent of a video model; None means a usual number.

    Raises:
        UnsupportedModelError: no example inputs are known for this model.
    """
    from torch.utils.flop_counter import FlopCounterMode  # slow to import, and rarely needed

    skeleton = on_meta(model)
    inputs = denoiser_inputs(skeleton, height, width, batch=batch, device="meta", frames=frames)
    plan = make_plan(skeleton, None)
    install(skeleton, plan)
    batches: dict[str, int] = {}
    for layer in plan.layers:
        note = partial(_note_batch, batches, layer.name)
        skeleton.get_submodule(layer.name).register_forward_pre_hook(note)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        skeleton(**inputs)
    grids = {layer.name: layer.grid for layer in plan.layers}
    return Cost(counter.get_total_flops(), grids, batches)


def _note_batch(batches: dict[str, int], name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
    batches[name] = args[0].shape[0]
