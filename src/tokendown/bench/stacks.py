"""A few blocks of a deep model are timed, and the others calculated: they are all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..models.sources import synchronize


class StackClock:
    """Seconds that the stacks of equal blocks of a model take in one call.

    Waits for the device before and after every stack, which costs little beside a block.

    Args:
        model: the denoiser.
        stacks: attribute names of its lists of blocks.
        device: where it computes.
    """

    def __init__(self, model: Any, stacks: list[str], device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(stacks, 0.0)
        self._begin = 0.0
        self._handles = []
        for stack in stacks:
            blocks = getattr(model, stack)
            self._handles.append(blocks[0].register_forward_pre_hook(self._start))
            self._handles.append(blocks[-1].register_forward_hook(self._end_of(stack)))

    def time(self, call: Callable[[], None]) -> float:
        """Seconds of a call."""
        begin = self._now()
        call()
        return self._now() - begin

    def _now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()

    def _start(self, *_: Any) -> None:
        self._begin = self._now()

    def _end_of(self, stack: str) -> Callable[..., None]:
        def end(*_: Any) -> None:
            self.seconds[stack] = self._now() - self._begin

        return end

    def __enter__(self) -> StackClock:
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()


def extrapolate(
    total: float,
    stacks: Mapping[str, float],
    timed: Mapping[str, int],
    published: Mapping[str, int],
) -> float:
    """Seconds of the whole model: every block of a stack costs as much as the timed ones did.

    Args:
        total: seconds of the model with few blocks.
        stacks: seconds of each stack in it.
        timed: its number of blocks in each stack.
        published: those of the whole model.
    """
    return total + sum(
        seconds * (published[name] / timed[name] - 1) for name, seconds in stacks.items()
    )
