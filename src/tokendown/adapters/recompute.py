"""Gradient checkpointing: a block that runs again in the backward pass sees what it saw before.

By then another step may have come, or another size. The input of a block is the same tensor both
times, which is how the first time is found again.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from .plan import Clock, Layer, Shape

Moment = tuple[Clock | None, int, int, tuple[Shape, ...]]


class Recall:
    """A forward pre-hook on a block: the step and the size of its first run hold in the second.

    Args:
        layer: in the block. There may be two, so that nothing that they share can be set back.
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.seen = WeakTensorKeyDictionary()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        tokens = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(tokens, Tensor):
            return
        self.layer.finish()
        if torch._C._current_graph_task_id() == -1:  # not in a backward pass
            clock, *size = self._moment()
            self.seen[tokens] = (copy.copy(clock), *size)  # it goes on
        elif tokens in self.seen:
            present = self._moment()
            self.layer.afterwards = lambda: self._return_to(present)
            self._return_to(self.seen[tokens])

    def _moment(self) -> Moment:
        layer = self.layer
        return layer.clock, layer.height, layer.width, layer.shapes

    def _return_to(self, moment: Moment) -> None:
        layer = self.layer
        layer.clock, layer.height, layer.width, layer.shapes = moment

    def __getstate__(self) -> dict[str, Any]:
        return {"layer": self.layer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def watch_block(model: nn.Module, layer: Layer) -> None:
    """Hooks the block that a layer is in."""
    block = model.get_submodule(layer.name.rpartition(".")[0])
    block.register_forward_pre_hook(Recall(layer), with_kwargs=True)
