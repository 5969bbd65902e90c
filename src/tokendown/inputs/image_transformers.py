"""Inputs of one call of a transformer that makes pictures: zeros, true positions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._errors import ConfigError, UnsupportedModelError
from .zeros import Maker, Zeros

PIXART_TOKENS = 77  # T5 prompts are longer, but cross-attention is a small part
T5_TOKENS = 512  # the most that FLUX and Wan take, and their default
SD3_TOKENS = 333  # 77 of CLIP and 256 of T5, the pipeline's default
HUNYUAN_TOKENS = 256
HUNYUAN_IMAGE_TOKENS = (1000, 128)  # of Qwen and of ByT5, padded to what the pipeline takes
COGVIEW_TOKENS = 224
GLM_TOKENS = 64  # of the words that are to be written into a picture, in bytes
HIDREAM_TOKENS = 128  # of T5, and of each layer of Llama; the pipeline's default
NUCLEUS_TOKENS = 1024  # the pipeline's default
IDEOGRAM_TOKENS = 2048  # padded to what the pipeline takes at most
IDEOGRAM_OFFSET = 65536  # where positions of the picture begin


def _pixart(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": zeros(config.in_channels, height, width),
        "timestep": zeros.integers(),
        "encoder_hidden_states": zeros(PIXART_TOKENS, config.caption_channels),
        "added_cond_kwargs": {"resolution": zeros(2), "aspect_ratio": zeros(1)},
    }


def _dit(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": zeros(config.in_channels, height, width),
        "timestep": zeros.integers(),
        "class_labels": zeros.integers(),
    }


def _places(zeros: Zeros, rows: int, columns: int, axes: int) -> Tensor:
    """[tokens, axes], row and column in axes 1 and 2."""
    places = zeros(rows, columns, axes)[0]
    places[..., 1] += torch.arange(rows, device=zeros.device)[:, None]
    places[..., 2] += torch.arange(columns, device=zeros.device)
    return places.flatten(0, 1)


def _packed(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
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


def _sd3(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": zeros(config.in_channels, height, width),
        "encoder_hidden_states": zeros(SD3_TOKENS, config.joint_attention_dim),
        "pooled_projections": zeros(config.pooled_projection_dim),
        "timestep": zeros(),
    }


def _qwen_image(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    grid = (1, height // 2, width // 2)
    return {
        "hidden_states": zeros(grid[1] * grid[2], config.in_channels),
        "encoder_hidden_states": zeros(T5_TOKENS, config.joint_attention_dim),
        "timestep": zeros(),
        "img_shapes": [[grid]] * zeros.batch,
    }


def _hunyuan_dit(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    inputs = {
        "hidden_states": zeros(config.in_channels, height, width),
        "timestep": zeros(),
        "encoder_hidden_states": zeros(config.text_len, config.cross_attention_dim),
        "text_embedding_mask": zeros(config.text_len),
        "encoder_hidden_states_t5": zeros(config.text_len_t5, config.cross_attention_dim_t5),
        "text_embedding_mask_t5": zeros(config.text_len_t5),
    }
    if config.use_style_cond_and_image_meta_size:
        inputs |= {"image_meta_size": zeros(6), "style": zeros.integers()}
    return inputs


def _hunyuan_dit_controlnet(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    inputs = _hunyuan_dit(config, zeros, height, width)
    return {**inputs, "controlnet_cond": zeros(config.in_channels, height, width)}


def _flux2(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    inputs = _packed(config, zeros, height, width)
    places = _places(zeros, height // 2, width // 2, 4)
    return {**inputs, "img_ids": places, "txt_ids": zeros(T5_TOKENS, 4)[0]}


def _flux3(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    inputs = _flux2(config, zeros, height, width)
    return {**inputs, "target_timestep": zeros()} if config.flow_map else inputs


def _longcat_image(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    inputs = _packed(config, zeros, height, width)
    del inputs["pooled_projections"]  # the configuration has it, the model does not
    return inputs


def _flux_controlnet(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    if config.num_mode is not None or config.conditioning_embedding_channels is not None:
        raise UnsupportedModelError(
            "no example inputs are known for a FLUX ControlNet with modes or picture conditions"
        )
    inputs = _packed(config, zeros, height, width)
    return {**inputs, "controlnet_cond": zeros((height // 2) * (width // 2), config.in_channels)}


def _sd3_controlnet(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    inputs = _sd3(config, zeros, height, width)
    channels = config.in_channels + (config.extra_conditioning_channels or 0)
    return {**inputs, "controlnet_cond": zeros(channels, height, width)}


def _qwen_controlnet(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    inputs = _qwen_image(config, zeros, height, width)
    channels = config.in_channels + config.extra_condition_channels
    return {**inputs, "controlnet_cond": zeros((height // 2) * (width // 2), channels)}


def _bria_fibo(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    blocks = config.num_layers + config.num_single_layers
    layers = [zeros(T5_TOKENS, config.text_encoder_dim) for _ in range(blocks)]
    # do_patching=False is its pipelines' default: a token is one place of the latent
    inputs = _packed(config, zeros, 2 * height, 2 * width)
    return {**inputs, "text_encoder_layers": layers}


def _hunyuan_image(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    qwen, byt5 = HUNYUAN_IMAGE_TOKENS
    shape: tuple[int, ...] = (config.in_channels, height, width)
    if len(config.patch_size) == 3:  # the refiner: a film of one frame, with a shorter text
        qwen, shape = HUNYUAN_TOKENS, (config.in_channels, zeros.asked or 1, height, width)
    two = config.text_embed_2_dim is not None
    inputs = {
        "hidden_states": zeros(*shape),
        "encoder_hidden_states": zeros(qwen, config.text_embed_dim),
        # text is sorted by what is valid where there is a second one: all of it is
        "encoder_attention_mask": zeros.mask(qwen) if two else zeros(qwen),
        "timestep": zeros(),
    }
    if two:
        inputs["encoder_hidden_states_2"] = zeros(byt5, config.text_embed_2_dim)
        inputs["encoder_attention_mask_2"] = zeros.mask(byt5)
    if config.guidance_embeds:
        inputs["guidance"] = zeros()
    if config.use_meanflow:
        inputs["timestep_r"] = zeros()
    return inputs


def _z_image(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    return {
        "x": list(zeros(config.in_channels, 1, height, width)),
        "t": zeros(),
        "cap_feats": list(zeros(T5_TOKENS, config.cap_feat_dim)),
    }


def _cogview(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": zeros(config.in_channels, height, width),
        "encoder_hidden_states": zeros(COGVIEW_TOKENS, config.text_embed_dim),
        "timestep": zeros(),
        "original_size": zeros(2),
        "target_size": zeros(2),
        "crop_coords": zeros(2),
    }


def _glm_image(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    tokens = (height // config.patch_size) * (width // config.patch_size)
    return {
        "hidden_states": zeros(config.in_channels, height, width),
        "encoder_hidden_states": zeros(GLM_TOKENS, config.text_embed_dim),
        "prior_token_id": zeros.integers(tokens),
        # none of them: a mask would have to be read
        "prior_token_drop": zeros.integers(0)[0],
        "timestep": zeros(),
        "target_size": zeros(2),
        "crop_coords": zeros(2),
    }


def _auraflow(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": zeros(config.in_channels, height, width),
        "encoder_hidden_states": zeros(HUNYUAN_TOKENS, config.joint_attention_dim),
        "timestep": zeros(),
    }


def _ideogram4(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    image = _places(zeros, height // 2, width // 2, 3) + IDEOGRAM_OFFSET
    tokens = IDEOGRAM_TOKENS + len(image)
    places = torch.cat([zeros(IDEOGRAM_TOKENS, 3)[0], image]).long()
    return {
        "hidden_states": zeros(tokens, config.in_channels),
        "timestep": zeros(),
        "encoder_hidden_states": zeros(tokens, config.llm_features_dim),
        "position_ids": places.expand(zeros.batch, -1, -1),
        "segment_ids": zeros.integers(tokens),
        "indicator": zeros.integers(tokens),
    }


def _prx(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": zeros(config.in_channels, height, width),
        "timestep": zeros(),
        "encoder_hidden_states": zeros(HUNYUAN_TOKENS, config.context_in_dim),
        "attention_mask": zeros.mask(HUNYUAN_TOKENS),
    }


def _ernie_image(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": zeros(config.in_channels, height, width),
        "timestep": zeros(),
        "text_bth": zeros(HUNYUAN_TOKENS, config.text_in_dim),
        "text_lens": zeros.integers() + HUNYUAN_TOKENS,
    }


def _lumina2(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    return {
        "hidden_states": zeros(config.in_channels, height, width),
        "encoder_hidden_states": zeros(HUNYUAN_TOKENS, config.cap_feat_dim),
        "encoder_attention_mask": zeros.mask(HUNYUAN_TOKENS),
        "timestep": zeros(),
    }


def _hidream(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    room = math.prod(config.max_resolution)
    if height != width and height * width > room:
        raise ConfigError(
            f"expected a square picture or one of at most {room} places of the latent, to which it "
            f"is filled up; got {height}x{width}"
        )
    of_t5, of_llama = config.caption_channels
    layers = 1 + max(config.llama_layers)
    return {
        "hidden_states": zeros(config.in_channels, height, width),
        "timesteps": zeros(),
        "encoder_hidden_states_t5": zeros(HIDREAM_TOKENS, of_t5),
        "encoder_hidden_states_llama3": zeros(layers, HIDREAM_TOKENS, of_llama).transpose(0, 1),
        "pooled_embeds": zeros(config.text_emb_dim),
    }


def _nucleus(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    rows, columns = height // 2, width // 2
    return {
        "hidden_states": zeros(rows * columns, config.in_channels),
        "encoder_hidden_states": zeros(NUCLEUS_TOKENS, config.joint_attention_dim),
        "timestep": zeros(),
        "img_shapes": [(1, rows, columns)] * zeros.batch,
    }


def _krea2(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    image = _places(zeros, height // 2, width // 2, 3)
    text = (T5_TOKENS, config.num_text_layers, config.text_hidden_dim)
    return {
        "hidden_states": zeros(image.shape[0], config.in_channels),
        "encoder_hidden_states": zeros(*text),
        "encoder_attention_mask": zeros(T5_TOKENS) == 0,
        "timestep": zeros(),
        "position_ids": torch.cat([zeros(T5_TOKENS, 3)[0], image]),
    }


def _bria_fibo2(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    bundles = 1 + len(config.injection_layer_ids)
    return {
        "hidden_states": zeros(config.in_channels, height, width),
        "timestep": zeros(),
        "encoder_hidden_states": zeros(bundles, T5_TOKENS, config.cap_feat_dim),
    }


def _omnigen(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    image = (height // config.patch_size) * (width // config.patch_size)
    tokens = HUNYUAN_TOKENS + 1 + image  # one is the time
    return {
        "hidden_states": zeros(config.in_channels, height, width),
        "timestep": zeros(),
        "input_ids": zeros.integers(HUNYUAN_TOKENS),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": zeros(tokens, tokens),
        "position_ids": torch.arange(tokens, device=zeros.device).expand(zeros.batch, -1),
    }


def _lumina_next(config: Any, zeros: Zeros, height: int, width: int) -> dict[str, Any]:
    patch, size = config.patch_size, config.hidden_size // config.num_attention_heads
    table = zeros(height // patch, width // patch, size // 2)[0]
    return {
        "hidden_states": zeros(config.in_channels, height, width),
        "timestep": zeros(),
        "encoder_hidden_states": zeros(HUNYUAN_TOKENS, config.cross_attention_dim),
        "encoder_mask": zeros.mask(HUNYUAN_TOKENS),
        "image_rotary_emb": torch.complex(table.float(), table.float()),
        "cross_attention_kwargs": {},
    }


PACKED = {
    "FluxTransformer2DModel",
    "FluxControlNetModel",
    "ChromaTransformer2DModel",
    "Flux2Transformer2DModel",
    "OvisImageTransformer2DModel",
    "LongCatImageTransformer2DModel",
    "BriaTransformer2DModel",
    "Krea2Transformer2DModel",
    "Flux3Transformer2DModel",
    "Ideogram4Transformer2DModel",
}
UNPACKED = {"BriaFiboTransformer2DModel"}  # positions are values too, one a place of the latent
IMAGE_TRANSFORMERS: dict[str, Maker] = {
    "PixArtTransformer2DModel": _pixart,
    "DiTTransformer2DModel": _dit,
    "FluxTransformer2DModel": _packed,
    "ChromaTransformer2DModel": _packed,
    "SD3Transformer2DModel": _sd3,
    "QwenImageTransformer2DModel": _qwen_image,
    "HunyuanDiT2DModel": _hunyuan_dit,
    "HunyuanDiT2DControlNetModel": _hunyuan_dit_controlnet,
    "HunyuanImageTransformer2DModel": _hunyuan_image,
    "Flux2Transformer2DModel": _flux2,
    "Flux3Transformer2DModel": _flux3,
    "OvisImageTransformer2DModel": _packed,
    "LongCatImageTransformer2DModel": _longcat_image,
    "FluxControlNetModel": _flux_controlnet,
    "SD3ControlNetModel": _sd3_controlnet,
    "QwenImageControlNetModel": _qwen_controlnet,
    "BriaTransformer2DModel": _packed,
    "BriaFiboTransformer2DModel": _bria_fibo,
    "BriaFibo2Transformer2DModel": _bria_fibo2,
    "HiDreamImageTransformer2DModel": _hidream,
    "NucleusMoEImageTransformer2DModel": _nucleus,
    "Krea2Transformer2DModel": _krea2,
    "ZImageTransformer2DModel": _z_image,
    "CogView3PlusTransformer2DModel": _cogview,
    "CogView4Transformer2DModel": _cogview,
    "GlmImageTransformer2DModel": _glm_image,
    "AuraFlowTransformer2DModel": _auraflow,
    "Ideogram4Transformer2DModel": _ideogram4,
    "PRXTransformer2DModel": _prx,
    "ErnieImageTransformer2DModel": _ernie_image,
    "Lumina2Transformer2DModel": _lumina2,
    "LuminaNextDiT2DModel": _lumina_next,
    "OmniGenTransformer2DModel": _omnigen,
}
