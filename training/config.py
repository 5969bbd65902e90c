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
    """Two levels, and self-attention at the top one only.

    Convolutions alone see a third of a picture here, so that what must agree all over it (how large
    the subject is, and where) has no other way than the attention of 4,096 tokens.
    """

    channels: tuple[int, ...] = (48, 160)
    self_attends: tuple[bool, ...] = (True, False)
    layers: tuple[int, ...] = (1, 2)
    head_dim: tuple[int, ...] = (48, 40)


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
        whole: size of the latents of a whole picture; where it is larger than `size`, a random
            window of them goes in. 128 stands for pictures enlarged to 512 x 512.
        below: share of the timesteps to draw from, least noise first. A window says where in the
            picture it is only where there is little noise.
        share: of the steps of a stage that take such a batch; those of a stage add up to 1.
    """

    size: int
    count: int
    whole: int
    below: float = 1.0
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
    subjects: tuple[str, ...]  # lists beside this file; none means all the pictures
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    unet: UnetConfig = field(default_factory=UnetConfig)
    text: TextConfig = field(default_factory=TextConfig)
    caption_dropout: float = 0.1
    noise_power: float = 0.75  # under 1: more steps at timesteps that decide what is seen
    ema: float = 0.998
    minutes: float | None = None  # where set, the stages share these in proportion to their steps
    seed: int = 0

    @property
    def folder(self) -> Path:
        """Where checkpoints and logs of this run live; ignored by git."""
        return CACHE / self.name


def _half_size(count: int) -> tuple[Batch, ...]:
    """Whole pictures at half size, and windows to learn the look of larger ones from."""
    return (
        Batch(32, count, 32, share=0.7),
        Batch(32, count, 64, below=0.6, share=0.2),
        Batch(32, count, 128, below=0.4, share=0.1),
    )


def _full_size(count: int) -> tuple[Batch, ...]:
    return Batch(64, count, 64, share=0.8), Batch(64, count, 128, below=0.6, share=0.2)


CPU = Config(
    name="cpu",
    subjects=("focus",),
    stages=(
        Stage(1500, 2e-3, 1e-3, _half_size(24)),
        Stage(1400, 1e-3, 5e-5, _full_size(6)),
        Stage(1200, 1e-3, 2e-5, _full_size(6)),
    ),
)

# How fast a card is shows only there, so this run is given minutes; its rates and batches are meant
# for about as many steps as are written here.
GPU = Config(
    name="gpu",
    subjects=("focus", "more"),
    ema=0.999,
    minutes=7.5,
    autoencoder=AutoencoderConfig(steps=5800),
    unet=UnetConfig(channels=(64, 192), head_dim=(32, 48)),
    stages=(
        Stage(2000, 2e-3, 1e-3, _half_size(128)),
        Stage(4000, 1e-3, 1e-5, _full_size(32)),
    ),
)

CONFIGS = {c.name: c for c in (CPU, GPU)}
