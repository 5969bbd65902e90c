"""Zeros in the shape of a denoiser's inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

FRAMES = 14


class Readable(Tensor):
    """Values on the CPU among tensors of the meta device, which a model may ask for or index by.

    What they are computed with on the meta device stays there. So does what they are repeated to:
    a mask [queries, keys] of a film would not fit, and nobody asks for its values.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    known: Tensor

    @staticmethod
    def __new__(cls, known: Tensor) -> Readable:
        self: Readable = Tensor._make_wrapper_subclass(cls, known.shape, dtype=known.dtype)
        self.known = known
        return self

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map_only(cls, lambda x: x.known, (args, kwargs or {}))
        on_meta = any(isinstance(x, Tensor) and x.is_meta for x in tree_leaves(args))
        aten = torch.ops.aten
        if function is aten.repeat.default or (on_meta and function is not aten.index.Tensor):
            args = tree_map_only(Tensor, lambda x: x.to("meta"), args)
        result = function(*args, **kwargs)
        return tree_map_only(Tensor, lambda x: x if x.is_meta else cls(x), result)

    def tolist(self) -> Any:
        return self.known.tolist()


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
        """[batch, tokens], all true; a model may read it on the meta device too."""
        return self._readable(torch.ones(self.batch, tokens, dtype=torch.bool))

    def readable(self, *shape: int) -> Tensor:
        """Zeros that a model may read on the meta device too."""
        return self._readable(torch.zeros(self.batch, *shape, dtype=self.dtype))

    def _readable(self, values: Tensor) -> Tensor:
        return Readable(values) if self.device.type == "meta" else values.to(self.device)

    def integers(self, *shape: int) -> Tensor:
        return torch.zeros(self.batch, *shape, device=self.device, dtype=torch.long)


# The configuration, zeros, height and width of the latent -> keyword arguments of the forward.
Maker = Callable[[Any, Zeros, int, int], dict[str, Any]]
