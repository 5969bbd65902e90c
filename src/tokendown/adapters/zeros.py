"""Zeros in the shape of a denoiser's inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FRAMES = 14


class Zeros:
    """Tensors [batch, ...] on one device."""

    def __init__(
        self, batch: int, device: torch.device, dtype: torch.dtype, frames: int | None = None
    ) -> None:
        self.batch, self.device, self.dtype = batch, device, dtype
        self.asked = frames
        self.frames = frames or FRAMES

    def __call__(self, *shape: int) -> Tensor:
        return torch.zeros(self.batch, *shape, device=self.device, dtype=self.dtype)

    def integers(self, *shape: int) -> Tensor:
        return torch.zeros(self.batch, *shape, device=self.device, dtype=torch.long)


# The configuration, zeros, height and width of the latent -> keyword arguments of the forward.
Maker = Callable[[Any, Zeros, int, int], dict[str, Any]]
