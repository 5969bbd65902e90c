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


_FLUX = {
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 8,
    "axes_dims_rope": (2, 2, 4),
}


def flux2(seed: int = 0) -> diffusers.Flux2Transformer2DModel:
    """Single blocks project queries, keys, values and the MLP in one."""
    options = {"axes_dims_rope": (2, 2, 2, 2), "timestep_guidance_channels": 8}
    return _build(lambda: diffusers.Flux2Transformer2DModel(**{**_FLUX, **options}), seed)


def ovis_image(seed: int = 0) -> diffusers.OvisImageTransformer2DModel:
    """FLUX-like."""
    return _build(lambda: diffusers.OvisImageTransformer2DModel(**_FLUX, out_channels=4), seed)


def longcat_image(seed: int = 0) -> diffusers.LongCatImageTransformer2DModel:
    """FLUX-like."""
    return _build(
        lambda: diffusers.LongCatImageTransformer2DModel(**_FLUX, pooled_projection_dim=8), seed
    )


def bria(seed: int = 0) -> diffusers.BriaTransformer2DModel:
    """FLUX-like."""
    return _build(lambda: diffusers.BriaTransformer2DModel(**_FLUX), seed)


def bria_fibo(seed: int = 0) -> diffusers.BriaFiboTransformer2DModel:
    """FLUX-like; every block gets another layer of the text encoder."""
    options = {"text_encoder_dim": 8}
    return _build(lambda: diffusers.BriaFiboTransformer2DModel(**{**_FLUX, **options}), seed)


def skyreels(seed: int = 0) -> diffusers.SkyReelsV2Transformer3DModel:
    """Wan-like."""
    return _build(lambda: diffusers.SkyReelsV2Transformer3DModel(**_WAN), seed)


def chrono_edit(seed: int = 0) -> diffusers.ChronoEditTransformer3DModel:
    """Wan-like."""
    return _build(lambda: diffusers.ChronoEditTransformer3DModel(**_WAN), seed)


def z_image(seed: int = 0) -> diffusers.ZImageTransformer2DModel:
    """Image and caption in one stream, each filled up to a multiple of 32 tokens."""
    return _build(
        lambda: diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=DIM,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=8,
            axes_dims=[2, 2, 4],
            axes_lens=[128, 64, 64],
        ),
        seed,
    )


def ltx(seed: int = 0) -> diffusers.LTXVideoTransformer3DModel:
    """Video only; rotates before it splits the heads."""
    return _build(
        lambda: diffusers.LTXVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=DIM,
            num_layers=2,
            caption_channels=8,
        ),
        seed,
    )


def cogvideox(seed: int = 0) -> diffusers.CogVideoXTransformer3DModel:
    """Text and video are joined inside the processor."""
    return _build(
        lambda: diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,  # the least that splits into frames, rows and columns
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=8,
            num_layers=2,
            sample_width=32,
            sample_height=32,
            sample_frames=9,
            max_text_seq_length=TEXT,
            use_rotary_positional_embeddings=True,
        ),
        seed,
    )


def cogview3(seed: int = 0) -> diffusers.CogView3PlusTransformer2DModel:
    """Text and image are joined inside the processor; no rotary positions."""
    return _build(
        lambda: diffusers.CogView3PlusTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=8,
            time_embed_dim=8,
            condition_dim=2,
            pos_embed_max_size=32,
            sample_size=32,
        ),
        seed,
    )


def cogview4(seed: int = 0) -> diffusers.CogView4Transformer2DModel:
    """Text and image are joined inside the processor; rotates halves of a head."""
    return _build(
        lambda: diffusers.CogView4Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=8,
            time_embed_dim=8,
            condition_dim=2,
            rope_axes_dim=(32, 32),
        ),
        seed,
    )


def auraflow(seed: int = 0) -> diffusers.AuraFlowTransformer2DModel:
    """No rotary positions; register tokens join the text."""
    model = _build(
        lambda: diffusers.AuraFlowTransformer2DModel(
            sample_size=32,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=8,
            caption_projection_dim=DIM,
            pos_embed_max_size=32 * 32,
        ),
        seed,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".norm1.linear" in name:
                parameter.mul_(30)  # the gates are nearly shut otherwise
    return model


def hunyuan_image(seed: int = 0) -> diffusers.HunyuanImageTransformer2DModel:
    """HunyuanVideo's blocks on a picture."""
    return _build(
        lambda: diffusers.HunyuanImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            text_embed_dim=8,
            rope_axes_dim=(4, 4),
        ),
        seed,
    )


def lumina2(seed: int = 0) -> diffusers.Lumina2Transformer2DModel:
    """Caption and image in one stream; two heads of queries to one of keys."""
    return _build(
        lambda: diffusers.Lumina2Transformer2DModel(
            sample_size=32,
            in_channels=4,
            hidden_size=DIM,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=8,
            axes_dim_rope=(2, 2, 4),
            axes_lens=(64, 64, 64),
            cap_feat_dim=8,
        ),
        seed,
    )


