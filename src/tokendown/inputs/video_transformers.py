"""Inputs of one call of a transformer that makes films: zeros, of the usual number of frames."""

from __future__ import annotations

from typing import Any

import torch

from .._errors import UnsupportedModelError
from .image_transformers import HUNYUAN_TOKENS, T5_TOKENS
from .zeros import Maker, Zeros

LATTE_TOKENS = 120
WAN_FRAMES = 21  # latent frames of 81 frames
HUNYUAN_FRAMES = 33  # latent frames of 129 frames
HUNYUAN_15_TOKENS = (1000, 256, 729)  # of Qwen, of ByT5, and of SigLIP for the first frame
HUNYUAN_15_FRAMES = KANDINSKY_FRAMES = 31  # latent frames of 121 frames
LTX_TOKENS = 128
LTX_FRAMES = 21  # latent frames of 161 frames
LTX2_TOKENS = 1024  # the pipeline's default, filled up by the connectors
LTX2_FRAMES = 16  # latent frames of 121 frames
LTX2_RATE = 24.0  # frames a second
COGVIDEOX_FRAMES = 13  # latent frames of 49 frames
MOCHI_TOKENS = 256
MOCHI_FRAMES = 28  # latent frames of 163 frames
ALLEGRO_FRAMES = 22  # latent frames of 88 frames
MOTIF_FRAMES = 31  # latent frames of 121 frames
VISION_TOKENS = 577  # of EVA-CLIP at 336 pixels, a class token first


