"""Joint-attention and video transformers of diffusers at tiny size."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch.nn import functional

import tiny
from older import later
from transformer_inputs import FRAMES, INPUTS, SOUND, TEXT, inputs, position_ids

__all__ = ["FRAMES", "INPUTS", "SOUND", "TEXT", "inputs", "position_ids", "run"]

DIM = 16  # two heads of 8 channels


def _build(make: Callable[[], Any], seed: int) -> Any:
    model = tiny._build(make, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm_q" in name or "norm_k" in name or "norm_added" in name:
                parameter.mul_(2.5)  # sharp attention, so that a wrong key shows
    return model


_FLUX = {
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 8,
    "axes_dims_rope": (2, 2, 4),
}


def flux(seed: int = 0, **options: Any) -> diffusers.FluxTransformer2DModel:
    """Two double and two single blocks."""
    settings = {**_FLUX, "num_layers": 2, "num_single_layers": 2, "pooled_projection_dim": 8}
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


def hunyuan_video_15(seed: int = 0) -> diffusers.HunyuanVideo15Transformer3DModel:
    """Two texts and a picture, sorted by what is valid; the mask is over queries too."""
    return _build(
        lambda: diffusers.HunyuanVideo15Transformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_refiner_layers=1,
            text_embed_dim=8,
            text_embed_2_dim=8,
            image_embed_dim=8,
            rope_axes_dim=(2, 2, 4),
        ),
        seed,
    )


def hunyuan_video_15_text(seed: int = 0) -> diffusers.HunyuanVideo15Transformer3DModel:
    """The same, of text alone: every token of the picture is masked."""
    return hunyuan_video_15(seed)


def kandinsky5(seed: int = 0, **options: Any) -> diffusers.Kandinsky5Transformer3DModel:
    """Video only, channels last; rotated keys are rounded to bfloat16."""
    settings = {
        "in_visual_dim": 4,
        "in_text_dim": 8,
        "in_text_dim2": 8,
        "time_dim": 8,
        "out_visual_dim": 4,
        "model_dim": DIM,
        "ff_dim": 16,
        "num_text_blocks": 1,
        "num_visual_blocks": 2,
        "axes_dims": (2, 2, 4),
    }
    model = _build(lambda: diffusers.Kandinsky5Transformer3DModel(**{**settings, **options}), seed)
    # the host gives it float32, in which it is loaded
    model.time_embeddings.in_layer.register_forward_pre_hook(_in_own_dtype)
    return model


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


def wan_animate(seed: int = 0) -> diffusers.WanAnimateTransformer3DModel:
    """Wan's blocks; poses and faces come in beside them."""
    return _build(
        lambda: diffusers.WanAnimateTransformer3DModel(
            **{**_WAN, "in_channels": 12, "latent_channels": 4, "image_dim": None},
            motion_encoder_channel_sizes={"4": 4, "8": 4, "16": 4},
            motion_encoder_size=16,
            motion_style_dim=4,
            motion_dim=4,
            motion_encoder_dim=8,
            face_encoder_hidden_dim=8,
            face_encoder_num_heads=2,
            inject_face_latents_blocks=2,
        ),
        seed,
    )


def hunyuan_dit(seed: int = 0) -> diffusers.HunyuanDiT2DModel:
    """Image tokens only, rotated; blocks are joined by skips."""
    return _build(
        lambda: diffusers.HunyuanDiT2DModel(
            sample_size=32,
            in_channels=4,
            patch_size=2,
            num_attention_heads=2,
            attention_head_dim=8,
            hidden_size=DIM,
            num_layers=4,  # the least with a skip
            cross_attention_dim=8,
            cross_attention_dim_t5=8,
            pooled_projection_dim=8,
            text_len=TEXT,
            text_len_t5=TEXT,
            use_style_cond_and_image_meta_size=False,
        ),
        seed,
    )


def z_image(seed: int = 0) -> diffusers.ZImageTransformer2DModel:
    """Image and caption in one stream, each filled up to a multiple of 32 tokens."""

    def make() -> diffusers.ZImageTransformer2DModel:
        model = diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=DIM,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=8,
            axes_dims=[2, 2, 4],
            axes_lens=[128, 64, 64],
        )
        for token in (model.x_pad_token, model.cap_pad_token):
            nn.init.zeros_(token)  # older releases leave them as memory was
        return model

    return _build(make, seed)


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


