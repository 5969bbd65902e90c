"""Latents of pictures, encoded when first asked for and then remembered."""

from __future__ import annotations

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from .data import Pictures, halve
from .model import FULL


class Latents:
    """Flat backgrounds from a palette are few, so that every latent is used many times."""

    def __init__(self, pictures: Pictures, autoencoder: AutoencoderTiny) -> None:
        self.pictures, self.autoencoder = pictures, autoencoder
        self.device = next(autoencoder.parameters()).device
        self.known: dict[tuple[int, str, int], Tensor] = {}

    def batch(self, wanted: list[tuple[int, str]], size: int) -> Tensor:
        """Latents of unit variance [n, 4, size, size] of (picture, colour) pairs."""
        missing = [w for w in dict.fromkeys(wanted) if (*w, size) not in self.known]
        if missing:
            fresh = self._encode(torch.stack([self.pictures.on(*w) for w in missing]), size)
            self.known |= {(*w, size): z for w, z in zip(missing, fresh, strict=True)}
        return torch.stack([self.known[(*w, size)] for w in wanted]).float()

    @torch.no_grad()
    def _encode(self, pixels: Tensor, size: int) -> Tensor:
        pixels = pixels.to(self.device)
        pixels = pixels if size == FULL else halve(pixels)
        z = self.autoencoder.encode(pixels).latents
        return (z * self.autoencoder.config.scaling_factor).half()
