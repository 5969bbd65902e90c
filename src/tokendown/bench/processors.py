"""The least that keys from a grid can cost: processors that are told their grid beforehand."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional

from ..grid import Grid


class Strided(AttnProcessor2_0):  # type: ignore[misc]
    """Every ``factor``-th row and column, by plain slices; nothing else happens.

    Args:
        grid: of the layer's tokens.
        factor: linear.
    """

    def __init__(self, grid: Grid, factor: int) -> None:
        super().__init__()
        self.grid, self.factor = grid, factor

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """[B, N, C] -> [B, N, C]."""
        tokens = hidden_states.unflatten(1, (self.grid.height, self.grid.width))
        return super().__call__(attn, hidden_states, self.keep(tokens).flatten(1, 2))  # type: ignore[no-any-return]

    def keep(self, tokens: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, ceil(H / factor), ceil(W / factor), C]."""
        return tokens[:, :: self.factor, :: self.factor]


class Interpolated(Strided):
    """What torch's ``interpolate`` samples, as the authors' published code does it.

    In a grid that the factor divides, "nearest" takes the top-left token of a cell and
    "nearest-exact" the token at row and column factor // 2 of it.

    Args:
        grid: of the layer's tokens.
        factor: linear.
        mode: "nearest" or "nearest-exact".

    Source: arXiv:2402.13573 and its authors' library, which has both.
    """

    def __init__(self, grid: Grid, factor: int, mode: str) -> None:
        super().__init__(grid, factor)
        self.mode = mode

    def keep(self, tokens: Tensor) -> Tensor:
        coarse = self.grid.coarse(self.factor)
        size = (coarse.height, coarse.width)
        maps = functional.interpolate(tokens.permute(0, 3, 1, 2), size=size, mode=self.mode)
        return maps.permute(0, 2, 3, 1)


class NoAttention(nn.Module):
    """What would be left if self-attention, its projections included, were free."""

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """[B, N, C], and with a text [B, M, C] in the same sequence both."""
        if encoder_hidden_states is None or encoder_hidden_states is hidden_states:
            return torch.zeros_like(hidden_states)
        return torch.zeros_like(hidden_states), torch.zeros_like(encoder_hidden_states)