def ltx2(seed: int = 0, **options: Any) -> diffusers.LTX2VideoTransformer3DModel:
    """Video and sound beside each other; rotates before it splits the heads, as in LTX-2.0."""
    settings = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": DIM,
        "audio_in_channels": 4,
        "audio_out_channels": 4,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 4,
        "audio_cross_attention_dim": 8,
        "num_layers": 2,
        "caption_channels": 8,
    }
    return _build(lambda: diffusers.LTX2VideoTransformer3DModel(**{**settings, **options}), seed)


def ltx23(seed: int = 0) -> diffusers.LTX2VideoTransformer3DModel:
    """As in LTX-2.3: every head has a table of its own and a gate; masked, and can be perturbed."""
    later("LTX-2.3")
    return ltx2(
        seed,
        rope_type="split",
        gated_attn=True,
        audio_gated_attn=True,
        cross_attn_mod=True,
        audio_cross_attn_mod=True,
        perturbed_attn=True,
        use_prompt_embeddings=False,
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


def consisid(seed: int = 0) -> diffusers.ConsisIDTransformer3DModel:
    """CogVideoX's blocks; without the face."""
    return _build(
        lambda: diffusers.ConsisIDTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
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


def easyanimate(seed: int = 0) -> diffusers.EasyAnimateTransformer3DModel:
    """Text with projections of its own; rotates in place."""
    return _build(
        lambda: diffusers.EasyAnimateTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,  # the least that splits into frames, rows and columns
            in_channels=4,
            out_channels=4,
            patch_size=2,
            time_embed_dim=8,
            text_embed_dim=8,
            num_layers=2,
            mmdit_layers=2,
        ),
        seed,
    )


def cosmos(seed: int = 0) -> diffusers.CosmosTransformer3DModel:
    """Video only; rotates halves of a head."""
    return _build(
        lambda: diffusers.CosmosTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=2,
            text_embed_dim=8,
            adaln_lora_dim=4,
            max_size=(4, 64, 64),
            concat_padding_mask=False,  # resized by torchvision
            extra_pos_embed_type=None,
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


def glm_image(seed: int = 0) -> diffusers.GlmImageTransformer2DModel:
    """Text and image are joined before they are projected; pictures to edit are cached keys."""
    return _build(
        lambda: diffusers.GlmImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            text_embed_dim=8,
            time_embed_dim=8,
            condition_dim=4,
            prior_vq_quantizer_codebook_size=20,
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


def anyflow(seed: int = 0) -> diffusers.AnyFlowTransformer3DModel:
    """Wan-like; frames before channels, two times a frame."""
    return _build(lambda: diffusers.AnyFlowTransformer3DModel(**_WAN), seed)


def allegro(seed: int = 0) -> diffusers.AllegroTransformer3DModel:
    """Video only; rotates frames, rows and columns in a third of a head each."""
    return _build(
        lambda: diffusers.AllegroTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,  # a third splits into pairs
            num_layers=2,
            cross_attention_dim=24,
            sample_height=32,
            sample_width=32,
            sample_frames=FRAMES,
            caption_channels=8,
        ),
        seed,
    )


def mochi(seed: int = 0, **options: Any) -> diffusers.MochiTransformer3DModel:
    """Heads have tables of their own, samples as much text as counts; the last block drops text."""
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "pooled_projection_dim": 16,
        "in_channels": 4,
        "text_embed_dim": 8,
        "time_embed_dim": 8,
        "max_sequence_length": TEXT,
    }

    def make() -> diffusers.MochiTransformer3DModel:
        model = diffusers.MochiTransformer3DModel(**{**settings, **options})
        nn.init.normal_(model.pos_frequencies, std=0.1)  # zeros before they are trained
        return model

    return _build(make, seed)


def cosmos_controlnet(seed: int = 0) -> diffusers.CosmosControlNetModel:
    """Cosmos's blocks; control and latent are added up at the first."""
    _stand_in_for_torchvision()
    return _build(
        lambda: diffusers.CosmosControlNetModel(
            n_controlnet_blocks=2,
            in_channels=6,
            latent_channels=6,
            model_channels=32,
            num_attention_heads=2,
            attention_head_dim=16,
            text_embed_dim=8,
            adaln_lora_dim=4,
            max_size=(4, 64, 64),
        ),
        seed,
    )


def _stand_in_for_torchvision() -> None:
    """diffusers resizes a mask with torchvision, which does not go with a torch for CPUs only."""
    from diffusers.models.controlnets import controlnet_cosmos as host

    if not hasattr(host, "transforms"):
        host.transforms = SimpleNamespace(
            functional=SimpleNamespace(
                resize=lambda x, size, interpolation: functional.interpolate(x, size)
            ),
            InterpolationMode=SimpleNamespace(NEAREST="nearest"),
        )


def hunyuan_dit_controlnet(seed: int = 0) -> diffusers.HunyuanDiT2DControlNetModel:
    """The first half of HunyuanDiT's blocks."""
    return _build(
        lambda: diffusers.HunyuanDiT2DControlNetModel(
            sample_size=32,
            in_channels=4,
            patch_size=2,
            num_attention_heads=2,
            attention_head_dim=8,
            hidden_size=DIM,
            transformer_num_layers=6,  # two blocks
            cross_attention_dim=8,
            cross_attention_dim_t5=8,
            pooled_projection_dim=8,
            text_len=TEXT,
            text_len_t5=TEXT,
            use_style_cond_and_image_meta_size=False,
        ),
        seed,
    )


def motif_video(seed: int = 0, **options: Any) -> diffusers.MotifVideoTransformer3DModel:
    """One double and one single block, with cross-attention to text beside."""
    settings = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 1,
        "num_single_layers": 1,
        "text_embed_dim": 8,
        "rope_axes_dim": (2, 2, 4),
        "enable_text_cross_attention_dual": True,
        "enable_text_cross_attention_single": True,
    }
    model = _build(lambda: diffusers.MotifVideoTransformer3DModel(**{**settings, **options}), seed)
    # the host gives it float32, unless the model is in half precision
    model.time_text_embed.timestep_embedder.register_forward_pre_hook(_in_own_dtype)
    return model


