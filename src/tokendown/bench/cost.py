"""FLOPs of a method: calculated where the kept keys say it all, else counted without weights."""

from __future__ import annotations

from typing import Any

from ..counting import counted_flops
from ..flops import self_attention_flops
from .methods import Method, Scene


def predicted_flops(method: Method, scene: Scene, inputs: dict[str, Any]) -> int | None:
    """Of one denoiser call; None where a method cannot be counted on the meta device.

    Args:
        method: made for the scene.
        scene: of a skeleton.
        inputs: of the skeleton.
    """
    if method.keys is None:
        return counted_flops(scene.model, inputs, method.apply)
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
