"""Inputs of one denoiser call at a given size, for FLOPs and timing: zeros, true positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._errors import UnsupportedModelError

TEXT_TOKENS = 77  # of CLIP; PixArt's T5 prompts are longer, but cross-attention is a small part
T5_TOKENS = 512  # the most that FLUX and Wan take, and their default
SD3_TOKENS = 333  # 77 of CLIP and 256 of T5, the pipeline's default
HUNYUAN_TOKENS = 256
FRAMES = 14
WAN_FRAMES = 21  # latent frames of 81 frames
HUNYUAN_FRAMES = 33  # latent frames of 129 frames
LTX_TOKENS = 128
LTX_FRAMES = 21  # latent frames of 161 frames
COGVIDEOX_FRAMES = 13  # latent frames of 49 frames
COGVIEW_TOKENS = 224


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


def token_shapes(model: Any, height: int, width: int) -> tuple[tuple[int, int, int], ...] | None:
    """(frames, height, width) in tokens of the FLUX family, whose positions are values to read.

    Args:
        model: a denoiser.
        height: of the latent.
        width: of the latent.
    """
    if any(base.__name__ in _PACKED for base in type(model).__mro__):
        return ((1, height // 2, width // 2),)
    return None


class _Zeros:
    """Tensors [batch, ...] on one device."""

    def __init__(
        self, batch: int, device: torch.device, dtype: torch.dtype, frames: int | None = None
    ) -> None:
        self.batch, self.device, self.dtype = batch, device, dtype
        self.asked = frames
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


def _places(zeros: _Zeros, rows: int, columns: int, axes: int) -> Tensor:
    """[tokens, axes], row and column in axes 1 and 2."""
    places = zeros(rows, columns, axes)[0]
    places[..., 1] += torch.arange(rows, device=zeros.device)[:, None]
    places[..., 2] += torch.arange(columns, device=zeros.device)
    return places.flatten(0, 1)


def _packed(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    """FLUX: 2 x 2 patches of the latent are cut by the pipeline."""
    tokens = (height // 2) * (width // 2)
    inputs = {
        "hidden_states": zeros(tokens, config.in_channels),
        "encoder_hidden_states": zeros(T5_TOKENS, config.joint_attention_dim),
        "timestep": zeros(),
        "img_ids": _places(zeros, height // 2, width // 2, 3),
        "txt_ids": zeros(T5_TOKENS, 3)[0],
    }
    if getattr(config, "pooled_projection_dim", None):  # Chroma has none
        inputs["pooled_projections"] = zeros(config.pooled_projection_dim)
    if getattr(config, "guidance_embeds", False):
        inputs["guidance"] = zeros()
    return inputs


def _sd3(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": zeros(config.in_channels, height, width),
        "encoder_hidden_states": zeros(SD3_TOKENS, config.joint_attention_dim),
        "pooled_projections": zeros(config.pooled_projection_dim),
        "timestep": zeros(),
    }


def _qwen_image(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    grid = (1, height // 2, width // 2)
    return {
        "hidden_states": zeros(grid[1] * grid[2], config.in_channels),
        "encoder_hidden_states": zeros(T5_TOKENS, config.joint_attention_dim),
        "timestep": zeros(),
        "img_shapes": [[grid]] * zeros.batch,
    }


def _wan(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    frames = zeros.asked or WAN_FRAMES
    inputs = {
        "hidden_states": zeros(config.in_channels, frames, height, width),
        "encoder_hidden_states": zeros(T5_TOKENS, config.text_dim),
        "timestep": zeros(),
    }
    if getattr(config, "image_dim", None):
        inputs["encoder_hidden_states_image"] = zeros(257, config.image_dim)
    if getattr(config, "vace_layers", None):
        inputs["control_hidden_states"] = zeros(config.vace_in_channels, frames, height, width)
    return inputs


def _hunyuan_video(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    inputs = {
        "hidden_states": zeros(config.in_channels, zeros.asked or HUNYUAN_FRAMES, height, width),
        "encoder_hidden_states": zeros(HUNYUAN_TOKENS, config.text_embed_dim),
        "encoder_attention_mask": zeros(HUNYUAN_TOKENS),
        "pooled_projections": zeros(config.pooled_projection_dim),
        "timestep": zeros(),
    }
    if config.guidance_embeds:
        inputs["guidance"] = zeros()
    return inputs


def _flux2(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    inputs = _packed(config, zeros, height, width)
    places = _places(zeros, height // 2, width // 2, 4)
    return {**inputs, "img_ids": places, "txt_ids": zeros(T5_TOKENS, 4)[0]}


def _longcat_image(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    inputs = _packed(config, zeros, height, width)
    del inputs["pooled_projections"]  # the configuration has it, the model does not
    return inputs


def _flux_controlnet(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    if config.num_mode is not None or config.conditioning_embedding_channels is not None:
        raise UnsupportedModelError(
            "no example inputs are known for a FLUX ControlNet with modes or picture conditions"
        )
    inputs = _packed(config, zeros, height, width)
    return {**inputs, "controlnet_cond": zeros((height // 2) * (width // 2), config.in_channels)}


def _sd3_controlnet(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    inputs = _sd3(config, zeros, height, width)
    channels = config.in_channels + (config.extra_conditioning_channels or 0)
    return {**inputs, "controlnet_cond": zeros(channels, height, width)}


def _qwen_controlnet(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    inputs = _qwen_image(config, zeros, height, width)
    channels = config.in_channels + config.extra_condition_channels
    return {**inputs, "controlnet_cond": zeros((height // 2) * (width // 2), channels)}


def _bria_fibo(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    blocks = config.num_layers + config.num_single_layers
    layers = [zeros(T5_TOKENS, config.text_encoder_dim) for _ in range(blocks)]
    return {**_packed(config, zeros, height, width), "text_encoder_layers": layers}


def _hunyuan_image(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    inputs = {
        "hidden_states": zeros(config.in_channels, height, width),
        "encoder_hidden_states": zeros(T5_TOKENS, config.text_embed_dim),
        "encoder_attention_mask": zeros(T5_TOKENS),
        "timestep": zeros(),
    }
    if config.text_embed_2_dim:
        raise UnsupportedModelError("no example inputs are known for a second text encoder")
    if config.guidance_embeds:
        inputs["guidance"] = zeros()
    if config.use_meanflow:
        inputs["timestep_r"] = zeros()
    return inputs


def _z_image(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    return {
        "x": list(zeros(config.in_channels, 1, height, width)),
        "t": zeros(),
        "cap_feats": list(zeros(T5_TOKENS, config.cap_feat_dim)),
    }


def _ltx(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": zeros((zeros.asked or LTX_FRAMES) * height * width, config.in_channels),
        "encoder_hidden_states": zeros(LTX_TOKENS, config.caption_channels),
        "encoder_attention_mask": zeros(LTX_TOKENS),
        "timestep": zeros(),
        "num_frames": zeros.asked or LTX_FRAMES,
        "height": height,
        "width": width,
    }


def _cogvideox(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    frames = zeros.asked or COGVIDEOX_FRAMES
    inputs = {
        "hidden_states": zeros(frames, config.in_channels, height, width),
        "encoder_hidden_states": zeros(config.max_text_seq_length, config.text_embed_dim),
        "timestep": zeros(),
    }
    if config.ofs_embed_dim:
        inputs["ofs"] = zeros()
    return inputs


def _cogview(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": zeros(config.in_channels, height, width),
        "encoder_hidden_states": zeros(COGVIEW_TOKENS, config.text_embed_dim),
        "timestep": zeros(),
        "original_size": zeros(2),
        "target_size": zeros(2),
        "crop_coords": zeros(2),
    }


def _auraflow(config: Any, zeros: _Zeros, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": zeros(config.in_channels, height, width),
        "encoder_hidden_states": zeros(HUNYUAN_TOKENS, config.joint_attention_dim),
        "timestep": zeros(),
    }


_PACKED = {
    "FluxTransformer2DModel",
    "FluxControlNetModel",
    "ChromaTransformer2DModel",
    "Flux2Transformer2DModel",
    "OvisImageTransformer2DModel",
    "LongCatImageTransformer2DModel",
    "BriaTransformer2DModel",
    "BriaFiboTransformer2DModel",
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
    "FluxTransformer2DModel": _packed,
    "ChromaTransformer2DModel": _packed,
    "SD3Transformer2DModel": _sd3,
    "QwenImageTransformer2DModel": _qwen_image,
    "WanTransformer3DModel": _wan,
    "WanVACETransformer3DModel": _wan,
    "HunyuanVideoTransformer3DModel": _hunyuan_video,
    "HunyuanImageTransformer2DModel": _hunyuan_image,
    "Flux2Transformer2DModel": _flux2,
    "OvisImageTransformer2DModel": _packed,
    "LongCatImageTransformer2DModel": _longcat_image,
    "FluxControlNetModel": _flux_controlnet,
    "SD3ControlNetModel": _sd3_controlnet,
    "QwenImageControlNetModel": _qwen_controlnet,
    "BriaTransformer2DModel": _packed,
    "BriaFiboTransformer2DModel": _bria_fibo,
    "SkyReelsV2Transformer3DModel": _wan,
    "ChronoEditTransformer3DModel": _wan,
    "ZImageTransformer2DModel": _z_image,
    "LTXVideoTransformer3DModel": _ltx,
    "CogVideoXTransformer3DModel": _cogvideox,
    "CogView3PlusTransformer2DModel": _cogview,
    "CogView4Transformer2DModel": _cogview,
    "AuraFlowTransformer2DModel": _auraflow,
}
