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

from .._errors import ConfigError
from .plan import Layer


class Recall:
    """A forward pre-hook on a block: the step and the size of its first run hold in the second.

    Args:
        layer: in the block. There may be two, so that nothing that they share can be set back.
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.seen = WeakTensorKeyDictionary()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        layer = self.layer
        layer.finish()  # where a backward pass was interrupted
        tokens = args[0] if args else kwargs.get("hidden_states")
        if not torch.is_grad_enabled() or not isinstance(tokens, Tensor):
            return
        if torch._C._current_graph_task_id() == -1:  # not in a backward pass
            clock, *size = layer.moment()
            self.seen[tokens] = (copy.copy(clock), *size)  # it goes on
        elif tokens in self.seen:
            layer.present = layer.moment()
            layer.go_to(self.seen[tokens])
        elif layer.clock is not None:
            raise ConfigError(
                f"{layer.name} runs again for a gradient, and at which step it ran first cannot be "
                "told: more than its block is checkpointed, or with use_reentrant=True; use the "
                "model's enable_gradient_checkpointing(), or method='nearest' and no step window"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {"layer": self.layer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def watch_block(model: nn.Module, layer: Layer) -> None:
    """Hooks the block that a layer is in."""
    block = model.get_submodule(layer.name.rpartition(".")[0])
    block.register_forward_pre_hook(Recall(layer), with_kwargs=True)
