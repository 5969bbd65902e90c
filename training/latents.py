"""Latents of pictures, encoded when first asked for and then remembered."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from .config import AUTOENCODER_FACTOR, Batch
from .data import Pictures, Place

# Of every picture over every colour, by size in latents: more would cost more than they teach.
_AT_ONCE = 64
PLACES = {32: 4, 64: 4, 128: 4}


class Wanted(NamedTuple):
    """A whole picture of a certain size in latents, at one of its places."""

    picture: int
    colour: str
    place: int
    whole: int


class Latents:
    """Flat backgrounds from a palette are few, so that every latent is used many times."""

    def __init__(self, pictures: Pictures, autoencoder: AutoencoderTiny) -> None:
        self.pictures, self.autoencoder = pictures, autoencoder
        self.device = next(autoencoder.parameters()).device
        self.known: dict[Wanted, Tensor] = {}

    def batch(self, drawn: list[tuple[int, str]], batch: Batch, rng: random.Random) -> Tensor:
        """Latents of unit variance [n, 4, size, size] of (picture, colour) pairs."""
        wanted = [Wanted(*pair, rng.randrange(PLACES[batch.whole]), batch.whole) for pair in drawn]
        self._learn([w for w in dict.fromkeys(wanted) if w not in self.known])
        return torch.stack([_window(self.known[w], batch.size, rng) for w in wanted]).float()

    def fill(self, batches: Iterable[Batch]) -> None:
        """Everything that the batches can ask for, ahead: on a GPU, where one by one is slow."""
        for whole in {batch.whole for batch in batches}:
            places = product(self.pictures.pairs(), range(PLACES[whole]))
            wanted = [Wanted(*pair, place, whole) for pair, place in places]
            for start in range(0, len(wanted), _AT_ONCE):
                self._learn(wanted[start : start + _AT_ONCE])

    def _learn(self, wanted: list[Wanted]) -> None:
        """Encodes pictures of one size."""
        if not wanted:
            return
        pixels = torch.stack([self._pixels(each) for each in wanted]).to(self.device)
        with torch.no_grad():
            z = self.autoencoder.encode(pixels).latents * self.autoencoder.config.scaling_factor
        self.known |= zip(wanted, z.half(), strict=True)

    def _pixels(self, wanted: Wanted) -> Tensor:
        picture, colour, place, whole = wanted
        where = Place.draw(random.Random(f"{picture} {colour} {place}"))
        return self.pictures.placed(picture, colour, where, whole * AUTOENCODER_FACTOR)


def _window(z: Tensor, size: int, rng: random.Random) -> Tensor:
    """A random square of latents [4, h, w]; all of them where they are no larger."""
    top, left = (rng.randint(0, side - size) for side in z.shape[-2:])
    return z[:, top : top + size, left : left + size]
