"""Inputs of one call of a U-Net or of its ControlNet: zeros."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._errors import UnsupportedModelError
from .zeros import Maker, Zeros

TEXT_TOKENS = 77  # of CLIP
KANDINSKY_TOKENS = 128  # of T5, the most that its pipeline takes


def _text(config: Any, zeros: Zeros) -> Tensor:
    width = config.cross_attention_dim
    if not isinstance(width, int):
        width = width[0]
    return zeros(TEXT_TOKENS, getattr(config, "encoder_hid_dim", None) or width)


def _pooled(config: Any, zeros: Zeros) -> dict[str, Any]:
    """What SDXL is told besides the text."""
    if getattr(config, "addition_embed_type", None) != "text_time":
        return {}
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return {"added_cond_kwargs": {"text_embeds": zeros(pooled), "time_ids": zeros(6)}}


def _class(config: Any, zeros: Zeros) -> dict[str, Any]:
    kind = getattr(config, "class_embed_type", None)
    if kind in ("timestep", "identity", "projection"):
        raise UnsupportedModelError(
            f"no example inputs are known for class embeddings of type {kind!r}"
        )
    labelled = getattr(config, "num_class_embeds", None) is not None
    return {"class_labels": zeros.integers()} if labelled else {}


def _unet(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "sample": zeros(config.in_channels, height, width),
        "timestep": zeros.integers(),
        "encoder_hidden_states": _text(config, zeros),
    }
    inputs |= _pooled(config, zeros)
    addition = getattr(config, "addition_embed_type", None)
    if addition == "time":  # DreamLite
        count = config.projection_class_embeddings_input_dim // config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"time_ids": zeros(count)}
        # its pipelines put the picture to edit, or none, beside the noise
        inputs["sample"] = zeros(config.in_channels, height, 2 * width)
    # "text" needs no input of its own: it pools what cross-attention gets
    projected = getattr(config, "encoder_hid_dim_type", None)
    if addition not in (None, "text", "text_time", "time") or (
        projected not in (None, "text_proj", "text_proj_rms")
    ):
        raise UnsupportedModelError(
            f"no example inputs are known for the conditioning {addition!r}"
        )
    return {**inputs, **_class(config, zeros)}


def _controlnet(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    scale = 2 ** (len(config.conditioning_embedding_out_channels) - 1)
    condition = zeros(config.conditioning_channels, height * scale, width * scale)
    return {**_unet(config, zeros, height, width), "controlnet_cond": condition}


def _controlnet_union(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    inputs = _controlnet(config, zeros, height, width)
    return {
        **inputs,
        "controlnet_cond": [inputs["controlnet_cond"]],  # one condition, of the first kind
        "control_type": zeros(config.num_control_type),
        "control_type_idx": [0],
    }


def _controlnet_xs(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    scale = 2 ** (len(config.ctrl_conditioning_embedding_out_channels) - 1)
    inputs = {
        "sample": zeros(4, height, width),  # fixed in the model
        "timestep": zeros.integers(),
        "encoder_hidden_states": _text(config, zeros),
        "controlnet_cond": zeros(config.ctrl_conditioning_channels, height * scale, width * scale),
    }
    return {**inputs, **_pooled(config, zeros)}


def _sparse_controlnet(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    frames = min(zeros.frames, config.motion_max_seq_length)
    scale = 2 ** (len(config.conditioning_embedding_out_channels) - 1)
    if config.use_simplified_condition_embedding:  # the condition is a latent
        scale = 1
    size = (frames, height * scale, width * scale)
    inputs = {
        "sample": zeros(config.in_channels, frames, height, width),
        "timestep": zeros.integers(),
        "encoder_hidden_states": _text(config, zeros).repeat(frames, 1, 1),
        "controlnet_cond": zeros(config.conditioning_channels, *size),
    }
    if config.concat_conditioning_mask:
        inputs["conditioning_mask"] = zeros(1, *size)
    return inputs


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


def _unconditional_unet(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    inputs = {"sample": zeros(config.in_channels, height, width), "timestep": zeros.integers()}
    return {**inputs, **_class(config, zeros)}


def _kandinsky3(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    return {
        "sample": zeros(config.in_channels, height, width),
        "timestep": zeros.integers(),
        "encoder_hidden_states": zeros(KANDINSKY_TOKENS, config.encoder_hid_dim),
        "encoder_attention_mask": zeros(KANDINSKY_TOKENS),
    }


def _uvit(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    sizes = config.micro_cond_embed_dim // config.micro_cond_encode_dim
    return {
        "input_ids": zeros.integers(height, width),
        "encoder_hidden_states": zeros(TEXT_TOKENS, config.encoder_hidden_size),
        "pooled_text_emb": zeros(config.cond_embed_dim),
        "micro_conds": zeros(sizes),
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
    "UNet2DModel": _unconditional_unet,
    "Kandinsky3UNet": _kandinsky3,
    "UVit2DModel": _uvit,
    "ControlNetModel": _controlnet,
    "ControlNetUnionModel": _controlnet_union,
    "SparseControlNetModel": _sparse_controlnet,
    "UNetControlNetXSModel": _controlnet_xs,
}
