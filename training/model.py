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
    """Self-attention at 64 x 64, none at 32 x 32 (the dearest level for its use), then more."""
    c = config.unet
    kind = ["CrossAttn" if attends else "" for attends in c.attends]
    return UNet2DConditionModel(
        sample_size=FULL,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=c.channels,
        layers_per_block=c.layers,
        down_block_types=tuple(f"{k}DownBlock2D" for k in kind),
        up_block_types=tuple(f"{k}UpBlock2D" for k in reversed(kind)),
        attention_head_dim=tuple(w // d for w, d in zip(c.channels, c.head_dim, strict=True)),
        cross_attention_dim=config.text.width,
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",  # the whole caption also goes where the timestep goes:
        addition_embed_type_num_heads=4,  # subject and background are learnt far sooner so
    )


def quick_on_cpu(unet: UNet2DConditionModel) -> None:
    """Same attention, written out, where the fused kernel's backward is slow: few tokens.

    It stays fused at the top level, where the matrix of all pairs would not fit the cache.
    """
    processors = unet.attn_processors
    fused = [
        k for k in processors if ".attn1." in k and k.startswith(("down_blocks.0", "up_blocks.3"))
    ]
    unet.set_attn_processor(
        {k: p if k in fused else AttnProcessor() for k, p in processors.items()}
    )


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
def alphas(door: bool = False) -> Tensor:
    """Signal variance of every timestep, for the whole network or for its side door.

    The sum of four latents' noise grows by half as much as the sum of their signal, so that half
    size pictures get four times the signal-to-noise ratio: a timestep then hides the same things
    either way, and what the inner levels learn through the side door stays true.
    """
    a = build_scheduler().alphas_cumprod
    ratio = 4 if door else 1
    return ratio * a / (1 + (ratio - 1) * a)


class Painter(nn.Module):
    """U-Net and text encoder, and a side door by which half-size pictures skip the top level.

    The side door (`stem`, `head`) is for training alone and is not exported: most of what there
    is to learn is learnt at half size, where a step costs a tenth. A picture of 256 x 256 that
    enters there is to the inner levels one of 512 x 512, a size that the whole network could not
    afford to be trained at.
    """

    def __init__(self, config: Config, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = build_unet(config)
        self.text_encoder = build_text_encoder(config, tokenizer)
        top, second = config.unet.channels[:2]
        self.stem = nn.Conv2d(LATENT_CHANNELS, top, 3, padding=1)
        self.head = nn.Sequential(
            nn.GroupNorm(16, second), nn.SiLU(), nn.Conv2d(second, LATENT_CHANNELS, 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, door: bool = False) -> Tensor:
        """v of latents [b, 4, h, w], by the side door of latents at half of their true size."""
        text = self.text_encoder(tokens)[0]
        return self._by_door(x, t, text) if door else self.unet(x, t, text).sample

    def _by_door(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        unet = self.unet
        emb = unet.time_embedding(unet.time_proj(t).to(x.dtype)) + unet.add_embedding(text)
        x = self.stem(x)
        skips = (x,)
        for block in unet.down_blocks[1:]:
            x, new = block(x, emb, **_text(block, text))
            skips += new
        x = unet.mid_block(x, emb, encoder_hidden_states=text)
        for block in unet.up_blocks[:-1]:
            count = len(block.resnets)
            size = skips[-count - 1].shape[-2:] if len(skips) > count else skips[0].shape[-2:]
            x = block(x, skips[-count:], emb, upsample_size=size, **_text(block, text))
            skips = skips[:-count]
        return self.head(x)


def _text(block: nn.Module, text: Tensor) -> dict[str, Tensor]:
    return {"encoder_hidden_states": text} if hasattr(block, "attentions") else {}


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
