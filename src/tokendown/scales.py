"""How many pixels and frames a latent stands for, as the pipeline or its VAE says.

Pipelines and VAEs of diffusers call the same two numbers by many names; this is the one list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_SPATIAL = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_spatial_scale_factor",
            "vae_scale_factor")  # fmt: skip
_TEMPORAL = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio",
             "vae_temporal_scale_factor")  # fmt: skip
CODERS = ("vae", "vqvae", "movq")
# Places of a latent a side that a pipeline makes one of, before its denoiser sees a map of them.
PACKED = {"ErnieImageTransformer2DModel": 2}


def spatial_scale(pipe: Any) -> int:
    """Pixels a latent pixel, per side; 8 where nothing says it, as in Stable Diffusion.

    The VAE comes first: some pipelines (Bria, Z-Image in modules) count the packing by their
    transformer in a number of the same name.
    """
    coder = _scale_of_coder(pipe)
    kind = type(getattr(pipe, "transformer", None)).__name__
    return (coder and coder * PACKED.get(kind, 1)) or _first(pipe, _SPATIAL) or _without_coder(pipe)


def _scale_of_coder(pipe: Any) -> int | None:
    coders = (getattr(pipe, name, None) for name in CODERS)
    settings = next((getattr(coder, "config", None) for coder in coders if coder is not None), None)
    return scales_of_vae(settings)[0] if isinstance(settings, Mapping) else None


def _without_coder(pipe: Any) -> int:
    """1 where a pipeline is made without a VAE: it works on pixels."""
    pixels = hasattr(pipe, "components") and not any(hasattr(pipe, name) for name in CODERS)
    return 1 if pixels else 8


def temporal_scale(pipe: Any) -> int:
    """Frames a latent frame; 1 where the pipeline's VAE sees frames one by one."""
    return _first(pipe, _TEMPORAL) or 1


def latent_frames(frames: int, scale: int) -> int:
    """Of a causal video VAE: the first frame is a latent frame of its own."""
    return (frames - 1) // scale + 1


def scales_of_vae(settings: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Pixels and frames a latent pixel and frame, from a VAE's configuration; None: not said.

    Args:
        settings: its ``config.json``, completed by the defaults of its class.
    """
    halvings = settings.get("temperal_downsample")  # the name in diffusers: Wan, Qwen-Image
    levels = settings.get("block_out_channels") or settings.get("encoder_block_out_channels")
    spatial = settings.get("scale_factor_spatial") or settings.get("spatial_compression_ratio")
    temporal = settings.get("scale_factor_temporal") or settings.get("temporal_compression_ratio")
    if spatial is None and halvings:
        spatial = 2 ** len(halvings)
    if "spatio_temporal_scaling" in settings:  # LTX
        both = 2 ** sum(settings["spatio_temporal_scaling"])
        spatial = spatial or both * settings["patch_size"]
        temporal = temporal or both * settings["patch_size_t"]
    if "temporal_expansions" in settings:  # Mochi
        temporal = math.prod(settings["temporal_expansions"])
    if spatial is None and levels:
        spatial = 2 ** (len(levels) - 1)
    return spatial, temporal


def _first(pipe: Any, names: tuple[str, ...]) -> int | None:
    found = (getattr(pipe, name, None) for name in names)
    return next((int(value) for value in found if value), None)
