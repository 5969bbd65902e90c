"""Train the U-Net and the text encoder; stop and start again at any minute."""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import replace

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from .autoencoder import load_trained
from .captions import every_caption
from .config import CONFIGS, TRAIN_TIMESTEPS, Batch, Config, Stage
from .data import Pictures, read_names
from .graphs import Eager, Graphs
from .latents import Latents
from .model import Painter, alphas, build_tokenizer, device, load_tokenizer, quick_on_cpu, to_tokens
from .optimiser import Optimiser
from .state import Log, Threads, load, on_terminate, save, wait_while_paused

SAVE_SECONDS = 240


class Run:
    """Everything that a checkpoint holds, and the step that changes it."""

    def __init__(self, config: Config) -> None:
        self.config, self.device = config, device()
        self.tokenizer = tokenizer_of(config)
        torch.manual_seed(config.seed)
        self.painter = Painter(config, self.tokenizer).to(
            self.device, memory_format=torch.channels_last
        )
        if self.device.type == "cpu":
            quick_on_cpu(self.painter.unet)
        self.names, self.weights = zip(*self.painter.named_parameters(), strict=True)
        self.ema = [w.detach().clone() for w in self.weights]
        self.optimiser = Optimiser(dict(zip(self.names, self.weights, strict=True)))
        self.gradients = (Graphs if self.device.type == "cuda" else Eager)(self._loss, self.weights)
        self.step, self.at = 0, 0.0
        self._resume()
        self.rng = random.Random(config.seed + self.step)
        torch.manual_seed(config.seed + self.step)

    def update(self, stage: Stage, done: float, latents: Latents) -> Tensor:
        """One step of the optimiser and of the average of the weights.

        Both warm up in every stage, for each brings layers that have not been trained before.
        """
        number = done * stage.steps
        warm = min(1.0, (number + 1) / 100)
        lr = warm * (stage.lr + (stage.lr_end - stage.lr) * done)
        shares = [batch.share for batch in stage.batches]
        batch = self.rng.choices(stage.batches, shares)[0]
        loss = self.gradients.of(batch, *self._pictures(batch, latents))
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimiser.step(lr)
        self.step += 1
        decay = min(self.config.ema, (1 + number) / (10 + number))
        torch._foreach_lerp_(self.ema, [w.detach() for w in self.weights], 1 - decay)
        return loss

    def go_on(self, seconds: float) -> None:
        """Moves along the schedule: by a step, or by what it took of the minutes that are given."""
        whole = sum(stage.steps for stage in self.config.stages)
        self.at += seconds / (60 * self.config.minutes) * whole if self.config.minutes else 1

    def _loss(self, batch: Batch, x: Tensor, tokens: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False):
            return v_loss(self.painter, x, tokens, self.config.noise_power, batch)

    def _pictures(self, batch: Batch, latents: Latents) -> tuple[Tensor, Tensor]:
        drawn = [latents.pictures.draw(self.rng) for _ in range(batch.count)]
        x = latents.batch([(picture, colour) for picture, colour, _ in drawn], batch, self.rng)
        dropped = ["" if self.rng.random() < self.config.caption_dropout else c for *_, c in drawn]
        tokens = to_tokens(self.tokenizer, dropped)
        x = x.to(self.device, memory_format=torch.channels_last)
        if self.device.type == "cuda":  # so that nothing waits for the step before
            tokens = tokens.pin_memory()
        return x, tokens.to(self.device, non_blocking=True)

    def save(self) -> None:
        """Weights, their average and the moments, in files under 16 MB."""
        tensors = {f"w.{n}": w for n, w in zip(self.names, self.weights, strict=True)}
        tensors |= {f"e.{n}": w for n, w in zip(self.names, self.ema, strict=True)}
        tensors |= {f"o.{n}": moment for n, moment in self.optimiser.tensors().items()}
        save(self.config.folder / "painter", tensors, {"step": self.step, "at": self.at})

    def _resume(self) -> None:
        tensors, meta = load(self.config.folder / "painter")
        if not meta:
            return
        with torch.no_grad():
            for name, weight, average in zip(self.names, self.weights, self.ema, strict=True):
                weight.copy_(tensors[f"w.{name}"])
                average.copy_(tensors[f"e.{name}"])
        self.optimiser.restore({k[2:]: v for k, v in tensors.items() if k.startswith("o.")})
        self.step = meta["step"]
        self.at = meta.get("at", self.step)


