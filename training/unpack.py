"""Put the weights that ship back where training finds them, to go on from there.

    python -m training.unpack cpu      # then python -m training.train cpu

The run then stands at the beginning of its last stage: the learning rate starts from there, the
moments of the optimiser start anew. A checkpoint that is there is not touched.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from . import autoencoder
from .config import CONFIGS, Config
from .export import TARGET
from .state import load
from .train import Run


def unpack(config: Config, source: Path) -> int:
    """Writes the checkpoints; returns the step that the run stands at.

    Raises:
        SystemExit: there is a checkpoint already.
    """
    if load(config.folder / "painter")[1]:
        raise SystemExit(f"{config.folder} has a checkpoint; training goes on from that")
    shutil.copytree(source / "tokenizer", config.folder / "tokenizer", dirs_exist_ok=True)
    run = Run(config)
    pipe = StableDiffusionPipeline.from_pretrained(source)
    weights = {
        f"{part}.{name}": weight
        for part in ("unet", "text_encoder")
        for name, weight in getattr(pipe, part).named_parameters()
    }
    with torch.no_grad():
        for name, weight, average in zip(run.names, run.weights, run.ema, strict=True):
            weight.copy_(weights[name])
            average.copy_(weights[name])
    run.step = sum(stage.steps for stage in config.stages[:-1])
    run.at = float(run.step)
    untouched = torch.optim.Adam(pipe.vae.parameters())
    steps, scale = config.autoencoder.steps, 1 / pipe.vae.config.scaling_factor
    autoencoder.store(config, pipe.vae, untouched, steps, scale)
    run.save()
    return run.step


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", choices=CONFIGS)
    chosen = CONFIGS[parser.parse_args().config]
    print(f"step {unpack(chosen, TARGET)}: python -m training.train {chosen.name}")
