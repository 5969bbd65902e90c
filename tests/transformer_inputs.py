"""Inputs of one call of the tiny transformers of tests/tiny_transformers.py.

Sizes are (height, width) in tokens, so that every family is asked for the same grid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from older import OLDER

TEXT = 5
FRAMES = 3
SOUND = 7  # latent frames of it


def position_ids(height: int, width: int, picture: int = 0) -> Tensor:
    """[height * width, 3], as FLUX's pipelines make them."""
    ids = torch.zeros(height, width, 3)
    ids[..., 0] = picture
    ids[..., 1] += torch.arange(height)[:, None]
    ids[..., 2] += torch.arange(width)[None]
    return ids.flatten(0, 1)


def padded_text(batch: int) -> Tensor:
    """Which text tokens count, [batch, TEXT]: all but two of the first sample."""
    mask = torch.ones(batch, TEXT)
    mask[0, TEXT - 2 :] = 0
    return mask


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
    return {
        "hidden_states": noise(batch, height * width, 4),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "encoder_hidden_states_mask": padded_text(batch).bool(),
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


def _wan_animate(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        **_wan(model, noise, height, width, batch),
        "hidden_states": noise(batch, 12, FRAMES, 2 * height, 2 * width),
        "pose_hidden_states": noise(batch, 4, FRAMES - 1, 2 * height, 2 * width),
        "face_pixel_values": noise(batch, 3, 5, 16, 16),
    }


def _hunyuan_dit(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    from diffusers.models.embeddings import get_2d_rotary_pos_embed

    corners = ((0, 0), (height, width))
    return {
        "hidden_states": noise(batch, 4, 2 * height, 2 * width),
        "timestep": torch.full((batch,), 500.0).to(noise.like.dtype),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "text_embedding_mask": padded_text(batch),
        "encoder_hidden_states_t5": noise(batch, TEXT, 8),
        "text_embedding_mask_t5": padded_text(batch),
        "image_rotary_emb": get_2d_rotary_pos_embed(8, corners, (height, width), output_type="pt"),
    }


def _hunyuan(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, FRAMES, 2 * height, 2 * width),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "encoder_attention_mask": padded_text(batch),
        "pooled_projections": noise(batch, 8),
        "timestep": torch.full((batch,), 500),
        "guidance": torch.full((batch,), 6.0),
    }


def _hunyuan_15(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, FRAMES, height, width),
        "timestep": torch.full((batch,), 500).to(noise.like.dtype),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "encoder_attention_mask": padded_text(batch),
        "encoder_hidden_states_2": noise(batch, TEXT, 8),
        "encoder_attention_mask_2": padded_text(batch).flip(0),  # another sample's is padded
        "image_embeds": noise(batch, 3, 8),
    }


def _hunyuan_15_text(*arguments: Any) -> dict[str, Any]:
    inputs = _hunyuan_15(*arguments)
    return {**inputs, "image_embeds": torch.zeros_like(inputs["image_embeds"])}  # masked then


def _kandinsky5(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, FRAMES, 2 * height, 2 * width, 4),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "timestep": torch.full((batch,), 500).to(noise.like.dtype),
        "pooled_projections": noise(batch, 8),
        "visual_rope_pos": [torch.arange(n) for n in (FRAMES, height, width)],
        "text_rope_pos": torch.arange(TEXT),
        "scale_factor": (1.0, 2.0, 2.0),
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


