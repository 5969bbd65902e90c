"""Tiny models that only the compatibility tests need; the others are in ``tests/tiny.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from tests import tiny
from torch import Tensor


def one_level_unet(seed: int = 0, **options: Any) -> diffusers.UNet2DConditionModel:
    """Three attention blocks at one resolution; the smallest graph to compile."""
    return tiny.sd_unet(
        seed,
        **{
            "block_out_channels": (4,),
            "down_block_types": ("CrossAttnDownBlock2D",),
            "mid_block_type": None,
            "up_block_types": ("CrossAttnUpBlock2D",),
            "attention_head_dim": 1,
            "norm_num_groups": 2,
            **options,
        },
    )


def ip_adapter(unet: Any, plus: bool = False, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """An IP-Adapter checkpoint for a U-Net, in the layout of the published files.

    Args:
        unet: its cross-attention gets a key and a value projection each.
        plus: image features of several tokens through a resampler, as in "IP-Adapter Plus".
        seed: of the weights.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.5

    text = unet.config.cross_attention_dim
    attention: dict[str, Tensor] = {}
    for index, (name, processor) in enumerate(unet.attn_processors.items()):
        module = unet.get_submodule(name.removesuffix(".processor"))
        if processor is not None and ".attn2." in name:
            for part in ("to_k_ip", "to_v_ip"):
                attention[f"{index}.{part}.weight"] = noise(module.inner_dim, text)
    image = 6  # width of the image embedding
    if not plus:
        projection = {
            "proj.weight": noise(4 * text, image),
            "proj.bias": noise(4 * text),
            "norm.weight": torch.ones(text),
            "norm.bias": torch.zeros(text),
        }
    else:
        width, heads, hidden = 64, 64, 256  # heads are 64 wide, the MLP is four times as wide
        projection = {
            "latents": noise(1, 4, width),
            "proj_in.weight": noise(width, image),
            "proj_in.bias": noise(width),
            "proj_out.weight": noise(text, width) * 0.2,
            "proj_out.bias": noise(text),
            "norm_out.weight": torch.ones(text),
            "norm_out.bias": torch.zeros(text),
        }
        for layer in range(4):  # the depth of the published ones, fixed in the converter
            projection |= {
                f"layers.{layer}.0.norm1.weight": torch.ones(width),
                f"layers.{layer}.0.norm1.bias": torch.zeros(width),
                f"layers.{layer}.0.norm2.weight": torch.ones(width),
                f"layers.{layer}.0.norm2.bias": torch.zeros(width),
                f"layers.{layer}.0.to_q.weight": noise(heads, width) * 0.2,
                f"layers.{layer}.0.to_kv.weight": noise(2 * heads, width) * 0.2,
                f"layers.{layer}.0.to_out.weight": noise(width, heads) * 0.2,
                f"layers.{layer}.1.0.weight": torch.ones(width),
                f"layers.{layer}.1.0.bias": torch.zeros(width),
                f"layers.{layer}.1.1.weight": noise(hidden, width) * 0.2,
                f"layers.{layer}.1.3.weight": noise(width, hidden) * 0.2,
            }
    return {"image_proj": projection, "ip_adapter": attention}


