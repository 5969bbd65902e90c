"""The autoencoder: 256 x 256 pixels to 64 x 64 latents of four channels and back."""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional

from .config import CONFIGS, LATENT_CHANNELS, Config
from .data import Pictures, halve, over
from .optimiser import restore
from .state import Log, Threads, load, on_terminate, save, wait_while_paused


def build(config: Config, scaling_factor: float = 1.0) -> AutoencoderTiny:
    """No norms and no attention, so that crops teach all there is to learn."""
    c = config.autoencoder
    width = (c.width,) * 3
    return AutoencoderTiny(
        encoder_block_out_channels=width,
        decoder_block_out_channels=width,
        num_encoder_blocks=c.encoder_blocks,
        num_decoder_blocks=c.decoder_blocks,
        latent_channels=LATENT_CHANNELS,
        scaling_factor=scaling_factor,
    )


def folder(config: Config) -> Path:
    """Checkpoint of the autoencoder of a run."""
    return config.folder / "autoencoder"


def load_trained(config: Config) -> AutoencoderTiny:
    """The trained autoencoder, frozen, with the scaling that gives latents unit variance."""
    tensors, meta = load(folder(config))
    model = build(config, meta["scaling_factor"])
    model.load_state_dict({k[2:]: v for k, v in tensors.items() if k.startswith("w.")})
    return model.eval().requires_grad_(False)


def loss_of(model: AutoencoderTiny, pixels: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """(loss, latents): pixels, edges, and the same at half size, through noisy latents.

    The noise keeps the decoder calm about the small errors that a diffusion model leaves.
    """
    z = model.encoder(pixels)
    noisy = z + torch.randn_like(z) * noise * z.detach().std()
    out = model.decoder(noisy).float()
    loss = _distance(out, pixels) + 0.5 * _distance(halve(out), halve(pixels))
    return loss + 1e-3 * z.float().square().mean(), z


def _distance(a: Tensor, b: Tensor) -> Tensor:
    dx, dy = (functional.l1_loss(a.diff(dim=d), b.diff(dim=d)) for d in (-1, -2))
    return functional.l1_loss(a, b) + dx + dy


def crops(pictures: Pictures, batch: int, size: int, rng: random.Random) -> Tensor:
    """Random crops over random colours, a third of them of pictures at half size."""
    out = []
    for _ in range(batch):
        half = rng.random() < 0.33
        edge = size * 2 if half else size
        rgba = pictures.rgba[rng.randrange(len(pictures.rgba))]
        y, x = (rng.randrange(rgba.shape[-1] - edge + 1) for _ in range(2))
        image = over(
            rgba[:, y : y + edge, x : x + edge], torch.tensor([rng.random() for _ in "rgb"])
        )
        out.append(halve(image) if half else image)
    return torch.stack(out)


def train(config: Config, minutes: float, steps: int | None = None) -> None:
    """Trains for so many minutes or steps at most, from where the last call stopped."""
    c, device = config.autoencoder, "cuda" if torch.cuda.is_available() else "cpu"
    end = time.time() + minutes * 60
    model = build(config).to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(model.parameters(), lr=c.lr, betas=(0.9, 0.99))
    step, scale = _resume(config, model, optimiser)
    last = min(c.steps, step + steps) if steps else c.steps
    rng = random.Random(config.seed + step)
    pictures, log, threads = Pictures(config.subjects), Log(config.folder / "ae.jsonl"), Threads()
    told_to_end = on_terminate()
    while step < last and time.time() < end:
        wait_while_paused(told_to_end)
        if told_to_end():
            break
        threads.adapt()
        optimiser.param_groups[0]["lr"] = c.lr * min(1, step / 50) * (1 - 0.95 * step / c.steps)
        pixels = crops(pictures, c.batch, c.crop, rng)
        pixels = pixels.to(device, memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss, z = loss_of(model, pixels, c.latent_noise)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
        scale = 0.99 * scale + 0.01 * z.detach().float().std().item()
        log.add(loss.detach(), {"step": step, "std": scale})
        if step % 200 == 0:
            store(config, model, optimiser, step, scale)
    store(config, model, optimiser, step, scale)


def store(config, model, optimiser, step: int, scale: float) -> None:
    """Writes a checkpoint; `scale` is the standard deviation of the latents."""
    tensors = {f"w.{k}": v for k, v in model.state_dict().items()}
    for i, s in optimiser.state_dict()["state"].items():
        tensors |= {f"o.{i}.{k}": torch.as_tensor(v) for k, v in s.items()}
    save(folder(config), tensors, {"step": step, "std": scale, "scaling_factor": 1 / scale})


def _resume(config, model, optimiser) -> tuple[int, float]:
    tensors, meta = load(folder(config))
    if not meta:
        return 0, 1.0
    model.load_state_dict({k[2:]: v for k, v in tensors.items() if k.startswith("w.")})
    restore(optimiser, {k[2:]: v for k, v in tensors.items() if k.startswith("o.")})
    return meta["step"], meta["std"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", choices=CONFIGS)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--steps", type=int, help="at most this many, for a trial")
    a = parser.parse_args()
    train(CONFIGS[a.config], a.minutes, a.steps)