def _flux3(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    inputs = _flux2(model, noise, height, width, batch)
    del inputs["guidance"]
    return inputs


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


def _ltx2(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    config = model.config
    raw = config.get("use_prompt_embeddings", True)
    return {
        "hidden_states": noise(batch, FRAMES * height * width, 4),
        "audio_hidden_states": noise(batch, SOUND, 4),
        "encoder_hidden_states": noise(batch, TEXT, 8 if raw else config.cross_attention_dim),
        "audio_encoder_hidden_states": noise(batch, TEXT, 8),
        "encoder_attention_mask": padded_text(batch),
        "audio_encoder_attention_mask": padded_text(batch),
        "timestep": torch.full((batch,), 500),
        **({} if OLDER else {"sigma": torch.full((batch,), 500)}),
        "num_frames": FRAMES,
        "height": height,
        "width": width,
        "audio_num_frames": SOUND,
    }


def _ltx23(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    tokens = FRAMES * height * width
    mask = (noise(batch, tokens, tokens) > -1).to(noise.like.dtype)
    return {**_ltx2(model, noise, height, width, batch), "video_self_attention_mask": mask}


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


def _easyanimate(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, FRAMES, 2 * height, 2 * width),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "timestep": torch.full((batch,), 500),
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


def _glm_image(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    dropped = torch.zeros(batch, height * width, dtype=torch.bool)
    dropped[0] = True  # without a prior
    return {
        "hidden_states": noise(batch, 4, 2 * height, 2 * width),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "prior_token_id": torch.arange(batch * height * width).view(batch, -1) % 20,
        "prior_token_drop": dropped,
        "timestep": torch.full((batch,), 500),
        "target_size": torch.full((batch, 2), 64.0),
        "crop_coords": torch.zeros(batch, 2),
    }


def _auraflow(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, 2 * height, 2 * width),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "timestep": torch.full((batch,), 0.5),
    }


def _hunyuan_image(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, height, width),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "encoder_attention_mask": padded_text(batch),
        "timestep": torch.full((batch,), 500).to(noise.like.dtype),
    }


def _ideogram4(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    from diffusers import Ideogram4Pipeline

    lengths = padded_text(batch).sum(1).long().tolist()
    places, segments, roles = Ideogram4Pipeline._prepare_ids(lengths, height, width, TEXT, "cpu")
    tokens = TEXT + height * width
    return {
        "hidden_states": noise(batch, tokens, 4),
        "timestep": torch.full((batch,), 0.5).to(noise.like.dtype),
        "encoder_hidden_states": noise(batch, tokens, 8),
        "position_ids": places,
        "segment_ids": segments,
        "indicator": roles,
    }


def _prx(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, 2 * height, 2 * width),
        "timestep": torch.full((batch,), 0.5),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "attention_mask": padded_text(batch).bool(),
    }


def _ernie_image(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, height, width),
        "timestep": torch.full((batch,), 500),
        "text_bth": noise(batch, TEXT, 8),
        "text_lens": padded_text(batch).sum(1).long(),
    }


def _lumina2(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, 2 * height, 2 * width),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "encoder_attention_mask": torch.ones(batch, TEXT, dtype=torch.bool),
        "timestep": torch.full((batch,), 0.5),
    }


def _anyflow(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, FRAMES, 4, 2 * height, 2 * width),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "timestep": torch.full((batch, FRAMES), 500.0),
        "r_timestep": torch.full((batch, FRAMES), 400.0),
    }


def _allegro(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    corners, size = ((0, 0), (height, width)), (height, width)
    table = get_3d_rotary_pos_embed_allegro(12, corners, size, FRAMES)[:3]
    places = torch.cartesian_prod(*(torch.arange(n) for n in (FRAMES, height, width)))
    return {
        "hidden_states": noise(batch, 4, FRAMES, 2 * height, 2 * width),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "encoder_attention_mask": padded_text(batch),
        "timestep": torch.full((batch,), 500),
        "image_rotary_emb": (table, tuple(places.T[:, None])),
    }


def _mochi(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, FRAMES, 2 * height, 2 * width),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "encoder_attention_mask": padded_text(batch),
        "timestep": torch.full((batch,), 500),
    }


def _cosmos_controlnet(
    model: Any, noise: Noise, height: int, width: int, batch: int
) -> dict[str, Any]:
    video = (FRAMES, 2 * height, 2 * width)
    return {
        "controls_latents": noise(batch, 4, *video),
        "latents": noise(batch, 4, *video),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "condition_mask": noise(batch, 1, *video),
        "padding_mask": noise(1, 1, 2 * height, 2 * width),
    }


def _motif(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, FRAMES, 2 * height, 2 * width),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "encoder_attention_mask": padded_text(batch),
        "timestep": torch.full((batch,), 500),
    }


