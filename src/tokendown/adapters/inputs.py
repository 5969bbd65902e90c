"""Inputs of one denoiser call at a given size, for counting FLOPs and for timing.

Values are zeros: cost depends on shapes only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._errors import UnsupportedModelError

TEXT_TOKENS = 77  # of CLIP; PixArt's T5 prompts are longer, but cross-attention is a small part
FRAMES = 14


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
            make = _Zeros(batch, torch.device(device), dtype, frames)
            return _INPUTS[base.__name__](model.config, make, height, width)
    raise UnsupportedModelError(f"no example inputs are known for {type(model).__name__}")


class _Zeros:
    """Tensors [batch, ...] on one device."""

    def __init__(
        self, batch: int, device: torch.device, dtype: torch.dtype, frames: int | None = None
    ) -> None:
        self.batch, self.device, self.dtype = batch, device, dtype
        self.frames = frames or FRAMES

    def __call__(self, *shape: int) -> Tensor:
        return torch.zeros(self.batch, *shape, device=self.device, dtype=self.dtype)

    def integers(self, *shape: int) -> Tensor:
        return torch.zeros(self.batch, *shape, device=self.device, dtype=torch.long)


def _text(config: Any, zeros: _Zeros) -> Tensor:
    width = config.cross_attention_dim
    if not isinstance(width, int):
        width = width[0]
    return zeros(TEXT_TOKENS, getattr(config, "encoder_hid_dim", None) or width)


def _unet(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "sample": zeros(config.in_channels, height, width),
        "timestep": zeros.integers(),
        "encoder_hidden_states": _text(config, zeros),
    }
    addition = getattr(config, "addition_embed_type", None)
    if addition == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": zeros(pooled), "time_ids": zeros(6)}
    # "text" needs no input of its own: it pools what cross-attention gets
    elif addition not in (None, "text") or getattr(config, "encoder_hid_dim_type", None) not in (
        None,
        "text_proj",
    ):
        raise UnsupportedModelError(
            f"no example inputs are known for the conditioning {addition!r}"
        )
    if getattr(config, "class_embed_type", None) in ("timestep", "identity", "projection"):
        raise UnsupportedModelError(
            f"no example inputs are known for class embeddings of type {config.class_embed_type!r}"
        )
    if getattr(config, "num_class_embeds", None) is not None:
        inputs["class_labels"] = zeros.integers()
    return inputs


def _controlnet(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    scale = 2 ** (len(config.conditioning_embedding_out_channels) - 1)
    condition = zeros(config.conditioning_channels, height * scale, width * scale)
    return {**_unet(config, zeros, height, width), "controlnet_cond": condition}


def _video_unet(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    frames = min(zeros.frames, getattr(config, "motion_max_seq_length", zeros.frames))
    return {
        **_unet(config, zeros, height, width),
        "sample": zeros(config.in_channels, frames, height, width),
    }


def _motion_unet(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    inputs = _video_unet(config, zeros, height, width)
    # AnimateDiff repeats the prompt for every frame
    frames = inputs["sample"].shape[2]
    inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"].repeat(frames, 1, 1)
    return inputs


def _image_to_video_unet(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    return {
        **_video_unet(config, zeros, height, width),
        "fps": zeros.integers(),
        "image_latents": zeros(config.in_channels, zeros.frames, height, width),
        "image_embeddings": zeros(config.cross_attention_dim),
    }


def _stable_video(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    time_ids = config.projection_class_embeddings_input_dim // config.addition_time_embed_dim
    return {
        "sample": zeros(zeros.frames, config.in_channels, height, width),
        "timestep": zeros.integers(),
        "encoder_hidden_states": zeros(1, config.cross_attention_dim),
        "added_time_ids": zeros(time_ids),
    }


def _pixart(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": zeros(config.in_channels, height, width),
        "timestep": zeros.integers(),
        "encoder_hidden_states": zeros(TEXT_TOKENS, config.caption_channels),
        "added_cond_kwargs": {"resolution": zeros(2), "aspect_ratio": zeros(1)},
    }


def _dit(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": zeros(config.in_channels, height, width),
        "timestep": zeros.integers(),
        "class_labels": zeros.integers(),
    }


_INPUTS: dict[str, Callable[[Any, _Zeros, int, int], dict[str, Any]]] = {
    "UNet2DConditionModel": _unet,
    "UNetMotionModel": _motion_unet,
    "UNetSpatioTemporalConditionModel": _stable_video,
    "UNet3DConditionModel": _video_unet,
    "I2VGenXLUNet": _image_to_video_unet,
    "ControlNetModel": _controlnet,
    "PixArtTransformer2DModel": _pixart,
    "DiTTransformer2DModel": _dit,
}