def _latte(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    # its table of frame positions has no other length
    return {
        "hidden_states": zeros(config.in_channels, config.video_length, height, width),
        "timestep": zeros.integers(),
        "encoder_hidden_states": zeros(LATTE_TOKENS, config.caption_channels),
    }


def _wan(config: Any, zeros: Zeros, height: int, width: int, more: int = 0) -> dict[str, Any]:
    frames = (zeros.asked or WAN_FRAMES) + more
    inputs = {
        "hidden_states": zeros(config.in_channels, frames, height, width),
        "encoder_hidden_states": zeros(T5_TOKENS, config.text_dim),
        "timestep": zeros(),
    }
    if getattr(config, "image_dim", None):
        images = zeros(257, config.image_dim)
        # the first and the last frame are two pictures a sample, joined by the model
        both = getattr(config, "pos_embed_seq_len", None)
        inputs["encoder_hidden_states_image"] = images.repeat(2, 1, 1) if both else images
    if getattr(config, "vace_layers", None):
        inputs["control_hidden_states"] = zeros(config.vace_in_channels, frames, height, width)
    return inputs


def _anyflow(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    frames = zeros.asked or WAN_FRAMES
    return {
        "hidden_states": zeros(frames, config.in_channels, height, width),
        "timestep": zeros(frames),
        "r_timestep": zeros(frames),
        "encoder_hidden_states": zeros(T5_TOKENS, config.text_dim),
    }


def _wan_animate(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    inputs = _wan(config, zeros, height, width, more=1)  # the first latent frame is the character
    moving = inputs["hidden_states"].shape[2] - 1
    side = config.motion_encoder_size
    return {
        **inputs,
        "pose_hidden_states": zeros(config.latent_channels, moving, height, width),
        "face_pixel_values": zeros(3, 4 * moving - 3, side, side),
    }


def _hunyuan_video(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
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


def _hunyuan_video_15(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    """All text is valid, so that none of it is moved; there is no first frame."""
    qwen, byt5, siglip = HUNYUAN_15_TOKENS
    frames = zeros.asked or HUNYUAN_15_FRAMES
    inputs = {
        "hidden_states": zeros(config.in_channels, frames, height, width),
        "timestep": zeros(),
        "encoder_hidden_states": zeros(qwen, config.text_embed_dim),
        "encoder_attention_mask": zeros.mask(qwen),
        "encoder_hidden_states_2": zeros(byt5, config.text_embed_2_dim),
        "encoder_attention_mask_2": zeros.mask(byt5),
        "image_embeds": zeros.readable(siglip, config.image_embed_dim),
    }
    return {**inputs, "timestep_r": zeros()} if config.use_meanflow else inputs


def _kandinsky5(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    if config.attention_type != "regular":
        raise UnsupportedModelError("no example inputs are known for Kandinsky's sparse attention")
    frames = zeros.asked or KANDINSKY_FRAMES
    channels = 2 * config.in_visual_dim + 1 if config.visual_cond else config.in_visual_dim
    rows = height // config.patch_size[1], width // config.patch_size[2]
    return {
        "hidden_states": zeros(frames, height, width, channels),
        "encoder_hidden_states": zeros(T5_TOKENS, config.in_text_dim),
        "timestep": zeros(),
        "pooled_projections": zeros(config.in_text_dim2),
        "visual_rope_pos": [torch.arange(n, device=zeros.device) for n in (frames, *rows)],
        "text_rope_pos": torch.arange(T5_TOKENS, device=zeros.device),
    }


def _motif_video(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": zeros(config.in_channels, zeros.asked or MOTIF_FRAMES, height, width),
        "encoder_hidden_states": zeros(T5_TOKENS, config.text_embed_dim),
        "encoder_attention_mask": zeros(T5_TOKENS),
        "timestep": zeros(),
    }


def _ltx(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": zeros((zeros.asked or LTX_FRAMES) * height * width, config.in_channels),
        "encoder_hidden_states": zeros(LTX_TOKENS, config.caption_channels),
        "encoder_attention_mask": zeros(LTX_TOKENS),
        "timestep": zeros(),
        "num_frames": zeros.asked or LTX_FRAMES,
        "height": height,
        "width": width,
    }


def _ltx2(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    frames = zeros.asked or LTX2_FRAMES
    in_time, side = config.patch_size_t, config.patch_size
    tokens = -(-frames // in_time) * -(-height // side) * -(-width // side)
    steps = config.audio_sampling_rate / (config.audio_hop_length * config.audio_scale_factor)
    sound = round(((frames - 1) * config.vae_scale_factors[0] + 1) / LTX2_RATE * steps)
    texts = (config.cross_attention_dim, config.audio_cross_attention_dim)
    if config.get("use_prompt_embeddings", True):
        texts = (config.caption_channels, config.caption_channels)
    inputs = {
        "hidden_states": zeros(tokens, config.in_channels),
        "audio_hidden_states": zeros(
            -(-sound // config.audio_patch_size_t), config.audio_in_channels
        ),
        "encoder_hidden_states": zeros(LTX2_TOKENS, texts[0]),
        "audio_encoder_hidden_states": zeros(LTX2_TOKENS, texts[1]),
        "timestep": zeros(),
        "encoder_attention_mask": zeros(LTX2_TOKENS),
        "audio_encoder_attention_mask": zeros(LTX2_TOKENS),
        "num_frames": frames,
        "height": height,
        "width": width,
        "audio_num_frames": sound,
    }
    if "use_prompt_embeddings" in config:  # a diffusers that knows LTX-2.3
        inputs["sigma"] = zeros()
    return inputs


def _cogvideox(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    frames = zeros.asked or COGVIDEOX_FRAMES
    inputs = {
        "hidden_states": zeros(frames, config.in_channels, height, width),
        "encoder_hidden_states": zeros(config.max_text_seq_length, config.text_embed_dim),
        "timestep": zeros(),
    }
    if config.ofs_embed_dim:
        inputs["ofs"] = zeros()
    return inputs


def _consisid(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "hidden_states": zeros(zeros.asked or COGVIDEOX_FRAMES, config.in_channels, height, width),
        "encoder_hidden_states": zeros(config.max_text_seq_length, config.text_embed_dim),
        "timestep": zeros(),
    }
    if config.is_train_face:
        layers = [zeros(VISION_TOKENS, config.LFE_vit_dim) for _ in range(config.LFE_num_scale)]
        inputs |= {"id_cond": zeros(config.LFE_id_dim), "id_vit_hidden": layers}
    return inputs


def _easyanimate(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    frames = zeros.asked or COGVIDEOX_FRAMES
    # what is more than comes out is a picture to start from or a control
    more = max(0, config.in_channels - (config.out_channels or config.in_channels))
    inputs = {
        "hidden_states": zeros(config.in_channels - more, frames, height, width),
        "encoder_hidden_states": zeros(HUNYUAN_TOKENS, config.text_embed_dim),
        "timestep": zeros(),
    }
    return inputs | {"inpaint_latents": zeros(more, frames, height, width)} if more else inputs


def _cosmos(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    width_of_text = config.text_embed_dim
    if config.use_crossattn_projection:
        width_of_text = config.crossattn_proj_in_channels
    if config.img_context_dim_in:
        raise UnsupportedModelError("no example inputs are known for the features of a picture")
    inputs = {
        "hidden_states": zeros(config.in_channels, zeros.asked or WAN_FRAMES, height, width),
        "encoder_hidden_states": zeros(T5_TOKENS, width_of_text),
        "timestep": zeros(),
    }
    if config.concat_padding_mask:
        inputs["padding_mask"] = zeros(1, height, width)[:1]
    return inputs


def _cosmos_controlnet(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    if config.img_context_dim_in:
        raise UnsupportedModelError("no example inputs are known for the features of a picture")
    text = config.text_embed_dim
    if config.use_crossattn_projection:
        text = config.crossattn_proj_in_channels
    frames = zeros.asked or WAN_FRAMES
    return {  # the model adds two masks to the channels of both latents
        "controls_latents": zeros(config.in_channels - 2, frames, height, width),
        "latents": zeros(config.latent_channels - 2, frames, height, width),
        "timestep": zeros(),
        "encoder_hidden_states": zeros(T5_TOKENS, text),
        "condition_mask": zeros(1, frames, height, width),
        "padding_mask": zeros(1, height, width)[:1],
    }


def _mochi(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    """All text is valid: each sample attends to its own."""
    return {
        "hidden_states": zeros(config.in_channels, zeros.asked or MOCHI_FRAMES, height, width),
        "encoder_hidden_states": zeros(MOCHI_TOKENS, config.text_embed_dim),
        "encoder_attention_mask": zeros.mask(MOCHI_TOKENS),
        "timestep": zeros(),
    }


def _allegro(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": zeros(config.in_channels, zeros.asked or ALLEGRO_FRAMES, height, width),
        "encoder_hidden_states": zeros(T5_TOKENS, config.caption_channels),
        "timestep": zeros.integers(),
    }


VIDEO_TRANSFORMERS: dict[str, Maker] = {
    "LatteTransformer3DModel": _latte,
    "WanTransformer3DModel": _wan,
    "WanVACETransformer3DModel": _wan,
    "WanAnimateTransformer3DModel": _wan_animate,
    "HunyuanVideoTransformer3DModel": _hunyuan_video,
    "HunyuanVideo15Transformer3DModel": _hunyuan_video_15,
    "Kandinsky5Transformer3DModel": _kandinsky5,
    "MotifVideoTransformer3DModel": _motif_video,
    "SkyReelsV2Transformer3DModel": _wan,
    "ChronoEditTransformer3DModel": _wan,
    "AnyFlowTransformer3DModel": _anyflow,
    "LTXVideoTransformer3DModel": _ltx,
    "LTX2VideoTransformer3DModel": _ltx2,
    "CogVideoXTransformer3DModel": _cogvideox,
    "ConsisIDTransformer3DModel": _consisid,
    "EasyAnimateTransformer3DModel": _easyanimate,
    "CosmosTransformer3DModel": _cosmos,
    "CosmosControlNetModel": _cosmos_controlnet,
    "AllegroTransformer3DModel": _allegro,
    "MochiTransformer3DModel": _mochi,
}
