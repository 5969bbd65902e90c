"""Every size and length of a run, in one place: `cpu` and `gpu` differ by numbers only."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "training"

PIXELS = 256
LATENT_CHANNELS = 4
AUTOENCODER_FACTOR = 4
TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True)
class AutoencoderConfig:
    """Square crops are enough: nothing in the autoencoder looks further than a few cells."""

    width: int = 32
    encoder_blocks: tuple[int, ...] = (0, 2, 3)
    decoder_blocks: tuple[int, ...] = (3, 2, 1)
    steps: int = 1800
    batch: int = 16
    crop: int = 64
    lr: float = 2e-3
    latent_noise: float = 0.1


@dataclass(frozen=True)
class UnetConfig:
    """The top level is narrow: 4,096 tokens attend there, and convolutions cost most."""

    channels: tuple[int, ...] = (32, 64, 128, 192)
    attends: tuple[bool, ...] = (True, False, True, True)
    layers: int = 1
    head_dim: tuple[int, ...] = (32, 64, 64, 64)


@dataclass(frozen=True)
class TextConfig:
    """A caption has some twenty words; every word of the data set is one token or two."""

    vocabulary: int = 2500
    width: int = 192
    layers: int = 2
    heads: int = 3
    length: int = 24


@dataclass(frozen=True)
class Batch:
    """Pictures of one kind that a step may learn from.

    Args:
        size: of the latents that go in.
        count: pictures.
        door: enter by the side door, below the top level: the inner levels then see what they see
            of a picture of twice the size.
        share: of the steps of a stage that take such a batch; those of a stage add up to 1.
    """

    size: int
    count: int
    door: bool = False
    share: float = 1.0


@dataclass(frozen=True)
class Stage:
    """A stretch of training; `lr` falls linearly to `lr_end`."""

    steps: int
    lr: float
    lr_end: float
    batches: tuple[Batch, ...]


@dataclass(frozen=True)
class Config:
    """One run."""

    name: str
    stages: tuple[Stage, ...]
    everything: bool  # all the pictures, or only the kinds in captions.FOCUS
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    unet: UnetConfig = field(default_factory=UnetConfig)
    text: TextConfig = field(default_factory=TextConfig)
    caption_dropout: float = 0.1
    noise_power: float = 0.75  # under 1: more steps at timesteps that decide what is seen
    ema: float = 0.998
    seed: int = 0

    @property
    def folder(self) -> Path:
        """Where checkpoints and logs of this run live; ignored by git."""
        return CACHE / self.name


CPU = Config(
    name="cpu",
    everything=False,
    unet=UnetConfig(channels=(32, 64, 96, 160), head_dim=(32, 64, 48, 40)),
    stages=(
        Stage(2400, 2e-3, 5e-4, (Batch(32, 24, True, 0.75), Batch(64, 6, True, 0.25))),
        Stage(1700, 1e-3, 5e-5, (Batch(64, 4, False, 0.65), Batch(64, 6, True, 0.35))),
    ),
)

GPU = Config(
    name="gpu",
    everything=True,
    ema=0.9995,
    autoencoder=AutoencoderConfig(width=64, steps=20_000, batch=64, crop=128, lr=1e-3),
    unet=UnetConfig(channels=(64, 128, 192, 224), head_dim=(64, 64, 64, 56)),
    stages=(
        Stage(30_000, 2e-3, 1e-3, (Batch(32, 256, True, 0.75), Batch(64, 64, True, 0.25))),
        Stage(20_000, 1e-3, 1e-5, (Batch(64, 96, False, 0.8), Batch(64, 96, True, 0.2))),
    ),
)

CONFIGS = {c.name: c for c in (CPU, GPU)}