def _in_own_dtype(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.to(next(module.parameters()).dtype) for x in args)


def motif_decoder(seed: int = 0) -> diffusers.MotifVideoTransformer3DModel:
    """The last block has the video so far where text was: all of it is exact."""
    return motif_video(seed, num_single_layers=2, num_decoder_layers=1)


def lumina_next(seed: int = 0) -> diffusers.LuminaNextDiT2DModel:
    """Image tokens only, rotated; two heads of queries to one of keys."""
    return _build(
        lambda: diffusers.LuminaNextDiT2DModel(
            sample_size=32,
            in_channels=4,
            hidden_size=DIM,
            num_layers=2,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=8,
            cross_attention_dim=8,
        ),
        seed,
    )


def hidream(
    seed: int = 0, experts: int = 3, **options: Any
) -> diffusers.HiDreamImageTransformer2DModel:
    """Text of a layer of its own in each block, experts, and a gray rest where it is not square."""
    return _build(
        lambda: diffusers.HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=[8, 6],
            text_emb_dim=8,
            num_routed_experts=experts,
            num_activated_experts=min(2, experts),
            axes_dims_rope=(4, 2, 2),
            max_resolution=(32, 32),
            llama_layers=[0, 1, 1, 0],
            **options,
        ),
        seed,
    )


