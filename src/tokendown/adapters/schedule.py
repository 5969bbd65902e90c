"""Follows a scheduler, so that a patch can be active in a part of the schedule only.

A timestep lives on the device, and reading it would stall a GPU at every step. The scheduler is
told of every step in plain Python: counting its calls costs nothing and works for all of them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .intercept import Intercept, intercepts
from .plan import Clock


class Restart(Intercept):
    """Stands in for ``scheduler.set_timesteps``: a schedule begins."""

    method = "set_timesteps"

    def __init__(self, owner: Any, clock: Clock) -> None:
        super().__init__(owner)
        self.clock = clock

    def run(self, *args: Any, **kwargs: Any) -> Any:
        result = self.original(*args, **kwargs)
        self.clock.set(0, len(self.owner.timesteps))
        return result


class Begin(Restart):
    """Stands in for ``scheduler.set_begin_index``: image-to-image starts later."""

    method = "set_begin_index"

    def run(self, begin_index: int = 0) -> Any:
        result = self.original(begin_index)
        self.clock.set(int(begin_index), self.clock.steps)
        return result


class Tick(Restart):
    """Stands in for ``scheduler.step``: a step is done."""

    method = "step"

    def run(self, *args: Any, **kwargs: Any) -> Any:
        result = self.original(*args, **kwargs)
        self.clock.set(self.clock.step + 1, self.clock.steps)
        return result


class Look(Restart):
    """Stands in for ``scale_model_input`` of schedulers that are not told where they begin (DDIM).

    Pipelines pass an element of ``scheduler.timesteps``: its place in the common storage is its
    index, known without reading it.
    """

    method = "scale_model_input"

    def run(self, sample: Any, timestep: Any = None, *args: Any, **kwargs: Any) -> Any:
        timesteps = self.owner.timesteps
        if (
            isinstance(timestep, Tensor)
            and timestep.untyped_storage().data_ptr() == timesteps.untyped_storage().data_ptr()
        ):
            index = timestep.storage_offset() - timesteps.storage_offset()
            self.clock.set(index, self.clock.steps)
        return self.original(sample, timestep, *args, **kwargs)


def follow(scheduler: Any, clock: Clock) -> None:
    """From now on the clock goes with the scheduler."""
    told = hasattr(scheduler, Begin.method)
    for part in (Restart, Begin if told else Look, Tick):
        if hasattr(scheduler, part.method):
            part(scheduler, clock).install()
    if getattr(scheduler, "num_inference_steps", None):
        clock.set(0, len(scheduler.timesteps))


def unfollow(scheduler: Any, clock: Clock) -> None:
    """Takes the parts of this clock out of the scheduler."""
    for item in intercepts(scheduler):
        if isinstance(item, Restart) and item.clock is clock:
            item.remove()
