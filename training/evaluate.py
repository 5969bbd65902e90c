"""Measure the exported folder: background colour, subject, memorisation, use of attention.

The classifier is the nearest training picture (mean square error at 32 x 32 over the asked-for
background). It knows nothing of style, so that it answers both questions at once: is the picture
nearest to what was asked for, and how near is it, that is, how much of it is memory?
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.nn import functional

from .captions import COLOURS, PALETTE, Concept
from .config import CONFIGS, Config
from .data import Pictures
from .export import EVALUATION, TARGET
from .sample import grid

RESULTS = EVALUATION.parent


class NoAttention:
    """An attention processor that adds nothing to the residual stream."""

    def __call__(self, attn: object, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        return torch.zeros_like(hidden_states)


def switch_off_top_attention(pipeline: StableDiffusionPipeline) -> int:
    """Self-attention at 64 x 64 becomes nothing; returns how many layers that were."""
    top = ("down_blocks.0", "up_blocks.3")
    processors = pipeline.unet.attn_processors
    off = [k for k in processors if k.startswith(top) and ".attn1." in k]
    pipeline.unet.set_attn_processor(processors | dict.fromkeys(off, NoAttention()))
    return len(off)


def questions(concepts: list[Concept], count: int, seed: int) -> list[tuple[Concept, str, str]]:
    """(concept, colour, prompt): different concepts, every colour about equally often."""
    rng = random.Random(seed)
    chosen = rng.sample(concepts, count)
    colours = (list(COLOURS) * (count // len(COLOURS) + 1))[:count]
    rng.shuffle(colours)
    return [
        (c, colour, f"{c.nouns[0]} on a {colour} background")
        for c, colour in zip(chosen, colours, strict=True)
    ]


def draw(pipeline, prompts: list[str], steps: int, guidance: float, batch: int = 4) -> Tensor:
    """Pixels uint8 [n, 3, 256, 256]; the seed of a prompt is its number."""
    pictures = []
    for start in range(0, len(prompts), batch):
        some = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(some))]
        out = pipeline(
            some,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="pt",
        )
        pictures.append((out.images * 255).round().byte().cpu())
    return torch.cat(pictures)


def background(pixels: Tensor) -> list[str]:
    """Name of the palette colour nearest to the median of the four corners (16 x 16 each)."""
    corners = [pixels[..., y, x] for y in (slice(16), slice(-16, None))
               for x in (slice(16), slice(-16, None))]  # fmt: skip
    rgb = torch.cat([c.flatten(2) for c in corners], dim=2).float().median(dim=2).values
    table = torch.tensor(list(PALETTE.values())).float()
    return [COLOURS[i] for i in torch.cdist(rgb, table).argmin(dim=1)]


def neighbours(image: Tensor, pictures: Pictures, colour: str) -> Tensor:
    """Root mean square distance in [0, 1] units from one picture to every training picture."""
    train = torch.stack([pictures.on(i, colour) for i in range(len(pictures.files))])
    train = functional.avg_pool2d((train + 1) / 2, 8)
    image = functional.avg_pool2d(image[None].float() / 255, 8)
    return (train - image).square().mean(dim=(1, 2, 3)).sqrt()


def judge(pixels: Tensor, asked: list[tuple[Concept, str, str]], pictures: Pictures) -> dict:
    """Shares of pictures with the right background, category and concept, and how near."""
    owner = [c for c in pictures.concepts for _ in c.variants]
    right = {"background": 0, "category": 0, "concept": 0, "concept_in_top_5": 0}
    nearest, own = [], []
    for image, seen, (concept, colour, _) in zip(pixels, background(pixels), asked, strict=True):
        distance = neighbours(image, pictures, colour)
        order = [owner[i] for i in distance.argsort()[:5]]
        right["background"] += seen == colour
        right["category"] += order[0].category == concept.category
        right["concept"] += order[0] == concept
        right["concept_in_top_5"] += concept in order
        nearest.append(distance.min().item())
        own.append(distance[[c == concept for c in owner]].min().item())
    shares = {k: round(v / len(asked), 3) for k, v in right.items()}
    return shares | {
        "distance_to_nearest_training_picture": _spread(nearest),
        "distance_to_training_picture_of_the_concept": _spread(own),
    }


def between_training_pictures(pictures: Pictures) -> dict:
    """The same distance from each training picture to the nearest other one, as a yardstick."""
    train = torch.stack([pictures.on(i, "gray") for i in range(len(pictures.files))])
    flat = functional.avg_pool2d((train + 1) / 2, 8).flatten(1)
    distance = torch.cdist(flat, flat) / flat.shape[1] ** 0.5
    return _spread(distance.fill_diagonal_(9).min(dim=1).values.tolist())


def _spread(values: list[float]) -> dict[str, float]:
    tenth, half, most = torch.tensor(values).quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    return {"p10": round(tenth, 4), "median": round(half, 4), "p90": round(most, 4)}


def evaluate(config: Config, folder: Path, count: int, steps: int, guidance: float) -> dict:
    """Draws `count` prompts with attention and a third of them without, and writes the results."""
    RESULTS.mkdir(exist_ok=True)
    pictures = Pictures(config.everything)
    asked = questions(pictures.concepts, count, seed=1)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [prompt for *_, prompt in asked]
    start = time.time()
    pixels = draw(pipeline, prompts, steps, guidance)
    seconds = (time.time() - start) / count
    grid(pixels[:, :, ::2, ::2], 8).save(RESULTS / "evaluation.png")
    third = max(4, count // 3)
    layers = switch_off_top_attention(pipeline)
    without = draw(pipeline, prompts[:third], steps, guidance)
    grid(torch.cat([pixels[:8, :, ::2, ::2], without[:8, :, ::2, ::2]]), 8).save(
        RESULTS / "attention_off.png"
    )
    return {
        "config": config.name,
        "pictures": count,
        "steps": steps,
        "guidance": guidance,
        "seconds_a_picture": round(seconds, 1),
        "samples": judge(pixels, asked, pictures),
        "samples_compared_with_no_attention": judge(pixels[:third], asked[:third], pictures),
        "samples_without_top_attention": judge(without, asked[:third], pictures),
        "layers_switched_off": layers,
        "distance_between_training_pictures": between_training_pictures(pictures),
        "prompts": prompts,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", choices=CONFIGS)
    parser.add_argument("--folder", type=Path, default=TARGET)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0)
    a = parser.parse_args()
    results = evaluate(CONFIGS[a.config], a.folder, a.count, a.steps, a.guidance)
    EVALUATION.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps({k: v for k, v in results.items() if k != "prompts"}, indent=2))
