"""Zeros in the shape of a denoiser's inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FRAMES = 14


class _AllTrue(Tensor):
    """A mask without values, whose sums are known all the same."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def sum(self, dim: int) -> Tensor:  # type: ignore[override]
        assert dim == 1, "lengths are asked for"
        return torch.full(self.shape[:1], self.shape[1])


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

    def mask(self, tokens: int) -> Tensor:
        """[batch, tokens], all true; a model may read how many are, on the meta device too."""
        mask = torch.ones(self.batch, tokens, device=self.device, dtype=torch.bool)
        return mask.as_subclass(_AllTrue) if mask.is_meta else mask

    def integers(self, *shape: int) -> Tensor:
        return torch.zeros(self.batch, *shape, device=self.device, dtype=torch.long)


# The configuration, zeros, height and width of the latent -> keyword arguments of the forward.
Maker = Callable[[Any, Zeros, int, int], dict[str, Any]]
