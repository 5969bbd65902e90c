"""Measure the exported folder: right subjects and backgrounds, FID, memory, use of attention.

* **samples**: subject, background and memory, see ``judge.py``.
* **FID** to the training pictures over random palette colours. Few pictures make it large, so the
  same number of training pictures, those that were asked for, stand beside it: the FID that a model
  without a fault would have.
* **top attention off**: the same prompts and seeds with self-attention at 64 x 64 switched off.
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

from tokendown.quality import INCEPTION_FILE, Inception, frechet_distance, load_inception

from .captions import COLOURS
from .classifier import trained
from .config import CACHE, CONFIGS, PIXELS, Config
from .data import Pictures, Place
from .export import EVALUATION, TARGET
from .judge import Question, between_training_pictures, judge, questions, spread
from .model import sees_pictures
from .sample import grid
from .state import load, save

RESULTS = EVALUATION.parent
INCEPTION = CACHE.parent / "metrics" / INCEPTION_FILE
REFERENCE = 240  # pictures that FID compares with
WITHOUT = 4  # one picture in so many is drawn without top attention as well


class NoAttention:
    """An attention processor that adds nothing to the residual stream."""

    def __call__(self, attn: object, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
        return torch.zeros_like(hidden_states)


def switch_off_top_attention(pipeline: StableDiffusionPipeline) -> int:
    """Self-attention at 64 x 64 becomes nothing; returns how many layers that were."""
    processors = pipeline.unet.attn_processors
    off = [k for k in processors if sees_pictures(k)]
    pipeline.unet.set_attn_processor(processors | dict.fromkeys(off, NoAttention()))
    return len(off)


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


# FID


def training_pictures(pictures: Pictures, pairs: list[tuple[int, str]], seed: int = 0) -> Tensor:
    """Pixels uint8 [n, 3, 256, 256] of (picture, colour) pairs, at random places."""
    rng = random.Random(seed)
    images = torch.stack([pictures.placed(*pair, Place.draw(rng), PIXELS) for pair in pairs])
    return ((images + 1) * 127.5).round().byte()


def reference_features(config: Config, pictures: Pictures, network: Inception) -> Tensor:
    """Features of training pictures over random colours, [REFERENCE, 2048]; from the cache."""
    tensors, meta = load(config.folder / "inception")
    if meta.get("files") == pictures.files and len(tensors["features"]) == REFERENCE:
        return tensors["features"]
    rng = random.Random(0)
    order = [i for _ in range(REFERENCE // len(pictures.files) + 1)
             for i in rng.sample(range(len(pictures.files)), len(pictures.files))]  # fmt: skip
    pairs = [(i, rng.choice(COLOURS)) for i in order[:REFERENCE]]
    features = network(training_pictures(pictures, pairs), data_range=255)
    save(config.folder / "inception", {"features": features}, {"files": pictures.files})
    return features


def fid(config: Config, pixels: Tensor, asked: list[Question], pictures: Pictures) -> dict | None:
    """FID of the samples, and of the training pictures that were asked for; None if not fetched."""
    if not INCEPTION.exists():
        print("no FID: python scripts/fetch_metrics.py fetches its network")
        return None
    network = load_inception(INCEPTION)
    reference = reference_features(config, pictures, network)
    perfect = [(pictures.index[c.variants[0].file], colour) for c, colour, *_ in asked]
    values = {
        "samples": network(pixels, data_range=255),
        "the_training_pictures_asked_for": network(
            training_pictures(pictures, perfect, seed=1), data_range=255
        ),
    }
    scores = {name: round(frechet_distance(x, reference), 1) for name, x in values.items()}
    return scores | {"pictures": len(pixels), "reference_pictures": len(reference)}


def evaluate(config: Config, folder: Path, count: int, steps: int, guidance: float) -> dict:
    """Draws `count` prompts with attention and a quarter of them without, and judges them."""
    RESULTS.mkdir(exist_ok=True)
    began = time.time()
    pictures = Pictures(config.subjects)
    classifier, classified = trained(config, pictures)
    asked = questions(pictures.concepts, count, seed=1)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(disable=True)
    prompts = [prompt for *_, prompt in asked]
    start = time.time()
    pixels = draw(pipeline, prompts, steps, guidance)
    seconds = (time.time() - start) / count
    grid(pixels[:, :, ::2, ::2], 8).save(RESULTS / "evaluation.png")
    some = max(2, count // WITHOUT)
    layers = switch_off_top_attention(pipeline)
    without = draw(pipeline, prompts[:some], steps, guidance)
    both = torch.cat([pixels[:some], without])[:, :, ::2, ::2]
    grid(both, some).save(RESULTS / "attention_off.png")
    change = (pixels[:some].float() - without.float()).square().mean(dim=(1, 2, 3)).sqrt() / 255
    found = {
        "config": config.name,
        "pictures": count,
        "steps": steps,
        "guidance": guidance,
        "seconds_a_picture": round(seconds, 1),
        "samples": judge(pixels, asked, pictures, classifier),
        "fid": fid(config, pixels, asked, pictures),
        "classifier": classified,
        "distance_between_training_pictures": between_training_pictures(pictures),
        "top_attention_off": {
            "layers": layers,
            "pictures": some,
            "with": judge(pixels[:some], asked[:some], pictures, classifier),
            "without": judge(without, asked[:some], pictures, classifier),
            "root_mean_square_change": spread(change.tolist()),
        },
        "prompts": prompts,
    }
    return found | {"seconds_in_all": round(time.time() - began, 1)}


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
