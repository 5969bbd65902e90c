"""Real pipelines of diffusers at tiny size with random weights: films, joint attention, edits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
from tests import tiny
from tests.tiny import TEXT_DIM, TEXT_TOKENS


def t5_tokenizer() -> Any:
    """Letters and a few pieces, in the form of T5's tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(97, 123)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in letters] + [("▁a", -2.5), ("at", -3.5)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        model_max_length=TEXT_TOKENS + 3,
    )  # fmt: skip


def t5_encoder(seed: int = 1, umt5: bool = False) -> Any:
    """Of width ``TEXT_DIM``."""
    import transformers

    name = "UMT5" if umt5 else "T5"
    config = getattr(transformers, f"{name}Config")(
        vocab_size=64, d_model=TEXT_DIM, d_kv=4, d_ff=8, num_layers=1, num_heads=2,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    kind = getattr(transformers, f"{name}EncoderModel")
    return tiny._build(lambda: kind(config), seed)


def pooled_text_model(seed: int = 2) -> Any:
    """CLIP with a projection, as SD3 has two of."""
    from transformers import CLIPTextModelWithProjection

    config = tiny.clip_text_model().config
    config.projection_dim = 4
    return tiny._build(lambda: CLIPTextModelWithProjection(config), seed)


def flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler()


def image_vae(channels: int) -> Any:
    """Two pixels a latent pixel, with the shift of FLUX and SD3."""
    return tiny._build(
        lambda: diffusers.AutoencoderKL(
            block_out_channels=(4, 8), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels, norm_num_groups=2,
            sample_size=32, scaling_factor=0.3, shift_factor=0.1, use_quant_conv=False,
            use_post_quant_conv=False,
        )
    )  # fmt: skip


def animatediff(folder: Path) -> Any:
    """At most 8 frames; two pixels a latent pixel, native size 32."""
    adapter = tiny._build(
        lambda: diffusers.MotionAdapter(
            block_out_channels=(8, 16), motion_layers_per_block=1, motion_num_attention_heads=2,
            motion_norm_num_groups=4, motion_max_seq_length=8, use_motion_mid_block=False,
        )
    )  # fmt: skip
    return diffusers.AnimateDiffPipeline(
        vae=tiny.vae(), text_encoder=tiny.clip_text_model(), unet=tiny.motion_unet(),
        tokenizer=tiny.clip_tokenizer(folder), motion_adapter=adapter, scheduler=tiny.scheduler(),
    )  # fmt: skip


def svd(folder: Path) -> Any:
    """Starts from a picture, takes no prompt."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    vision = CLIPVisionConfig(
        hidden_size=8, projection_dim=TEXT_DIM, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, image_size=224, patch_size=112,  # the pipeline wants 224
    )  # fmt: skip
    vae = diffusers.AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 2, block_out_channels=(32, 32),
        latent_channels=4, sample_size=32, layers_per_block=1,
    )  # fmt: skip
    schedule = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        prediction_type="v_prediction", use_karras_sigmas=True, timestep_type="continuous",
        timestep_spacing="leading", sigma_min=0.002, sigma_max=700.0, interpolation_type="linear",
    )  # fmt: skip
    size = {"height": 224, "width": 224}
    return diffusers.StableVideoDiffusionPipeline(
        vae=tiny._build(lambda: vae),
        image_encoder=tiny._build(lambda: CLIPVisionModelWithProjection(vision)),
        unet=tiny.svd_unet(),
        scheduler=schedule,
        feature_extractor=CLIPImageProcessor(crop_size=size, size={"shortest_edge": 224}),
    )


def flux(folder: Path, guidance_embeds: bool = True, kind: str = "FluxPipeline") -> Any:
    """Four channels a latent pixel, packed 2 x 2."""
    transformer = tiny._build(
        lambda: diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=TEXT_DIM, pooled_projection_dim=TEXT_DIM,
            axes_dims_rope=(2, 2, 4), guidance_embeds=guidance_embeds,
        )
    )  # fmt: skip
    return getattr(diffusers, kind)(
        scheduler=flow(), vae=image_vae(4), text_encoder=tiny.clip_text_model(),
        tokenizer=tiny.clip_tokenizer(folder), text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(), transformer=transformer,
    )  # fmt: skip


def sd3(folder: Path) -> Any:
    """Three text encoders; a token is a 2 x 2 patch of the latent."""
    transformer = tiny._build(
        lambda: diffusers.SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=2 * TEXT_DIM, caption_projection_dim=16,
            pooled_projection_dim=8, out_channels=4, pos_embed_max_size=16,
        )
    )  # fmt: skip
    t5 = t5_encoder()
    wide = type(t5)(type(t5.config).from_dict({**t5.config.to_dict(), "d_model": 2 * TEXT_DIM}))
    tokenizer = tiny.clip_tokenizer(folder)
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=flow(), vae=image_vae(4),
        text_encoder=pooled_text_model(2), tokenizer=tokenizer,
        text_encoder_2=pooled_text_model(3), tokenizer_2=tokenizer,
        text_encoder_3=tiny._build(lambda: wide), tokenizer_3=t5_tokenizer(),
    )  # fmt: skip


def wan(folder: Path) -> Any:
    """Eight pixels a latent pixel, four frames a latent frame, patches of 1 x 2 x 2."""
    transformer = tiny._build(
        lambda: diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4,
            out_channels=4, text_dim=TEXT_DIM, freq_dim=8, ffn_dim=16, num_layers=1,
            cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
        )
    )  # fmt: skip
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    return diffusers.WanPipeline(
        tokenizer=t5_tokenizer(), text_encoder=t5_encoder(umt5=True), transformer=transformer,
        vae=tiny._build(lambda: vae), scheduler=flow(),
    )  # fmt: skip


def pixart(folder: Path) -> Any:
    """Two pixels a latent pixel; a token is a 2 x 2 patch of the latent."""
    return diffusers.PixArtSigmaPipeline(
        tokenizer=t5_tokenizer(), text_encoder=t5_encoder(), vae=tiny.vae(),
        transformer=tiny.pixart(), scheduler=diffusers.DPMSolverMultistepScheduler(),
    )  # fmt: skip


def pix2pix(folder: Path) -> Any:
    """InstructPix2Pix: the picture's latent comes beside the noise."""
    unet = tiny.sd_unet(in_channels=8)
    return tiny.sd_pipeline(folder, kind="StableDiffusionInstructPix2PixPipeline", unet=unet)
