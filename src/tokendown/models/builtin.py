"""The model that needs no download: the trained one if it is in the package, else random weights.

The stand-in has the shape of Stable Diffusion at tiny size, so that every command can be tried. Its
pictures are coloured noise, and they say so.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import torch

NAME = "built-in"
NATIVE = 256  # pixels
STEPS = 20
GUIDANCE = 3.0  # that its pictures were judged at; more burns the colours
RANDOM_STEPS = 2
RANDOM_WARNING = "random weights: no trained model is in this installation, the picture is noise"

_TOKENS = 32
_SCALE = 4  # pixels a latent pixel
_TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}


def trained_folder() -> Path | None:
    """The trained model that ships with the package, a diffusers folder, or None."""
    folder = Path(str(resources.files("tokendown"))) / "models" / "emoji"
    return folder if (folder / "model_index.json").is_file() else None


def is_random(model: str) -> bool:
    """Whether a model is the stand-in without training."""
    return model == NAME and trained_folder() is None


def random_unet() -> Any:
    """A two-level U-Net: self-attention on the 64 x 64 latents of 256 x 256 pixels, and below."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=NATIVE // _SCALE,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=_TEXT["hidden_size"],
        attention_head_dim=1,
        norm_num_groups=4,
    )


def random_pipeline(dtype: torch.dtype = torch.float32) -> Any:
    """A Stable Diffusion pipeline with random weights, the same ones every time."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    tokenizer = _byte_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts: dict[str, Any] = {"unet": random_unet(), "vae": _random_vae()}
        parts["text_encoder"] = _random_text_encoder(tokenizer)
    for part in parts.values():
        part.eval().requires_grad_(False)
        if dtype != torch.float32:  # diffusers remarks on every cast
            part.to(dtype)
    pipe = StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    # Latents of about unit size leave a random decoder nearly grey.
    parts["vae"].decoder.conv_out.weight.mul_(3)
    return pipe


def _random_vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=2,
        sample_size=NATIVE,
    )


def _random_text_encoder(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            num_attention_heads=2,
            max_position_embeddings=_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **_TEXT,
        )
    )


def _byte_tokenizer() -> Any:
    """CLIP's tokenizer without merges: one token a byte."""
    from transformers import CLIPTokenizer

    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in visible]
    letters += [chr(256 + index) for index in range(256 - len(visible))]
    names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: index for index, name in enumerate(names)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=_TOKENS)
