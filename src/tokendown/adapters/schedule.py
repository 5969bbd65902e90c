"""Follows a scheduler, so that a patch knows the step: for jitter, and for step windows.

A timestep lives on the device, and reading it would stall a GPU at every step. The scheduler is
told of every step in plain Python: counting its calls costs nothing and works for all of them.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from .intercept import Intercept, intercepts
from .plan import Clock

logger = logging.getLogger(__name__)


class Restart(Intercept):
    """Stands in for ``scheduler.set_timesteps``: a schedule begins.

    One object serves every clock that follows the scheduler, so that any of them can leave first.
    Clocks are held weakly: in a copy of the scheduler alone nobody goes by their copies.
    """

    method = "set_timesteps"

    def __init__(self, owner: Any) -> None:
        super().__init__(owner)
        self.clocks: WeakSet[Clock] = WeakSet()
        self.begun: Any = None  # the timesteps as they were set: the owner may get copies of them

    def run(self, *args: Any, **kwargs: Any) -> Any:
        result = self.original(*args, **kwargs)
        self.begun = self.owner.timesteps
        for clock in self.clocks:
            clock.set(0, len(self.owner.timesteps))
        return result

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "clocks": list(self.clocks)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, clocks=WeakSet(state["clocks"]))


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
    """Stands in for ``scheduler.scale_model_input``: not all are told where they begin (DDIM).

    Pipelines pass an element of ``scheduler.timesteps``: its place in the common storage is its
    index, known without reading it.
    """

    method = "scale_model_input"

    def run(self, sample: Any, timestep: Any = None, *args: Any, **kwargs: Any) -> Any:
        _look(timestep, self.owner, self.clocks)
        return self.original(sample, timestep, *args, **kwargs)


def _look(timestep: Any, scheduler: Any, clocks: Iterable[Clock]) -> None:
    """Sets clocks to the step of a timestep, where that is one of the scheduler's own."""
    for timesteps in _schedules(scheduler):
        index = _index(timestep, timesteps)
        if index is not None:
            break
    else:
        return
    for clock in clocks:
        if (index, len(timesteps)) != (clock.step, clock.steps):
            clock.set(index, len(timesteps))


def _schedules(scheduler: Any) -> Iterator[Any]:
    """The timesteps that a scheduler has, then those that it was begun with."""
    yield getattr(scheduler, "timesteps", None)
    for part in _parts(scheduler):
        yield part.begun


def _index(timestep: Any, timesteps: Any) -> int | None:
    """Which element of ``timesteps`` a view is, or None where it is no view of them."""
    if not isinstance(timestep, Tensor) or not isinstance(timesteps, Tensor):
        return None
    if timestep.untyped_storage().data_ptr() != timesteps.untyped_storage().data_ptr():
        return None
    return int(timestep.storage_offset() - timesteps.storage_offset())


class Follower:
    """A forward pre-hook on a denoiser: its clocks go with the scheduler of a pipeline.

    Which one that is, is asked at every call: a pipeline gets another one by an assignment that
    nobody hears of. A copy does not know its pipeline; its clocks go with the copied scheduler.

    Args:
        pipeline: held weakly.
        clocks: stand until a schedule begins, if none has.
    """

    def __init__(self, pipeline: Any, clocks: list[Clock]) -> None:
        self.pipeline: weakref.ref[Any] | None = weakref.ref(pipeline)
        self.clocks = clocks
        self.told = all(not clock.whole for clock in clocks)  # windows raise an error
        self._follow(pipeline.scheduler)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return  # the wrapper of a compiled model has this hook as well
        timestep = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        scheduler = self._current()
        if scheduler is not self.scheduler:
            release(self.scheduler, self.clocks)
            self._follow(scheduler, timestep)
        else:
            _look(timestep, self.scheduler, self.clocks)
        if not self.told and not any(clock.running for clock in self.clocks):
            self.told = True
            logger.info(
                "the scheduler of the pipeline that was patched is not running: kept tokens stay "
                "the same until it does, or until patch.set_progress(step, steps) tells the step"
            )

    def release(self) -> None:
        """Restores the scheduler, and that which a pipeline has copied from it and not run yet."""
        release(self.scheduler)
        release(self._current())

    def _current(self) -> Any:
        """The scheduler of the pipeline, as long as it has one."""
        found = getattr(self.pipeline and self.pipeline(), "scheduler", None)
        return self.scheduler if found is None else found

    def _follow(self, scheduler: Any, timestep: Any = None) -> None:
        self.scheduler = scheduler
        _attach(scheduler, self.clocks)
        progress = _progress(scheduler, timestep)
        for clock in self.clocks:
            clock.set(*progress)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "pipeline": None}


def _progress(scheduler: Any, timestep: Any) -> tuple[int, int]:
    """The step that is being made, and of how many; (0, 0) where no schedule has begun.

    Args:
        scheduler: of diffusers.
        timestep: what a denoiser is given at this step, or None between steps: then only a
            scheduler that counts its steps can tell.
    """
    if not getattr(scheduler, "num_inference_steps", None):
        return 0, 0
    steps = len(scheduler.timesteps)
    told = getattr(scheduler, "step_index", None), getattr(scheduler, "begin_index", None)
    for index in (*told, _index(timestep, scheduler.timesteps)):
        if index is not None:
            return int(index), steps
    return 0, 0 if timestep is None else steps


def _attach(scheduler: Any, clocks: list[Clock]) -> None:
    """From now on the clocks go with the scheduler."""
    installed = {type(part): part for part in _parts(scheduler)}
    for kind in (Restart, Begin, Look, Tick):
        if hasattr(scheduler, kind.method):
            if kind not in installed:
                installed[kind] = kind(scheduler)
                installed[kind].install()
            installed[kind].clocks.update(clocks)


def release(scheduler: Any, leaving: Sequence[Clock] = ()) -> None:
    """Forgets some clocks and those of patches that are gone; restores it when none is left."""
    for part in _parts(scheduler):
        staying = [c for c in part.clocks if not c.detached and c not in leaving]
        part.clocks = WeakSet(staying)
        if not part.clocks:
            part.remove()


def _parts(scheduler: Any) -> list[Restart]:
    return [item for item in intercepts(scheduler) if isinstance(item, Restart)]
