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
        patch: latent pixels a token, per side, where no ``patch_size`` of ``config`` says it.
        size: usual (width, height) in pixels of a video model; as many frames as
            :mod:`tokendown.inputs` gives it. None means that a size has to be given.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    scale: int = 8
    stacks: Mapping[str, str] = field(default_factory=dict)
    patch: int | None = None
    size: tuple[int, int] | None = None

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
        _fill_plain_tables(model, device, generator)
        return model

    def _check(self, blocks: int) -> None:
        if not self.stacks:
            raise ConfigError(f"{self.name} has no stack of equal blocks; leave out --blocks")
        deepest = max(self.depths.values())
        if not 1 <= blocks <= deepest:
            raise ConfigError(f"{self.name}: expected 1 to {deepest} blocks, got {blocks}")


def _fill_plain_tables(model: nn.Module, device: torch.device, generator: torch.Generator) -> None:
    """Position tables that are plain attributes, which ``to_empty`` leaves on meta (Qwen-Image)."""
    for module in model.modules():
        for name, table in list(vars(module).items()):
            if isinstance(table, torch.Tensor) and table.is_meta:
                made = torch.randn(
                    table.shape, dtype=table.dtype, device=device, generator=generator
                )
                setattr(module, name, made)


_FLUX_STACKS = {
    "transformer_blocks": "num_layers",
    "single_transformer_blocks": "num_single_layers",
}
_SD3 = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
_WAN_STACK = {"blocks": "num_layers"}
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
        Shape(
            "flux",
            "FluxTransformer2DModel",
            {
                "in_channels": 64,
                "num_layers": 19,
                "num_single_layers": 38,
                "num_attention_heads": 24,
                "attention_head_dim": 128,
                "joint_attention_dim": 4096,
                "pooled_projection_dim": 768,
                "guidance_embeds": True,
            },
            stacks=_FLUX_STACKS,
            patch=2,  # which the pipeline cuts
        ),
        Shape("sd3", "SD3Transformer2DModel", _SD3),  # its last block differs
        Shape(
            "sd35-medium",
            "SD3Transformer2DModel",
            {
                **_SD3,
                "pos_embed_max_size": 384,
                "qk_norm": "rms_norm",
                "dual_attention_layers": tuple(range(13)),
            },
        ),
        Shape(
            "qwen-image",
            "QwenImageTransformer2DModel",
            {
                "in_channels": 64,
                "out_channels": 16,
                "num_layers": 60,
                "num_attention_heads": 24,
                "attention_head_dim": 128,
                "joint_attention_dim": 3584,
                "axes_dims_rope": (16, 56, 56),
            },
            stacks={"transformer_blocks": "num_layers"},
            patch=2,
        ),
        Shape(
            "z-image",
            "ZImageTransformer2DModel",
            {"n_layers": 30, "dim": 3840, "n_heads": 30, "n_kv_heads": 30, "cap_feat_dim": 2560},
            stacks={"layers": "n_layers"},
            patch=2,
        ),
        Shape(
            "wan-1.3b",
            "WanTransformer3DModel",
            {"num_layers": 30, "num_attention_heads": 12, "ffn_dim": 8960},
            stacks=_WAN_STACK,
            patch=2,
            size=(1280, 720),
        ),
        Shape(
            "wan-14b",
            "WanTransformer3DModel",
            {"num_layers": 40, "num_attention_heads": 40, "ffn_dim": 13824},
            stacks=_WAN_STACK,
            patch=2,
            size=(1280, 720),
        ),
        Shape(
            "hunyuan-video",
            "HunyuanVideoTransformer3DModel",
            {"num_layers": 20, "num_single_layers": 40, "guidance_embeds": True},
            stacks=_FLUX_STACKS,
            patch=2,
            size=(1280, 720),
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
