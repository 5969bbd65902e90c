"""The two questions that are asked of this folder, for any denoiser that it knows."""

from __future__ import annotations

from typing import Any

import torch

from .._errors import UnsupportedModelError
from .image_transformers import IMAGE_TRANSFORMERS, PACKED, UNPACKED
from .unets import UNETS
from .video_transformers import VIDEO_TRANSFORMERS
from .zeros import Zeros

_INPUTS = {**UNETS, **IMAGE_TRANSFORMERS, **VIDEO_TRANSFORMERS}


def denoiser_inputs(
    model: Any,
    height: int,
    width: int,
    *,
    batch: int = 2,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    frames: int | None = None,
) -> dict[str, Any]:
    """Keyword arguments of ``model.forward``.

    Args:
        model: a denoiser of a family in this table.
        height: of the latent.
        width: of the latent.
        batch: 2 is one image with classifier-free guidance.
        device: of the tensors.
        dtype: of the tensors that are not indices.
        frames: of the latent of a video model; None means a usual number.

    Raises:
        UnsupportedModelError: the family, or a conditioning of this model, has no entry.
    """
    for base in type(model).__mro__:
        if base.__name__ in _INPUTS:
            make = Zeros(batch, torch.device(device), dtype, frames)
            return _INPUTS[base.__name__](model.config, make, height, width)
    raise UnsupportedModelError(f"no example inputs are known for {type(model).__name__}")


def token_shapes(model: Any, height: int, width: int) -> tuple[tuple[int, int, int], ...] | None:
    """(frames, height, width) in tokens of the FLUX family, whose positions are values to read.

    Args:
        model: a denoiser.
        height: of the latent.
        width: of the latent.
    """
    kinds = {base.__name__ for base in type(model).__mro__}
    if kinds & PACKED:
        return ((1, height // 2, width // 2),)
    return ((1, height, width),) if kinds & UNPACKED else None