def upscaler(folder: Path) -> Any:
    """Like the x4 upscaler: most levels attend to the text alone, even in ``attn1``."""
    unet = tiny.sd_unet(
        in_channels=7,
        out_channels=4,
        num_class_embeds=1000,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        only_cross_attention=(True, True, False),
    )
    pipe = diffusers.StableDiffusionUpscalePipeline(
        vae=tiny.vae(),
        text_encoder=tiny.clip_text_model(),
        tokenizer=tiny.clip_tokenizer(folder),
        unet=unet,
        low_res_scheduler=diffusers.DDPMScheduler(),
        scheduler=tiny.scheduler(),
        max_noise_level=350,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def animatediff(folder: Path) -> Any:
    """AnimateDiff: a U-Net of pictures and a motion adapter."""
    unet = tiny.sd_unet(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    adapter = tiny._build(
        lambda: diffusers.MotionAdapter(
            block_out_channels=(8, 16),
            motion_layers_per_block=1,
            motion_num_attention_heads=2,
            motion_norm_num_groups=4,
            motion_max_seq_length=8,
            use_motion_mid_block=True,
        )
    )
    pipe = diffusers.AnimateDiffPipeline(
        vae=tiny.vae(),
        text_encoder=tiny.clip_text_model(),
        tokenizer=tiny.clip_tokenizer(folder),
        unet=unet,
        motion_adapter=adapter,
        scheduler=tiny.scheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sparse_control(folder: Path) -> Any:
    """AnimateDiff with a ControlNet that sees some of the frames."""
    pipe = diffusers.AnimateDiffSparseControlNetPipeline(
        vae=tiny.vae(),
        text_encoder=tiny.clip_text_model(),
        tokenizer=tiny.clip_tokenizer(folder),
        unet=tiny.motion_unet(),
        motion_adapter=None,
        controlnet=tiny.sparse_controlnet(),
        scheduler=tiny.scheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def controlnet_xs(folder: Path) -> Any:
    """The pipeline puts the U-Net and the adapter together, as two parts of a new U-Net."""
    unet = tiny.shallow_unet(layers_per_block=2)
    adapter = diffusers.ControlNetXSAdapter.from_unet(
        unet, size_ratio=1.0, conditioning_embedding_out_channels=(4, 8)
    )
    adapter = tiny._build(lambda: adapter)  # its zero convolutions would hide it
    kind = "StableDiffusionControlNetXSPipeline"
    return tiny.sd_pipeline(folder, kind=kind, unet=unet, controlnet=adapter)


def stable_video() -> Any:
    """Stable Video Diffusion."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    vision = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        projection_dim=tiny.TEXT_DIM,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=224,  # fixed in the pipeline
        patch_size=112,
    )
    vae = tiny._build(
        lambda: diffusers.AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 32),  # its group norms have 32 groups
            down_block_types=("DownEncoderBlock2D",) * 2,
            layers_per_block=1,
            latent_channels=4,
        )
    )
    pipe = diffusers.StableVideoDiffusionPipeline(
        vae=vae,
        image_encoder=tiny._build(lambda: CLIPVisionModelWithProjection(vision)),
        unet=tiny.svd_unet(),
        scheduler=diffusers.EulerDiscreteScheduler(
            prediction_type="v_prediction",
            timestep_type="continuous",
            sigma_min=0.002,
            sigma_max=700.0,
            use_karras_sigmas=True,
        ),
        feature_extractor=CLIPImageProcessor(crop_size=224, size=224),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sdxl(folder: Path) -> Any:
    """SDXL with two text encoders, each half as wide as its text embedding."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        **{**tiny.clip_text_model().config.to_dict(), "projection_dim": tiny.TEXT_DIM}
    )
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=tiny.vae(),
        text_encoder=tiny.clip_text_model(),
        text_encoder_2=tiny._build(lambda: CLIPTextModelWithProjection(config), seed=1),
        tokenizer=tiny.clip_tokenizer(folder),
        tokenizer_2=tiny.clip_tokenizer(folder),
        unet=tiny.sdxl_unet(cross_attention_dim=2 * tiny.TEXT_DIM),
        scheduler=tiny.scheduler("EulerDiscreteScheduler"),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixart_sigma() -> Any:
    """PixArt-Sigma for ready-made text embeddings."""
    pipe = diffusers.PixArtSigmaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=tiny.vae(),
        transformer=tiny.pixart(),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def coder(**options: Any) -> diffusers.VQModel:
    """Of a codebook; two pixels a latent pixel."""
    settings = {
        "block_out_channels": (4, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 2,
        "num_vq_embeddings": 8,
    }
    return tiny._build(lambda: diffusers.VQModel(**{**settings, **options}))


def kandinsky3() -> Any:
    """Kandinsky 3 for ready-made text embeddings; eight pixels a latent pixel, whatever movq is."""
    pipe = diffusers.Kandinsky3Pipeline(
        tokenizer=None,
        text_encoder=None,
        unet=tiny.kandinsky3(),
        scheduler=diffusers.DDPMScheduler(),
        movq=coder(
            latent_channels=4,
            block_out_channels=(4,) * 4,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def amused() -> Any:
    """aMUSEd for ready-made text embeddings."""
    pipe = diffusers.AmusedPipeline(
        vqvae=coder(latent_channels=8),
        tokenizer=None,
        text_encoder=None,
        transformer=tiny.uvit(),
        scheduler=diffusers.AmusedScheduler(mask_token_id=11),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def super_resolution() -> Any:
    """Latent diffusion from a small picture: its channels come beside the noise."""
    unet = tiny.plain_unet(
        in_channels=6, out_channels=3, num_class_embeds=None, mid_block_scale_factor=1.0
    )
    pipe = diffusers.LDMSuperResolutionPipeline(
        vqvae=coder(latent_channels=3), unet=unet, scheduler=tiny.scheduler()
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def dit() -> Any:
    """DiT at its one size; every label is a class of :func:`tests.tiny.dit`."""
    pipe = diffusers.DiTPipeline(
        transformer=tiny._build(
            lambda: diffusers.DiTTransformer2DModel(
                sample_size=16,
                num_layers=2,
                patch_size=2,
                num_attention_heads=2,
                attention_head_dim=4,
                in_channels=4,
                out_channels=8,
                num_embeds_ada_norm=1000,  # the pipeline's empty label is number 1000
                norm_num_groups=4,
            )
        ),
        vae=tiny.vae(),
        scheduler=diffusers.DDIMScheduler(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