def nucleus(
    seed: int = 0, experts: bool = True, **options: Any
) -> diffusers.NucleusMoEImageTransformer2DModel:
    """Text has keys alone; four heads of queries to two of keys; experts in the second block."""
    settings = {
        "in_channels": 4,
        "out_channels": 1,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "joint_attention_dim": 8,
        "axes_dims_rope": (2, 2, 4),
        "mlp_ratio": 6.0,
        "dense_moe_strategy": "leave_first_block_dense" if experts else "all_dense",
        "num_experts": 3,
        "moe_intermediate_dim": 8,
        "capacity_factors": 1.5,
    }

    def make() -> diffusers.NucleusMoEImageTransformer2DModel:
        model = diffusers.NucleusMoEImageTransformer2DModel(**{**settings, **options})
        for name, weights in model.named_parameters():
            if ".experts." in name:  # the class leaves them as they are in memory
                nn.init.normal_(weights, std=0.2)
        return model

    return _build(make, seed)


def krea2(seed: int = 0) -> diffusers.Krea2Transformer2DModel:
    """Text and image in one stream; four heads of queries to two of keys, and a gate behind."""
    return _build(
        lambda: diffusers.Krea2Transformer2DModel(
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=16,
            timestep_embed_dim=8,
            text_hidden_dim=8,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=8,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(2, 2, 4),
        ),
        seed,
    )


def bria_fibo2(seed: int = 0) -> diffusers.BriaFibo2Transformer2DModel:
    """A gist of the text before the image in one stream; the last block reads the text as well."""
    return _build(
        lambda: diffusers.BriaFibo2Transformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            cap_feat_dim=8,
            injection_layer_ids=(1,),
            perceiver_num_layers=1,
            min_num_gist_tokens=4,
            max_num_gist_tokens=8,
            gist_step=4,
            gist_min_text_len=4,
            gist_max_text_len=16,
            axes_dims=(4, 6, 6),
            axes_lens=(64, 64, 64),
        ),
        seed,
    )


def ernie_image(seed: int = 0, **options: Any) -> diffusers.ErnieImageTransformer2DModel:
    """Image and masked text in one stream, tokens before the batch; rotates halves of a head."""
    settings = {
        "hidden_size": DIM,
        "num_attention_heads": 2,
        "num_layers": 2,
        "ffn_hidden_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "text_in_dim": 8,
        "rope_axes_dim": (2, 2, 4),
    }
    return _build(lambda: diffusers.ErnieImageTransformer2DModel(**{**settings, **options}), seed)


def ideogram4(seed: int = 0, **options: Any) -> diffusers.Ideogram4Transformer2DModel:
    """Padding, text and image in one stream, masked by query; rotates halves of a head."""
    settings = {
        "in_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "adaln_dim": 8,
        "llm_features_dim": 8,
        "mrope_section": (2, 1, 1),
    }
    return _build(lambda: diffusers.Ideogram4Transformer2DModel(**{**settings, **options}), seed)


def prx(seed: int = 0) -> diffusers.PRXTransformer2DModel:
    """Text, under a mask, has keys alone; projections are fused."""
    return _build(
        lambda: diffusers.PRXTransformer2DModel(
            in_channels=4,
            context_in_dim=8,
            hidden_size=DIM,
            mlp_ratio=1.0,
            num_heads=2,
            depth=2,
            axes_dim=[4, 4],
        ),
        seed,
    )


def omnigen(seed: int = 0) -> diffusers.OmniGenTransformer2DModel:
    """Text, time and image in one stream, under a mask; rotates halves of a head."""
    return _build(
        lambda: diffusers.OmniGenTransformer2DModel(
            in_channels=4,
            hidden_size=DIM,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=16,
            num_layers=2,
            pad_token_id=0,
            vocab_size=20,
            rope_scaling={"short_factor": [1.0] * 4, "long_factor": [1.0] * 4},
            pos_embed_max_size=32,
            time_step_dim=8,
        ),
        seed,
    )


def flux3(seed: int = 0) -> diffusers.Flux3Transformer2DModel:
    """Blocks for image and for text alone, then one stream; references have an argument."""
    return _build(
        lambda: diffusers.Flux3Transformer2DModel(
            in_channels=4,
            cond_in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=8,
            timestep_channels=8,
            axes_dims_rope=(2, 2, 2, 2),
        ),
        seed,
    )


@torch.no_grad()
def run(kind: str, model: Any, height: int, width: int, **options: Any) -> Tensor:
    """The output of one call, flattened."""
    return tiny.flatten(model(**inputs(kind, model, height, width, **options)))
