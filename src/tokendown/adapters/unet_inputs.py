"""Inputs of one call of a U-Net or of its ControlNet: zeros."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._errors import UnsupportedModelError
from .zeros import Maker, Zeros

TEXT_TOKENS = 77  # of CLIP


def _text(config: Any, zeros: Zeros) -> Tensor:
    width = config.cross_attention_dim
    if not isinstance(width, int):
        width = width[0]
    return zeros(TEXT_TOKENS, getattr(config, "encoder_hid_dim", None) or width)


def _unet(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "sample": zeros(config.in_channels, height, width),
        "timestep": zeros.integers(),
        "encoder_hidden_states": _text(config, zeros),
    }
    addition = getattr(config, "addition_embed_type", None)
    if addition == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": zeros(pooled), "time_ids": zeros(6)}
    elif addition == "time":  # DreamLite
        count = config.projection_class_embeddings_input_dim // config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"time_ids": zeros(count)}
    # "text" needs no input of its own: it pools what cross-attention gets
    elif addition not in (None, "text") or getattr(config, "encoder_hid_dim_type", None) not in (
        None,
        "text_proj",
        "text_proj_rms",
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


def _controlnet(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    scale = 2 ** (len(config.conditioning_embedding_out_channels) - 1)
    condition = zeros(config.conditioning_channels, height * scale, width * scale)
    return {**_unet(config, zeros, height, width), "controlnet_cond": condition}


def _video_unet(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    frames = min(zeros.frames, getattr(config, "motion_max_seq_length", zeros.frames))
    return {
        **_unet(config, zeros, height, width),
        "sample": zeros(config.in_channels, frames, height, width),
    }


def _motion_unet(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    inputs = _video_unet(config, zeros, height, width)
    # AnimateDiff repeats the prompt for every frame
    frames = inputs["sample"].shape[2]
    inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"].repeat(frames, 1, 1)
    return inputs


def _image_to_video_unet(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    return {
        **_video_unet(config, zeros, height, width),
        "fps": zeros.integers(),
        "image_latents": zeros(config.in_channels, zeros.frames, height, width),
        "image_embeddings": zeros(config.cross_attention_dim),
    }


def _stable_video(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    time_ids = config.projection_class_embeddings_input_dim // config.addition_time_embed_dim
    return {
        "sample": zeros(zeros.frames, config.in_channels, height, width),
        "timestep": zeros.integers(),
        "encoder_hidden_states": zeros(1, config.cross_attention_dim),
        "added_time_ids": zeros(time_ids),
    }


UNETS: dict[str, Maker] = {
    "UNet2DConditionModel": _unet,
    "UNetMotionModel": _motion_unet,
    "UNetSpatioTemporalConditionModel": _stable_video,
    "UNet3DConditionModel": _video_unet,
    "I2VGenXLUNet": _image_to_video_unet,
    "ControlNetModel": _controlnet,
}
