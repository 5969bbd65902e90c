"""Real diffusers models and pipelines at tiny size, with random weights and no downloads.

Weights are the same at every call with the same seed, and the global random state is left alone.
Attention is made sharp and nothing is left at zero, so that a wrong key shows in the output.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)

TEXT_DIM = 8
TEXT_TOKENS = 5
FRAMES = 2


def _build(make: Callable[[], Model], seed: int = 0) -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().eval().requires_grad_(False)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, Attention):
                    module.to_q.weight.mul_(3)
                    module.to_k.weight.mul_(3)
            for parameter in model.parameters():
                if not parameter.any():  # zero convolutions would hide everything before them
                    parameter.normal_(std=0.2)
    return model


# Denoisers


def sd_unet(seed: int = 0, **options: Any) -> diffusers.UNet2DConditionModel:
    """Like Stable Diffusion 1.5: self-attention at downsampling 1, 2, 4 and 8."""
    settings = {
        "sample_size": 16,
        "block_out_channels": (8, 16, 16, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": TEXT_DIM,
        "attention_head_dim": 2,  # the number of heads, in this family
        "norm_num_groups": 4,
    }
    return _build(lambda: diffusers.UNet2DConditionModel(**{**settings, **options}), seed)


def shallow_unet(seed: int = 0, **options: Any) -> diffusers.UNet2DConditionModel:
    """Two levels, self-attention at 1 and 2; cheap at large sizes."""
    return sd_unet(
        seed,
        **{
            "block_out_channels": (4, 8),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "attention_head_dim": 1,
            "norm_num_groups": 2,
            **options,
        },
    )


def mixed_unet(seed: int = 0) -> diffusers.UNet2DConditionModel:
    """Text at downsampling 1 and in the middle; at 2 attention is given maps as well."""
    return sd_unet(
        seed,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "CrossAttnUpBlock2D"),
    )


def sdxl_unet(seed: int = 0, **options: Any) -> diffusers.UNet2DConditionModel:
    """Like SDXL: no attention at full resolution, self-attention at downsampling 2 and 4."""
    settings = {
        "sample_size": 16,
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 2),
        "cross_attention_dim": TEXT_DIM,
        "attention_head_dim": (2, 2, 4),
        "norm_num_groups": 4,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + TEXT_DIM,
    }
    return _build(lambda: diffusers.UNet2DConditionModel(**{**settings, **options}), seed)


def controlnet(seed: int = 0, **options: Any) -> diffusers.ControlNetModel:
    """For :func:`sd_unet`; self-attention at downsampling 1, 2, 4 and 8."""
    settings = {
        "block_out_channels": (8, 16, 16, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "cross_attention_dim": TEXT_DIM,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "conditioning_embedding_out_channels": (4, 8),  # two pixels a latent pixel
    }
    return _build(lambda: diffusers.ControlNetModel(**{**settings, **options}), seed)


def dreamlite_unet(seed: int = 0) -> diffusers.DreamLiteUNetModel:
    """Self-attention at downsampling 2 only, two heads of queries to one of normalised keys."""
    return _build(
        lambda: diffusers.DreamLiteUNetModel(
            sample_size=16,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=(
                "DreamLiteCrossAttnNoSelfAttnDownBlock2D",
                "DreamLiteCrossAttnDownBlock2D",
            ),
            up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
            cross_attention_dim=TEXT_DIM,
            attention_head_dim=2,  # the number of heads
            norm_num_groups=4,
            addition_embed_type="time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=8,
        ),
        seed,
    )


def union_controlnet(seed: int = 0, **options: Any) -> diffusers.ControlNetUnionModel:
    """For :func:`sdxl_unet`, of two kinds of conditions, mixed by a transformer of its own."""
    settings = {
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "transformer_layers_per_block": (1, 1, 2),
        "cross_attention_dim": TEXT_DIM,
        "attention_head_dim": (2, 2, 4),
        "norm_num_groups": 4,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + TEXT_DIM,
        "conditioning_embedding_out_channels": (4, 8),  # two pixels a latent pixel
        "num_control_type": 2,
        "num_trans_channel": 8,
        "num_trans_head": 2,
        "num_proj_channel": 8,
    }
    return _build(lambda: diffusers.ControlNetUnionModel(**{**settings, **options}), seed)


def sparse_controlnet(seed: int = 0) -> diffusers.SparseControlNetModel:
    """For :func:`motion_unet`; spatial self-attention at downsampling 1, temporal everywhere."""
    return _build(
        lambda: diffusers.SparseControlNetModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
            cross_attention_dim=TEXT_DIM,
            attention_head_dim=2,
            motion_num_attention_heads=2,
            motion_max_seq_length=8,
            norm_num_groups=4,
        ),
        seed,
    )


def controlnet_xs(seed: int = 0) -> diffusers.UNetControlNetXSModel:
    """A U-Net and its slim ControlNet in one; self-attention of both at downsampling 1 and 2."""
    return _build(
        lambda: diffusers.UNetControlNetXSModel(
            sample_size=16,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=TEXT_DIM,
            num_attention_heads=2,
            norm_num_groups=4,
            ctrl_block_out_channels=(4, 8),
            ctrl_num_attention_heads=2,
            ctrl_conditioning_embedding_out_channels=(4, 8),  # two pixels a latent pixel
        ),
        seed,
    )


def motion_unet(seed: int = 0) -> diffusers.UNetMotionModel:
    """AnimateDiff: spatial self-attention at downsampling 1 and 2, temporal everywhere."""
    return _build(
        lambda: diffusers.UNetMotionModel(
            sample_size=16,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
            up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
            cross_attention_dim=TEXT_DIM,
            num_attention_heads=2,
            motion_num_attention_heads=2,
            motion_max_seq_length=8,
            norm_num_groups=4,
            use_motion_mid_block=False,
        ),
        seed,
    )


def svd_unet(seed: int = 0) -> diffusers.UNetSpatioTemporalConditionModel:
    """Stable Video Diffusion: spatial self-attention at downsampling 1 and 2."""
    return _build(
        lambda: diffusers.UNetSpatioTemporalConditionModel(
            sample_size=16,
            in_channels=8,
            block_out_channels=(32, 64),  # its group norms have 32 groups
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            cross_attention_dim=TEXT_DIM,
            num_attention_heads=2,
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=12,
        ),
        seed,
    )


def unet_3d(seed: int = 0) -> diffusers.UNet3DConditionModel:
    """ModelScope text-to-video: spatial self-attention at downsampling 1 and 2."""
    return _build(
        lambda: diffusers.UNet3DConditionModel(
            sample_size=16,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            cross_attention_dim=TEXT_DIM,
            attention_head_dim=4,
            norm_num_groups=4,
        ),
        seed,
    )


def i2vgen_unet(seed: int = 0) -> diffusers.I2VGenXLUNet:
    """I2VGen-XL: spatial self-attention at downsampling 1 and 2."""
    return _build(
        lambda: diffusers.I2VGenXLUNet(
            sample_size=16,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            cross_attention_dim=TEXT_DIM,
            attention_head_dim=4,
            norm_num_groups=2,
        ),
        seed,
    )


def plain_unet(seed: int = 0, **options: Any) -> diffusers.UNet2DModel:
    """No text; attention gets maps, normalises and flattens them, at downsampling 1 and 2."""
    settings = {
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("AttnDownBlock2D",) * 2,
        "up_block_types": ("AttnUpBlock2D",) * 2,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
        "mid_block_scale_factor": 2.0,
        "num_class_embeds": 3,
    }
    return _build(lambda: diffusers.UNet2DModel(**{**settings, **options}), seed)


def kandinsky3(seed: int = 0) -> diffusers.Kandinsky3UNet:
    """Self-attention at downsampling 2, 4 and 8, at the ends of its blocks."""
    return _build(
        lambda: diffusers.Kandinsky3UNet(
            time_embedding_dim=8,
            groups=2,
            attention_head_dim=4,
            layers_per_block=2,
            block_out_channels=(8, 16, 16, 16),
            cross_attention_dim=TEXT_DIM,
            encoder_hid_dim=TEXT_DIM,
        ),
        seed,
    )


def uvit(seed: int = 0) -> diffusers.UVit2DModel:
    """aMUSEd: tokens of a codebook; a token of the transformer is 2 x 2 of them."""
    return _build(
        lambda: diffusers.UVit2DModel(
            hidden_size=16,
            cond_embed_dim=TEXT_DIM,
            micro_cond_encode_dim=4,
            micro_cond_embed_dim=20,
            encoder_hidden_size=TEXT_DIM,
            vocab_size=12,
            codebook_size=8,
            in_channels=8,
            block_out_channels=8,
            num_res_blocks=1,
            downsample=True,
            upsample=True,
            block_num_heads=1,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            sample_size=16,
        ),
        seed,
    )


def pixart(seed: int = 0, **options: Any) -> diffusers.PixArtTransformer2DModel:
    """Two blocks; a token is a 2 x 2 patch of the latent."""
    settings = {
        "sample_size": 16,
        "num_layers": 2,
        "patch_size": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 4,
        "in_channels": 4,
        "out_channels": 8,
        "caption_channels": TEXT_DIM,
        "cross_attention_dim": 8,
        "use_additional_conditions": False,
    }
    return _build(lambda: diffusers.PixArtTransformer2DModel(**{**settings, **options}), seed)


def dit(seed: int = 0) -> diffusers.DiTTransformer2DModel:
    """Two blocks with class labels; a token is a 2 x 2 patch of the latent."""
    return _build(
        lambda: diffusers.DiTTransformer2DModel(
            sample_size=16,
            num_layers=2,
            patch_size=2,
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=4,
            out_channels=8,
            num_embeds_ada_norm=10,
            norm_num_groups=4,
        ),
        seed,
    )


def latte(seed: int = 0) -> diffusers.LatteTransformer3DModel:
    """Two spatial and two temporal blocks in turn; a token is a 2 x 2 patch of a frame."""
    return _build(
        lambda: diffusers.LatteTransformer3DModel(
            sample_size=16,
            num_layers=2,
            patch_size=2,
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=4,
            out_channels=8,
            caption_channels=TEXT_DIM,
            cross_attention_dim=8,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            video_length=FRAMES,
        ),
        seed,
    )


# Inputs of one call of a denoiser


def inputs(
    model: nn.Module, height: int = 16, width: int = 16, batch: int = 2, seed: int = 0
) -> dict[str, Any]:
    """Keyword arguments of ``model(**...)`` for a latent of the given size, in its dtype."""
    generator = torch.Generator().manual_seed(seed)
    parameter = next(model.parameters())

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(parameter.device, parameter.dtype)

    text = noise(batch, TEXT_TOKENS, TEXT_DIM)
    time = torch.full((batch,), 500, device=parameter.device)
    kind = type(model).__name__
    if kind == "PixArtTransformer2DModel":
        return {
            "hidden_states": noise(batch, 4, height, width),
            "encoder_hidden_states": text,
            "timestep": time,
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }
    if kind == "DiTTransformer2DModel":
        labels = torch.arange(batch, device=parameter.device)
        return {
            "hidden_states": noise(batch, 4, height, width),
            "timestep": time,
            "class_labels": labels,
        }
    if kind == "LatteTransformer3DModel":
        return {
            "hidden_states": noise(batch, 4, FRAMES, height, width),
            "encoder_hidden_states": text,
            "timestep": time,
        }
    if kind == "UNetSpatioTemporalConditionModel":
        return {
            "sample": noise(batch, FRAMES, 8, height, width),
            "timestep": time,
            "encoder_hidden_states": noise(batch, 1, TEXT_DIM),
            "added_time_ids": noise(batch, 3),
        }
    if kind in ("UNetMotionModel", "UNet3DConditionModel", "I2VGenXLUNet", "SparseControlNetModel"):
        video = {
            "sample": noise(batch, 4, FRAMES, height, width),
            "timestep": time,
            "encoder_hidden_states": text,
        }
        if kind in ("UNetMotionModel", "SparseControlNetModel"):  # a prompt for every frame
            video["encoder_hidden_states"] = text.repeat_interleave(FRAMES, dim=0)
        if kind == "SparseControlNetModel":
            video["controlnet_cond"] = noise(batch, 4, FRAMES, height, width)
            video["conditioning_mask"] = torch.ones_like(video["controlnet_cond"][:, :1])
        if kind == "I2VGenXLUNet":
            video["fps"] = time
            video["image_latents"] = noise(batch, 4, FRAMES, height, width)
            video["image_embeddings"] = noise(batch, TEXT_DIM)
        return video
    if kind == "UVit2DModel":
        ids = torch.randint(0, 12, (batch, height, width), generator=generator)
        return {
            "input_ids": ids.to(parameter.device),
            "encoder_hidden_states": text,
            "pooled_text_emb": text[:, 0],
            "micro_conds": noise(batch, 5),
        }
    image = {"sample": noise(batch, 4, height, width), "timestep": time}
    if kind == "UNet2DModel":
        return {**image, "class_labels": torch.arange(batch, device=parameter.device)}
    image["encoder_hidden_states"] = text
    if kind == "Kandinsky3UNet":
        mask = torch.ones_like(text[..., 0])
        mask[0, -2:] = 0
        return {**image, "encoder_attention_mask": mask}
    if model.config.addition_embed_type == "text_time":
        image["added_cond_kwargs"] = {
            "text_embeds": noise(batch, TEXT_DIM),
            "time_ids": noise(batch, 6),
        }
    if model.config.addition_embed_type == "time":
        image["added_cond_kwargs"] = {"time_ids": noise(batch, 2)}
    if "ControlNet" in kind:
        image["controlnet_cond"] = noise(batch, 3, 2 * height, 2 * width)
    if kind == "ControlNetUnionModel":
        image["controlnet_cond"] = [image["controlnet_cond"]]
        image["control_type"] = noise(batch, 2)
        image["control_type_idx"] = [1]
    return image


def flatten(output: Any) -> Tensor:
    """All tensors of a model's output in one row."""
    if isinstance(output, Tensor):
        return output.flatten()
    parts = output.values() if isinstance(output, dict) else output
    return torch.cat([flatten(part) for part in parts])


