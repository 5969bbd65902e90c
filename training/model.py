"""U-Net, text encoder and tokenizer, all of them plain diffusers and transformers classes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .config import AUTOENCODER_FACTOR, LATENT_CHANNELS, PIXELS, TRAIN_TIMESTEPS, Config

START, END = "<|startoftext|>", "<|endoftext|>"
FULL = PIXELS // AUTOENCODER_FACTOR


def build_unet(config: Config) -> UNet2DConditionModel:
    """Self-attention at 64 x 64; the level below has convolutions and cross-attention alone."""
    c = config.unet
    only_text = tuple(not attends for attends in c.self_attends)
    return UNet2DConditionModel(
        sample_size=FULL,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=c.channels,
        layers_per_block=c.layers,
        down_block_types=("CrossAttnDownBlock2D",) * len(c.channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(c.channels),
        only_cross_attention=only_text,
        mid_block_type="UNetMidBlock2D",  # one residual block; the other kinds attend to pictures
        attention_head_dim=tuple(w // d for w, d in zip(c.channels, c.head_dim, strict=True)),
        cross_attention_dim=config.text.width,
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",  # the whole caption also goes where the timestep goes:
        addition_embed_type_num_heads=4,  # subject and background are learnt far sooner so
    )


def quick_on_cpu(unet: UNet2DConditionModel) -> None:
    """Same attention, written out, where the fused kernel's backward is slow: few tokens."""
    unet.set_attn_processor(
        {k: p if sees_pictures(k) else AttnProcessor() for k, p in unet.attn_processors.items()}
    )


def sees_pictures(name: str) -> bool:
    """Whether a processor's name is that of self-attention, at the top level."""
    return ".attn1." in name and name.startswith(("down_blocks.0.", "up_blocks.1."))


def build_text_encoder(config: Config, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A small CLIP text model, trained together with the U-Net."""
    c = config.text
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=c.width,
            intermediate_size=4 * c.width,
            projection_dim=c.width,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            max_position_embeddings=c.length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_tokenizer(config: Config, lines: list[str], folder: Path) -> CLIPTokenizer:
    """Byte-pair merges learnt from the captions, in the two files that CLIPTokenizer reads."""
    folder.mkdir(parents=True, exist_ok=True)
    bpe = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=config.text.vocabulary,
        special_tokens=[START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    characters = [chr(c) for c in range(33, 127)]  # so that no character of a prompt is unknown
    bpe.train_from_iterator([*lines, *characters], trainer)
    bpe.model.save(str(folder))
    return load_tokenizer(config, folder)


def load_tokenizer(config: Config, folder: Path) -> CLIPTokenizer:
    """The tokenizer of `build_tokenizer`."""
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=config.text.length
    )


def build_scheduler() -> DDIMScheduler:
    """v-prediction that ends in pure noise: a flat background's colour survives anything less."""
    return DDIMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # unused by trailing timesteps, but the pipeline warns of 0
    )


@cache
def alphas(whole: int = FULL, device: torch.device | None = None) -> Tensor:
    """Signal variance of every timestep, for pictures of so many latents a side.

    The sum of four latents' noise grows by half as much as the sum of their signal, so that half
    size pictures get four times the signal-to-noise ratio: a timestep then hides the same things
    at either size. Larger ones are sampled by the plain schedule, and so they are trained.
    """
    a = build_scheduler().alphas_cumprod
    ratio = max(1.0, FULL / whole) ** 2
    return (ratio * a / (1 + (ratio - 1) * a)).to(device)


class Painter(nn.Module):
    """U-Net and text encoder, trained together."""

    def __init__(self, config: Config, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = build_unet(config)
        self.text_encoder = build_text_encoder(config, tokenizer)

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """v of latents [b, 4, h, w]."""
        return self.unet(x, t, self.text_encoder(tokens)[0]).sample


def parameters_millions(module: nn.Module) -> float:
    """For logs and the model card."""
    return sum(p.numel() for p in module.parameters()) / 1e6


def to_tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token numbers [n, length], padded as StableDiffusionPipeline pads."""
    return tokenizer(
        captions,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