def flux_controlnet(seed: int = 0) -> diffusers.FluxControlNetModel:
    """FLUX.1's blocks; its outputs are residuals."""
    return _build(lambda: diffusers.FluxControlNetModel(**_FLUX, pooled_projection_dim=8), seed)


def sd3_controlnet(seed: int = 0) -> diffusers.SD3ControlNetModel:
    """SD3's blocks."""
    return _build(
        lambda: diffusers.SD3ControlNetModel(
            sample_size=32,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=8,
            caption_projection_dim=DIM,
            pooled_projection_dim=8,
            out_channels=4,
            pos_embed_max_size=32,
        ),
        seed,
    )


def qwen_image_controlnet(seed: int = 0) -> diffusers.QwenImageControlNetModel:
    """Qwen-Image's blocks."""
    return _build(
        lambda: diffusers.QwenImageControlNetModel(
            in_channels=4,
            out_channels=1,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=8,
            axes_dims_rope=(2, 2, 4),
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


def _flux_like(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    inputs = _flux(model, noise, height, width, batch)
    del inputs["pooled_projections"]
    return inputs


def _flux2(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    inputs = _flux_like(model, noise, height, width, batch)
    ids = torch.cat([inputs["img_ids"], torch.zeros(height * width, 1)], 1)
    text = torch.zeros(TEXT, 4)
    text[:, 3] = torch.arange(TEXT)
    return {**inputs, "img_ids": ids, "txt_ids": text, "guidance": torch.full((batch,), 4.0)}


def _bria_fibo(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    inputs = _flux_like(model, noise, height, width, batch)
    return {**inputs, "text_encoder_layers": [noise(batch, TEXT, 8) for _ in range(2)]}


def _z_image(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "x": [noise(4, 1, 2 * height, 2 * width) for _ in range(batch)],
        "t": torch.full((batch,), 0.5).to(noise.like.dtype),
        "cap_feats": [noise(TEXT + 30 * index, 8) for index in range(batch)],  # 32 and 64 tokens
    }


def _ltx(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, FRAMES * height * width, 4),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "encoder_attention_mask": torch.ones(batch, TEXT),
        "timestep": torch.full((batch,), 500),
        "num_frames": FRAMES,
        "height": height,
        "width": width,
    }


def _cogvideox(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    corners = ((0, 0), (height, width))
    table = get_3d_rotary_pos_embed(16, corners, (height, width), FRAMES)
    return {
        "hidden_states": noise(batch, FRAMES, 4, 2 * height, 2 * width),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "timestep": torch.full((batch,), 500),
        "image_rotary_emb": table,
    }


def _cogview(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    size = torch.full((batch, 2), 64.0).to(noise.like.dtype)
    return {
        "hidden_states": noise(batch, 4, 2 * height, 2 * width),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "timestep": torch.full((batch,), 500),
        "original_size": size,
        "target_size": size,
        "crop_coords": torch.zeros_like(size),
    }


def _auraflow(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, 2 * height, 2 * width),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "timestep": torch.full((batch,), 0.5),
    }


def _hunyuan_image(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    mask = torch.ones(batch, TEXT)
    mask[0, TEXT - 2 :] = 0
    return {
        "hidden_states": noise(batch, 4, height, width),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "encoder_attention_mask": mask,
        "timestep": torch.full((batch,), 500).to(noise.like.dtype),
    }


def _lumina2(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, 2 * height, 2 * width),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "encoder_attention_mask": torch.ones(batch, TEXT, dtype=torch.bool),
        "timestep": torch.full((batch,), 0.5),
    }


def _conditioned(make: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """The same with a condition of the latent's shape."""

    def inputs(model: Any, noise: Noise, *size: int) -> dict[str, Any]:
        others = make(model, noise, *size)
        return {**others, "controlnet_cond": noise(*others["hidden_states"].shape)}

    return inputs


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
    "hunyuan_image": _hunyuan_image,
    "flux2": _flux2,
    "ovis_image": _flux_like,
    "longcat_image": _flux_like,
    "bria": _flux_like,
    "bria_fibo": _bria_fibo,
    "skyreels": _wan,
    "chrono_edit": _wan,
    "z_image": _z_image,
    "ltx": _ltx,
    "cogvideox": _cogvideox,
    "cogview3": _cogview,
    "cogview4": _cogview,
    "auraflow": _auraflow,
    "lumina2": _lumina2,
    "flux_controlnet": _conditioned(_flux),
    "sd3_controlnet": _conditioned(_sd3),
    "qwen_image_controlnet": _conditioned(_qwen),
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
