"""FLOPs of a method: calculated where the kept keys say it all, else counted without weights."""

from __future__ import annotations

from typing import Any

import torch

from ..flops import self_attention_flops
from .methods import Method, Scene
from .targets import call


def predicted_flops(method: Method, scene: Scene, inputs: dict[str, Any]) -> int | None:
    """Of one denoiser call; None where a method cannot be counted on the meta device.

    Args:
        method: made for the scene.
        scene: of a skeleton.
        inputs: of the skeleton.
    """
    if method.keys is None:
        return counted_flops(method, scene.model, inputs)
    cost, saved = scene.cost, 0
    for layer in scene.layers:
        if layer.name in method.keys:
            seen, keys = cost.layers[layer.name], method.keys[layer.name]
            before, after = (
                self_attention_flops(
                    seen.tokens, count, layer.channels, layer.inner_dim, layer.key_width
                )
                for count in (seen.tokens, keys)
            )
            saved += seen.batch * (before - (after if keys else 0))
    return cost.flops - saved


def counted_flops(method: Method, model: Any, inputs: dict[str, Any]) -> int | None:
    """As torch counts them while the model runs."""
    from torch.utils.flop_counter import FlopCounterMode  # slow to import

    try:
        with method.apply(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
            call(model, inputs)
    except (NotImplementedError, RuntimeError):  # an operation that the meta device lacks
        return None
    return int(counter.get_total_flops())