@torch.no_grad()
def run(model: nn.Module, *size: int, **options: Any) -> Tensor:
    """The output of one call, flattened; ``size`` and ``options`` as for :func:`inputs`."""
    return flatten(model(**inputs(model, *size, **options)))


# Pipelines


def vae(seed: int = 0) -> diffusers.AutoencoderKL:
    """Two pixels a latent pixel."""
    return _build(
        lambda: diffusers.AutoencoderKL(
            block_out_channels=(4, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=2,
            sample_size=32,
        ),
        seed,
    )


def clip_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer over single bytes; its two files are written to ``folder``."""
    from transformers import CLIPTokenizer

    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in visible]
    letters += [chr(256 + index) for index in range(256 - len(visible))]
    vocabulary = [*letters, *(letter + "</w>" for letter in letters)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({token: index for index, token in enumerate(vocabulary)}), encoding="utf-8"
    )
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=TEXT_TOKENS + 3)


def clip_text_model(seed: int = 0) -> Any:
    """A text encoder of width ``TEXT_DIM`` for :func:`clip_tokenizer`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=TEXT_DIM,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=TEXT_TOKENS + 3,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    return _build(lambda: CLIPTextModel(config), seed)


def scheduler(name: str = "DDIMScheduler", **options: Any) -> Any:
    """A scheduler of diffusers with the settings of Stable Diffusion."""
    make = getattr(diffusers, name)
    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        "clip_sample": False,
        "skip_prk_steps": True,
    }
    known = inspect.signature(make).parameters
    chosen = {name: value for name, value in settings.items() if name in known}
    return make(**{**chosen, **options})


def sd_pipeline(
    folder: Path,
    schedule: str = "DDIMScheduler",
    kind: str = "StableDiffusionPipeline",
    **parts: Any,
) -> Any:
    """A Stable Diffusion 1.5-like pipeline.

    Args:
        folder: for the tokenizer's files, such as pytest's ``tmp_path``.
        schedule: class name of the scheduler.
        kind: class name of the pipeline, e.g. ``"StableDiffusionImg2ImgPipeline"``.
        **parts: replace or add components, e.g. ``controlnet=tiny.controlnet()``.
    """
    components = {
        "vae": vae(),
        "text_encoder": clip_text_model(),
        "tokenizer": clip_tokenizer(folder),
        "unet": sd_unet(),
        "scheduler": scheduler(schedule),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    pipe = getattr(diffusers, kind)(**{**components, **parts})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image_of(pipe: Any, steps: int = 2, size: int = 32, seed: int = 0, **options: Any) -> Tensor:
    """What a pipeline makes of a fixed prompt and seed; ``size`` in pixels, two a latent pixel."""
    settings = {
        "prompt": "a cat",
        "num_inference_steps": steps,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "pt",
        **options,
    }
    if "image" not in options:
        settings = {"height": size, "width": size, **settings}
    return pipe(**settings).images
