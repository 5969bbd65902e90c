"""Published architectures with random weights: speed needs shapes, not training.

An architecture is an entry of ``SHAPES``. One that is too large for a small machine names its
stacks of equal blocks, so that a few blocks can be timed and the rest calculated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .._errors import ConfigError
from ..adapters.skeleton import build_on_meta


@dataclass(frozen=True)
class Shape:
    """One published architecture.

    Args:
        name: as typed.
        kind: class name in diffusers.
        config: of that class, where it differs from the class's defaults.
        scale: pixels a latent pixel, per side.
        stacks: attribute of the model that holds a stack of equal blocks, to the entry of
            ``config`` that sets their number; empty where the blocks are not all alike.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    scale: int = 8
    stacks: Mapping[str, str] = field(default_factory=dict)

    @property
    def depths(self) -> dict[str, int]:
        """Published number of blocks of each stack."""
        return {stack: int(self.config[entry]) for stack, entry in self.stacks.items()}

    def on_meta(self, blocks: int | None = None) -> Any:
        """The architecture without weights.

        Args:
            blocks: how many of each stack; None means all.

        Raises:
            ConfigError: it has no stacks, or ``blocks`` is out of range.
        """
        import diffusers

        config = dict(self.config)
        if blocks is not None:
            self._check(blocks)
            for entry in self.stacks.values():
                config[entry] = min(blocks, config[entry])
        return build_on_meta(getattr(diffusers, self.kind), config)

    def with_random_weights(
        self, device: torch.device, dtype: torch.dtype, blocks: int | None = None
    ) -> Any:
        """Built on meta, then filled: normal weights of the usual scale, the same every time."""
        # torch's own `to`: diffusers' remarks on it
        model: Any = nn.Module.to(self.on_meta(blocks), dtype).to_empty(device=device)
        model.requires_grad_(False)
        generator = torch.Generator(device).manual_seed(0)
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 1 / math.sqrt(weight[0].numel()), generator=generator)
            else:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)
        for table in model.buffers():  # of positions; left alone it would be whatever was in memory
            if table.is_floating_point():
                table.normal_(generator=generator)
        return model

    def _check(self, blocks: int) -> None:
        if not self.stacks:
            raise ConfigError(f"{self.name} has no stack of equal blocks; leave out --blocks")
        deepest = max(self.depths.values())
        if not 1 <= blocks <= deepest:
            raise ConfigError(f"{self.name}: expected 1 to {deepest} blocks, got {blocks}")


_SDXL_LEVELS = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")

SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            "sd15",
            "UNet2DConditionModel",
            {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        ),
        Shape(
            "sd21",
            "UNet2DConditionModel",
            {
                "sample_size": 96,
                "cross_attention_dim": 1024,
                "attention_head_dim": (5, 10, 20, 20),
                "use_linear_projection": True,
            },
        ),
        Shape(
            "sdxl",
            "UNet2DConditionModel",
            {
                "sample_size": 128,
                "block_out_channels": (320, 640, 1280),
                "down_block_types": _SDXL_LEVELS,
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "transformer_layers_per_block": (1, 2, 10),
                "attention_head_dim": (5, 10, 20),
                "cross_attention_dim": 2048,
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
        ),
        Shape(
            "pixart-sigma",
            "PixArtTransformer2DModel",
            {
                "sample_size": 128,
                "num_layers": 28,
                "num_attention_heads": 16,
                "attention_head_dim": 72,
                "in_channels": 4,
                "out_channels": 8,
                "patch_size": 2,
                "cross_attention_dim": 1152,
                "caption_channels": 4096,
                "interpolation_scale": 2,
                "use_additional_conditions": False,
            },
            stacks={"transformer_blocks": "num_layers"},
        ),
    )
}


def find_shape(name: str) -> Shape:
    """The entry of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SHAPES:
        raise ConfigError(f"expected a shape of {', '.join(SHAPES)}, got {name!r}")
    return SHAPES[name]
