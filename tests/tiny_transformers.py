"""Joint-attention and video transformers of diffusers at tiny size, and inputs for them.

Sizes are (height, width) in tokens, so that every family is asked for the same grid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

import tiny

TEXT = 5
FRAMES = 3
DIM = 16  # two heads of 8 channels


def _build(make: Callable[[], Any], seed: int) -> Any:
    model = tiny._build(make, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm_q" in name or "norm_k" in name or "norm_added" in name:
                parameter.mul_(2.5)  # sharp attention, so that a wrong key shows
    return model


def flux(seed: int = 0, **options: Any) -> diffusers.FluxTransformer2DModel:
    """One double and two single blocks."""
    settings = {
        "in_channels": 4,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 8,
        "pooled_projection_dim": 8,
        "axes_dims_rope": (2, 2, 4),
    }
    return _build(lambda: diffusers.FluxTransformer2DModel(**{**settings, **options}), seed)


def chroma(seed: int = 0) -> diffusers.ChromaTransformer2DModel:
    """FLUX's blocks, with padded text under a mask."""
    return _build(
        lambda: diffusers.ChromaTransformer2DModel(
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=8,
            axes_dims_rope=(2, 2, 4),
            approximator_num_channels=8,
            approximator_hidden_dim=8,
            approximator_layers=1,
        ),
        seed,
    )


def sd3(seed: int = 0, **options: Any) -> diffusers.SD3Transformer2DModel:
    """Joint attention without rotary positions."""
    settings = {
        "sample_size": 32,
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 8,
        "caption_projection_dim": DIM,
        "pooled_projection_dim": 8,
        "out_channels": 4,
        "pos_embed_max_size": 32,
    }
    return _build(lambda: diffusers.SD3Transformer2DModel(**{**settings, **options}), seed)


def sd35(seed: int = 0) -> diffusers.SD3Transformer2DModel:
    """Like SD 3.5 medium: normalised keys, and attention to image tokens only in one block."""
    return sd3(seed, qk_norm="rms_norm", dual_attention_layers=(0,))


def qwen_image(seed: int = 0, **options: Any) -> diffusers.QwenImageTransformer2DModel:
    """Two double blocks."""
    settings = {
        "in_channels": 4,
        "out_channels": 1,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 8,
        "axes_dims_rope": (2, 2, 4),
    }
    return _build(lambda: diffusers.QwenImageTransformer2DModel(**{**settings, **options}), seed)


_WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 8,
    "freq_dim": 8,
    "ffn_dim": 16,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}


def wan(seed: int = 0, **options: Any) -> diffusers.WanTransformer3DModel:
    """Two blocks; a token is a 1 x 2 x 2 patch."""
    return _build(lambda: diffusers.WanTransformer3DModel(**{**_WAN, **options}), seed)


def wan_i2v(seed: int = 0) -> diffusers.WanTransformer3DModel:
    """Image to video: cross-attention to an image as well."""
    return wan(seed, image_dim=8, added_kv_proj_dim=DIM)


def wan_vace(seed: int = 0) -> diffusers.WanVACETransformer3DModel:
    """A second row of blocks for control."""
    return _build(
        lambda: diffusers.WanVACETransformer3DModel(
            **{**_WAN, "vace_layers": [0], "vace_in_channels": 4}
        ),
        seed,
    )


def hunyuan_video(seed: int = 0) -> diffusers.HunyuanVideoTransformer3DModel:
    """One double and one single block; the text has a refiner of its own."""
    return _build(
        lambda: diffusers.HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=2,
            patch_size_t=1,
            guidance_embeds=True,
            text_embed_dim=8,
            pooled_projection_dim=8,
            rope_axes_dim=(2, 2, 4),
        ),
        seed,
    )


# Inputs


def position_ids(height: int, width: int, picture: int = 0) -> Tensor:
    """[height * width, 3], as FLUX's pipelines make them."""
    ids = torch.zeros(height, width, 3)
    ids[..., 0] = picture
    ids[..., 1] += torch.arange(height)[:, None]
    ids[..., 2] += torch.arange(width)[None]
    return ids.flatten(0, 1)


class Noise:
    """Random tensors in the dtype and on the device of a model."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.like = next(model.parameters())

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.like)


def _flux(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, height * width, 4),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "pooled_projections": noise(batch, 8),
        "timestep": torch.full((batch,), 0.5),
        "img_ids": position_ids(height, width),
        "txt_ids": torch.zeros(TEXT, 3),
    }


def _chroma(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    inputs = _flux(model, noise, height, width, batch)
    del inputs["pooled_projections"]
    mask = torch.ones(batch, TEXT + height * width)
    mask[0, TEXT - 2 : TEXT] = 0  # padded text
    return {**inputs, "attention_mask": mask.bool()}


def _sd3(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, 2 * height, 2 * width),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "pooled_projections": noise(batch, 8),
        "timestep": torch.full((batch,), 500),
    }


def _qwen(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    mask = torch.ones(batch, TEXT, dtype=torch.bool)
    mask[0, TEXT - 2 :] = False
    return {
        "hidden_states": noise(batch, height * width, 4),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "encoder_hidden_states_mask": mask,
        "timestep": torch.full((batch,), 0.5),
        "img_shapes": [[(1, height, width)]] * batch,
    }


def _wan(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    inputs = {
        "hidden_states": noise(batch, 4, FRAMES, 2 * height, 2 * width),
        "encoder_hidden_states": noise(batch, 512 if model.config.image_dim else TEXT, 8),
        "timestep": torch.full((batch,), 500),
    }
    if model.config.image_dim:
        inputs["encoder_hidden_states_image"] = noise(batch, 3, 8)
    return inputs


def _vace(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    inputs = _wan(model, noise, height, width, batch)
    control = noise(batch, 4, FRAMES, 2 * height, 2 * width)
    return {**inputs, "control_hidden_states": control}


def _hunyuan(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    mask = torch.ones(batch, TEXT)
    mask[0, TEXT - 2 :] = 0
    return {
        "hidden_states": noise(batch, 4, FRAMES, 2 * height, 2 * width),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "encoder_attention_mask": mask,
        "pooled_projections": noise(batch, 8),
        "timestep": torch.full((batch,), 500),
        "guidance": torch.full((batch,), 6.0),
    }


INPUTS: dict[str, Callable[..., dict[str, Any]]] = {
    "flux": _flux,
    "chroma": _chroma,
    "sd3": _sd3,
    "sd35": _sd3,
    "qwen_image": _qwen,
    "wan": _wan,
    "wan_i2v": _wan,
    "wan_vace": _vace,
    "hunyuan_video": _hunyuan,
}


def inputs(
    kind: str, model: Any, height: int, width: int, batch: int = 2, seed: int = 0
) -> dict[str, Any]:
    """Arguments of ``model(**...)`` for a grid in tokens; ``kind`` is the builder's name."""
    return INPUTS[kind](model, Noise(model, seed), height, width, batch)


@torch.no_grad()
def run(kind: str, model: Any, height: int, width: int, **options: Any) -> Tensor:
    """The output of one call, flattened."""
    return tiny.flatten(model(**inputs(kind, model, height, width, **options)))
