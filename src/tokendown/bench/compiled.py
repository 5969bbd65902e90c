"""One compiled copy of a denoiser a method, all with the same weights.

Patching and removing around every cell would let the compiler start again each time; with a copy
each, every method is compiled once, and methods can take turns as they do without compilation.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch

from ..adapters import families
from .methods import Method

_VARIANTS = 1024  # methods times layers of other shapes; the compiler gives up at 8 otherwise


class CompiledCopies:
    """Compiled copies of one denoiser; a context manager that forgets them at the end.

    Args:
        denoiser: with weights, un-patched.
        what: "blocks" or "model".
        compiler: backend of ``torch.compile``.
    """

    def __init__(self, denoiser: Any, what: str, compiler: str) -> None:
        self.denoiser, self.compiler = denoiser, compiler
        # the blocks around the self-attention, which repeat; the whole model is the submodule ""
        layers = families.make_plan(denoiser, None).layers
        blocks = dict.fromkeys(layer.name.rpartition(".")[0] for layer in layers)
        self._parts = list(blocks) if what == "blocks" else [""]
        self._copies: dict[str, Any] = {}
        self._applied = contextlib.ExitStack()

    def of(self, method: Method) -> Any:
        """The copy with this method in it; compiled at its first call."""
        if method.name not in self._copies:
            model = share_weights(self.denoiser)
            self._applied.enter_context(method.apply(model))
            for name in self._parts:
                model.get_submodule(name).compile(backend=self.compiler, dynamic=False)
            self._copies[method.name] = model
        return self._copies[method.name]

    def __enter__(self) -> CompiledCopies:
        from torch import _dynamo as dynamo

        names = ("recompile_limit", "accumulated_recompile_limit")
        if not hasattr(dynamo.config, names[0]):  # before torch 2.6
            names = ("cache_size_limit", "accumulated_cache_size_limit")
        limits: Any = dict.fromkeys(names, _VARIANTS)
        self._applied.enter_context(dynamo.config.patch(**limits))
        self._applied.callback(dynamo.reset)
        return self

    def __exit__(self, *exc: object) -> None:
        self._copies.clear()
        self._applied.close()


def share_weights(model: Any) -> Any:
    """A copy of a model's structure around the same parameters and buffers."""
    tensors: tuple[torch.Tensor, ...] = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
