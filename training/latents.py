"""Latents of pictures, encoded when first asked for and then remembered."""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from .config import AUTOENCODER_FACTOR, Batch
from .data import Pictures, Place

# Of every picture over every colour, by size in latents: more would cost more than they teach.
PLACES = {32: 4, 64: 4, 128: 1}


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
        for w in wanted:
            if w not in self.known:
                self.known[w] = self._encode(w)
        return torch.stack([_window(self.known[w], batch.size, rng) for w in wanted]).float()

    @torch.no_grad()
    def _encode(self, wanted: Wanted) -> Tensor:
        picture, colour, place, whole = wanted
        where = Place.draw(random.Random(f"{picture} {colour} {place}"))
        side = whole * AUTOENCODER_FACTOR
        pixels = self.pictures.placed(picture, colour, where, side)[None].to(self.device)
        z = self.autoencoder.encode(pixels).latents[0]
        return (z * self.autoencoder.config.scaling_factor).half()


def _window(z: Tensor, size: int, rng: random.Random) -> Tensor:
    """A random square of latents [4, h, w]; all of them where they are no larger."""
    top, left = (rng.randint(0, side - size) for side in z.shape[-2:])
    return z[:, top : top + size, left : left + size]
