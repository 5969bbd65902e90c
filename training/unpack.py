"""Put the weights that ship back where training finds them, to go on from there.

    python -m training.unpack cpu      # then python -m training.train cpu

The run then stands at the beginning of its last stage: the learning rate starts from there, the
moments of the optimiser start anew. A checkpoint that is there is not touched.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from diffusers import StableDiffusionPipeline

from . import autoencoder
from .config import CONFIGS, Config
from .export import TARGET
from .state import load, save


def unpack(config: Config, source: Path) -> int:
    """Writes the checkpoints; returns the step that the run stands at.

    Raises:
        SystemExit: there is a checkpoint already.
    """
    painter, latents = config.folder / "painter", autoencoder.folder(config)
    if load(painter)[1]:
        raise SystemExit(f"{painter} has a checkpoint; training goes on from that")
    pipe = StableDiffusionPipeline.from_pretrained(source)
    weights = {
        f"{part}.{name}": weight
        for part in ("unet", "text_encoder")
        for name, weight in getattr(pipe, part).named_parameters()
    }
    step = sum(stage.steps for stage in config.stages[:-1])
    scale = pipe.vae.config.scaling_factor
    save(
        latents,
        {f"w.{name}": weight for name, weight in pipe.vae.state_dict().items()},
        {"step": config.autoencoder.steps, "std": 1 / scale, "scaling_factor": scale},
    )
    shutil.copytree(source / "tokenizer", config.folder / "tokenizer", dirs_exist_ok=True)
    both = {f"{kind}.{name}": weight.clone() for kind in "we" for name, weight in weights.items()}
    save(painter, both, {"step": step})
    return step


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", choices=CONFIGS)
    chosen = CONFIGS[parser.parse_args().config]
    print(f"step {unpack(chosen, TARGET)}: python -m training.train {chosen.name}")
