"""Pictures from a checkpoint, at half size or in full, in a grid; to watch it train."""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from .autoencoder import load_trained
from .config import CONFIGS, TRAIN_TIMESTEPS, Config
from .model import FULL, Painter, alphas, to_tokens
from .state import load
from .train import tokenizer_of

PROMPTS = (
    "red heart on a white background",
    "smiling face with sunglasses on a blue background",
    "crying face on a pink background",
    "dog face on a green background",
    "panda face on a purple background",
    "a frog face on a yellow background",
    "red apple on a blue background",
    "banana on a black background",
    "strawberry on a teal background",
    "hamburger on an orange background",
    "bus on a white background",
    "airplane on a yellow background",
    "tropical fish on a red background",
    "sunflower on a blue background",
    "soccer ball on a green background",
    "ghost on a gray background",
)


def load_painter(config: Config) -> tuple[Painter, CLIPTokenizer, int]:
    """The averaged weights of the last checkpoint, and its step."""
    tensors, meta = load(config.folder / "painter")
    tokenizer = tokenizer_of(config)
    painter = Painter(config, tokenizer).eval().requires_grad_(False)
    average = {k[2:]: v for k, v in tensors.items() if k.startswith("e.")}
    painter.load_state_dict(average, strict=False)  # position numbers are no parameters
    return painter, tokenizer, meta["step"]


@torch.no_grad()
def sample(
    painter: Painter,
    tokenizer: CLIPTokenizer,
    prompts: list[str],
    *,
    size: int = FULL,
    steps: int = 20,
    guidance: float = 3.0,
    seed: int = 0,
) -> Tensor:
    """DDIM with guidance; latents [n, 4, size, size]. At 64 the pipeline does the same."""
    tokens = to_tokens(tokenizer, ["", *prompts])
    tokens = torch.cat([tokens[:1].expand(len(prompts), -1), tokens[1:]])
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(prompts), 4, size, size, generator=generator)
    table = torch.cat([torch.ones(1), alphas(size)])
    times = torch.linspace(TRAIN_TIMESTEPS, 0, steps + 1).round().long()
    for now, then in pairwise(times):
        t = (now - 1).expand(2 * len(prompts))
        v0, v1 = painter(torch.cat([x, x]), t, tokens).chunk(2)
        v, a, b = v0 + guidance * (v1 - v0), table[now], table[then]
        clean, noise = a.sqrt() * x - (1 - a).sqrt() * v, a.sqrt() * v + (1 - a).sqrt() * x
        x = b.sqrt() * clean + (1 - b).sqrt() * noise
    return x


@torch.no_grad()
def decode(autoencoder: AutoencoderTiny, latents: Tensor) -> Tensor:
    """Pixels uint8 [n, 3, h, w]."""
    pixels = autoencoder.decode(latents / autoencoder.config.scaling_factor).sample
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte()


def grid(pixels: Tensor, columns: int) -> Image.Image:
    """Pictures [n, 3, h, w] side by side, row after row."""
    rows = [torch.cat(list(row), dim=2) for row in pixels.split(columns)]
    return Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy())


def main() -> None:
    """Saves one grid of PROMPTS."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", choices=CONFIGS)
    parser.add_argument("--size", type=int, default=FULL, help="of the latents")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--count", type=int, default=len(PROMPTS))
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    config = CONFIGS[a.config]
    painter, tokenizer, step = load_painter(config)
    x = sample(
        painter,
        tokenizer,
        list(PROMPTS[: a.count]),
        size=a.size,
        steps=a.steps,
        guidance=a.guidance,
    )
    out = a.out or config.folder / f"grid-{step:06d}-{a.size}.png"
    grid(decode(load_trained(config), x), 4).save(out)
    print(out)


if __name__ == "__main__":
    main()
