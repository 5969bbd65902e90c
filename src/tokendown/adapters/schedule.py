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
    """Stands in for ``scheduler.set_timesteps``: a schedule begins.

    One object serves every clock that follows the scheduler, so that any of them can leave first.
    """

    method = "set_timesteps"

    def __init__(self, owner: Any) -> None:
        super().__init__(owner)
        self.clocks: list[Clock] = []

    def run(self, *args: Any, **kwargs: Any) -> Any:
        result = self.original(*args, **kwargs)
        for clock in self.clocks:
            clock.set(0, len(self.owner.timesteps))
        return result


class Begin(Restart):
    """Stands in for ``scheduler.set_begin_index``: image-to-image starts later."""

    method = "set_begin_index"

    def run(self, begin_index: int = 0) -> Any:
        result = self.original(begin_index)
        for clock in self.clocks:
            clock.set(int(begin_index), clock.steps)
        return result


class Tick(Restart):
    """Stands in for ``scheduler.step``: a step is done."""

    method = "step"

    def run(self, *args: Any, **kwargs: Any) -> Any:
        result = self.original(*args, **kwargs)
        for clock in self.clocks:
            clock.set(clock.step + 1, clock.steps)
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
            for clock in self.clocks:
                clock.set(index, clock.steps)
        return self.original(sample, timestep, *args, **kwargs)


def follow(scheduler: Any, clock: Clock) -> None:
    """From now on the clock goes with the scheduler; it stands until a schedule begins."""
    installed = {type(part): part for part in _parts(scheduler)}
    told = hasattr(scheduler, Begin.method)
    for kind in (Restart, Begin if told else Look, Tick):
        if hasattr(scheduler, kind.method):
            if kind not in installed:
                installed[kind] = kind(scheduler)
                installed[kind].install()
            installed[kind].clocks.append(clock)


def release(scheduler: Any) -> None:
    """Forgets the clocks of patches that are gone, and restores the scheduler when none is left."""
    for part in _parts(scheduler):
        part.clocks = [clock for clock in part.clocks if not clock.detached]
        if not part.clocks:
            part.remove()


def _parts(scheduler: Any) -> list[Restart]:
    return [item for item in intercepts(scheduler) if isinstance(item, Restart)]