def _lumina_next(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

    return {
        "hidden_states": noise(batch, 4, 2 * height, 2 * width),
        "timestep": torch.full((batch,), 0.5),
        "encoder_hidden_states": noise(batch, TEXT, 8),
        "encoder_mask": torch.ones(batch, TEXT),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(8, 64, 64),  # a part of it is used
        "cross_attention_kwargs": {"base_sequence_length": 16},
    }


def _hidream(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, 2 * height, 2 * width),
        "timesteps": torch.full((batch,), 500),
        "encoder_hidden_states_t5": noise(batch, TEXT - 1, 8),
        "encoder_hidden_states_llama3": noise(2, batch, TEXT, 6),
        "pooled_embeds": noise(batch, 8),
    }


def _nucleus(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    return {**_qwen(model, noise, height, width, batch), "img_shapes": [(1, height, width)] * batch}


def _krea2(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, height * width, 4),
        "encoder_hidden_states": noise(batch, TEXT, 2, 8),
        "encoder_attention_mask": padded_text(batch).bool(),
        "timestep": torch.full((batch,), 0.5),
        "position_ids": torch.cat([torch.zeros(TEXT, 3), position_ids(height, width)]),
    }


def _bria_fibo2(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, 2 * height, 2 * width),
        "timestep": torch.full((batch,), 0.5),
        "encoder_hidden_states": noise(batch, 2, TEXT, 8),
        "encoder_attention_mask": torch.ones(batch, TEXT, dtype=torch.bool),
    }


def _omnigen(model: Any, noise: Noise, height: int, width: int, batch: int) -> dict[str, Any]:
    tokens = TEXT + 1 + height * width
    mask = torch.ones(batch, tokens, tokens).tril()  # text sees what was before
    mask[:, TEXT + 1 :] = 1
    mask[0, :, :2] = torch.eye(tokens)[:, :2]  # padded text
    return {
        "hidden_states": noise(batch, 4, 2 * height, 2 * width),
        "timestep": torch.full((batch,), 0.5),
        "input_ids": torch.arange(batch * TEXT).view(batch, TEXT) + 1,
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": mask.to(noise.like.dtype),
        "position_ids": torch.arange(tokens).expand(batch, -1),
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
    "hunyuan_video_15": _hunyuan_15,
    "hunyuan_video_15_text": _hunyuan_15_text,
    "kandinsky5": _kandinsky5,
    "hunyuan_image": _hunyuan_image,
    "flux2": _flux2,
    "flux3": _flux3,
    "ovis_image": _flux_like,
    "longcat_image": _flux_like,
    "bria": _flux_like,
    "bria_fibo": _bria_fibo,
    "skyreels": _wan,
    "wan_animate": _wan_animate,
    "hunyuan_dit": _hunyuan_dit,
    "chrono_edit": _wan,
    "z_image": _z_image,
    "ltx": _ltx,
    "ltx2": _ltx2,
    "ltx23": _ltx23,
    "cogvideox": _cogvideox,
    "consisid": _cogvideox,
    "easyanimate": _easyanimate,
    "cosmos": _easyanimate,
    "cogview3": _cogview,
    "cogview4": _cogview,
    "glm_image": _glm_image,
    "auraflow": _auraflow,
    "ernie_image": _ernie_image,
    "prx": _prx,
    "ideogram4": _ideogram4,
    "lumina2": _lumina2,
    "anyflow": _anyflow,
    "allegro": _allegro,
    "mochi": _mochi,
    "motif_video": _motif,
    "motif_decoder": _motif,
    "lumina_next": _lumina_next,
    "omnigen": _omnigen,
    "hidream": _hidream,
    "nucleus": _nucleus,
    "krea2": _krea2,
    "bria_fibo2": _bria_fibo2,
    "flux_controlnet": _conditioned(_flux),
    "cosmos_controlnet": _cosmos_controlnet,
    "hunyuan_dit_controlnet": _conditioned(_hunyuan_dit),
    "sd3_controlnet": _conditioned(_sd3),
    "qwen_image_controlnet": _conditioned(_qwen),
}


def inputs(
    kind: str, model: Any, height: int, width: int, batch: int = 2, seed: int = 0
) -> dict[str, Any]:
    """Arguments of ``model(**...)`` for a grid in tokens; ``kind`` is the builder's name."""
    return INPUTS[kind](model, Noise(model, seed), height, width, batch)