def v_loss(painter: Painter, x: Tensor, tokens: Tensor, power: float, batch: Batch) -> Tensor:
    """Mean squared error of v = sqrt(a) noise - sqrt(1 - a) x at random timesteps.

    Timesteps are spread evenly over the batch, which takes noise out of the loss.
    """
    n = len(x)
    even = (torch.arange(n, device=x.device) + torch.rand(n, device=x.device)) / n
    t = (even**power * batch.below * TRAIN_TIMESTEPS).long().clamp(max=TRAIN_TIMESTEPS - 1)
    a = alphas(batch.whole, x.device)[t][:, None, None, None]
    noise = torch.randn_like(x)
    v = a.sqrt() * noise - (1 - a).sqrt() * x
    guess = painter(a.sqrt() * x + (1 - a).sqrt() * noise, t, tokens)
    return (guess.float() - v).square().mean()


def tokenizer_of(config: Config) -> CLIPTokenizer:
    """Built once from the captions of all the pictures, whichever of them a run learns."""
    folder = config.folder / "tokenizer"
    if not (folder / "vocab.json").exists():
        build_tokenizer(config, every_caption(read_names()), folder)
    return load_tokenizer(config, folder)


def stage_at(config: Config, at: float) -> tuple[Stage, float] | None:
    """The stage after so many steps and the part of it that is done; None after the last."""
    for stage in config.stages:
        if at < stage.steps:
            return stage, at / stage.steps
        at -= stage.steps
    return None


def train(config: Config, minutes: float, steps: int | None = None) -> None:
    """Trains for so many minutes or steps at most, from where the last call stopped."""
    end = time.time() + minutes * 60
    run, threads = Run(config), Threads()
    autoencoder = load_trained(config).to(run.device, memory_format=torch.channels_last)
    latents = Latents(Pictures(config.subjects), autoencoder)
    if run.device.type == "cuda":
        latents.pictures.rgba = latents.pictures.rgba.to(run.device)
        latents.fill(batch for stage in config.stages for batch in stage.batches)
    log = Log(config.folder / "train.jsonl")
    last = run.step + steps if steps else None
    before = saved = time.time()
    told_to_end = on_terminate()
    while (now := stage_at(config, run.at)) and time.time() < end and run.step != last:
        wait_while_paused(told_to_end)
        if told_to_end():
            break
        threads.adapt()
        loss = run.update(*now, latents)
        run.go_on(time.time() - before)
        before = time.time()
        log.add(loss, {"step": run.step, "stage": config.stages.index(now[0]) + 1})
        if time.time() - saved > SAVE_SECONDS:
            run.save()
            saved = time.time()
    run.save()


def small_batches(config: Config, batch: int) -> Config:
    """The same run with another batch size, to try a configuration on a small machine."""
    stages = tuple(
        replace(stage, batches=tuple(replace(each, count=batch) for each in stage.batches))
        for stage in config.stages
    )
    return replace(config, stages=stages, autoencoder=replace(config.autoencoder, batch=batch))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", choices=CONFIGS)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--steps", type=int, help="at most this many, for a trial")
    parser.add_argument("--batch", type=int, help="instead of the configuration's, for a trial")
    a = parser.parse_args()
    chosen = CONFIGS[a.config]
    train(small_batches(chosen, a.batch) if a.batch else chosen, a.minutes, a.steps)
