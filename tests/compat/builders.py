"""Tiny models that only the compatibility tests need; the others are in ``tests/tiny.py``."""

from __future__ import annotations

from typing import Any

import diffusers
from tests import tiny


def one_level_unet(seed: int = 0, **options: Any) -> diffusers.UNet2DConditionModel:
    """Three attention blocks at one resolution; the smallest graph to compile."""
    return tiny.sd_unet(
        seed,
        **{
            "block_out_channels": (4,),
            "down_block_types": ("CrossAttnDownBlock2D",),
            "mid_block_type": None,
            "up_block_types": ("CrossAttnUpBlock2D",),
            "attention_head_dim": 1,
            "norm_num_groups": 2,
            **options,
        },
    )
