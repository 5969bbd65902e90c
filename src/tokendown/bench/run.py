"""Measures the cells of jobs: every method has a turn in every round, in an order that changes.

What counts is the ratio within a round of one run, so that a slow minute of the machine hits all
methods.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from typing import Any

import torch

from .._errors import ConfigError, TokendownError
from ..methods import PLAN
from ..models.sources import first_line, out_of_memory
from . import backends
from .cells import FAILED, MEASURED, NO_MEMORY, SCHEMA, SKIPPED, CellFile
from .compiled import CompiledCopies
from .cost import predicted_flops
from .jobs import Job
from .machine import software
from .measure import Timing, measure, replayed
from .methods import DENSE, Method, Scene, Useless, make_method
from .targets import Target, Work, load, open_target
from .turns import williams

Report = Callable[[dict[str, Any]], None]


class Deadline:
    """A time at which to stop between two cells.

    Args:
        minutes: from now, >= 0; None means never.

    Raises:
        ConfigError: the number is out of range.
    """

    def __init__(self, minutes: float | None = None) -> None:
        if minutes is not None and not minutes >= 0:
            raise ConfigError(f"expected minutes >= 0, got {minutes}")
        self.end = None if minutes is None else time.monotonic() + 60 * minutes

    def allows(self, seconds: float) -> bool:
        """Whether something of that length would end in time."""
        return self.end is None or time.monotonic() + seconds <= self.end


def run(
    jobs: list[Job],
    file: CellFile,
    *,
    deadline: Deadline | None = None,
    report: Report = lambda _: None,
) -> bool:
    """Measures what is not in the file yet.

    Args:
        jobs: in this order.
        file: gets a line as soon as a cell is measured.
        deadline: when to stop cleanly.
        report: called with every new cell.

    Returns:
        Whether everything is done; False if the deadline came first.

    Raises:
        ConfigError: a size or option does not suit a model.
        LoadError: a model cannot be loaded.
        BenchError: tomesd is missing.
        RunError: a model does not fit into memory.
    """
    started = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    for job in jobs:
        target = open_target(job)
        groups = [_Group(target, *size, file, report, started) for size in target.sizes]
        for group in groups:
            if group.pending():  # else its model is not needed
                target.latent(group.width, group.height)  # raises before the first is measured
        for group in groups:
            if not group.run(deadline or Deadline()):
                return False
        del target
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True


class _Group:
    """The cells of one model at one size."""

    def __init__(
        self, target: Target, width: int, height: int, file: CellFile, report: Report, started: str
    ) -> None:
        self.target, self.job, self.file, self.report = target, target.job, file, report
        self.width, self.height, self.started = width, height, started
        self.key = target.key(width, height)

    def pending(self) -> bool:
        """Whether a cell is still to be measured."""
        return any(map(self._round, range(self.job.rounds)))

    def _round(self, number: int, hurried: bool = False) -> list[str]:
        """The methods that are still to be measured in a round, in order.

        Seconds of two runs are not compared, for a machine is not always equally fast: where
        another run has begun the round, dense is measured again. It comes first there, and where
        time is short, so that whatever follows has it beside it.
        """
        order = williams(self.job.methods, number)
        missing = [name for name in order if self.file.needs(self.key, name, number)]
        if self.file.without_dense(self.key) or not missing:
            return missing
        if hurried or DENSE not in missing:
            return [DENSE, *(name for name in missing if name != DENSE)]
        return missing

    def run(self, deadline: Deadline) -> bool:
        """Returns whether all cells are there."""
        if not self.pending():
            return True
        if not deadline.allows(self._longest() or self._guess()):
            return False
        methods = self._prepare()
        if not self.pending():
            return True
        denoiser, work = load(self.target), self.target.work(self.width, self.height)
        self._warm_up(denoiser)
        backend = self._backend(denoiser, work)
        with backends.attention_backend(backend), self._runners(denoiser) as runner:
            facts = {"attention": backend, "kernel": self._kernel(backend)}
            for number in range(self.job.rounds):
                for name in self._round(number, hurried=deadline.end is not None):
                    alone = name == DENSE and len(self.job.methods) > 1  # of no use without others
                    if not deadline.allows((1 + alone) * self._longest()):
                        return False
                    method = methods[name]
                    self._add(method, number, **facts, **self._cell(method, work, runner))
        return True

    def _prepare(self) -> dict[str, Method]:
        """The methods that have something to do here; the others get their line."""
        rows, columns = self.target.latent(self.width, self.height)
        call = rows, columns, self.job.batch, self.job.whole
        timed = Scene.of(self.target.timed_skeleton, *call)
        whole = timed
        if self.target.timed_skeleton is not self.target.skeleton:
            whole = Scene.of(self.target.skeleton, *call)
        inputs = self.target.inputs(whole.model, rows, columns)
        self.flops: dict[str, int | None] = {}
        self.layer = timed.layers[0]
        found = {}
        for name in self.job.methods:
            if not any(name in self._round(number) for number in range(self.job.rounds)):
                continue
            try:
                found[name] = make_method(name, timed)
            except Useless as reason:
                nothing = Method(name, "", lambda _: contextlib.nullcontext())
                self._add(nothing, 0, outcome=SKIPPED, why=str(reason))
                continue
            self._check_plan(found[name])
            if not (self.job.whole and found[name].windowed):  # steps that do not cost the same
                self.flops[name] = predicted_flops(make_method(name, whole), whole, inputs)
        return found

    def _check_plan(self, method: Method) -> None:
        """Whether what is in the file was measured with the plan that is in its file now.

        Raises:
            ConfigError: it was another one.
        """
        if not method.name.startswith(PLAN):
            return
        cells = [cell for cell in self.file.group(self.key) if cell["method"] == method.name]
        if any(c["outcome"] == MEASURED and c["detail"] != method.detail for c in cells):
            raise ConfigError(
                f"{method.name} has changed since {self.file.path} was measured; name another --out"
            )

    def _warm_up(self, denoiser: Any) -> None:
        if self.target.device.type != "cpu" or self.job.warmup is not None:
            return
        small = self.target.small_work(self.width, self.height)
        if small is not None:
            measure(lambda: small(denoiser), self.target.device)

    def _backend(self, denoiser: Any, work: Work) -> str:
        """The backend to use: the one of this group's earlier cells, if there are any."""
        if self.job.backend != backends.BEST:
            return self.job.backend
        for cell in self.file.group(self.key):
            if cell.get("attention"):
                return str(cell["attention"])

        def seconds(name: str) -> float:
            with backends.attention_backend(name):
                self._kernel(name)
                timing = measure(lambda: work(denoiser), device, warmup=1, least_seconds=0.3)
            return timing.median

        device = self.target.device
        candidates = backends.worth_trying(device)
        if len(candidates) == 1:
            return candidates[0]
        return backends.fastest(candidates, seconds)

    def _kernel(self, backend: str) -> str:
        """What dense attention runs on."""
        layer, device, dtype = self.layer, self.target.device, self.target.dtype
        kernel = backends.chosen_kernel(layer.heads, layer.head_dim, device, dtype)
        backends.check_kernel(backend, kernel, device, dtype)
        return kernel

    @contextlib.contextmanager
    def _runners(self, denoiser: Any) -> Iterator[Callable[[Method], Any]]:
        """Yields what gives a context with the model that has a method in it."""

        @contextlib.contextmanager
        def eager(method: Method) -> Iterator[Any]:
            with method.apply(denoiser):
                yield denoiser

        if self.job.compile in ("no", "graph"):
            yield eager
            return
        with CompiledCopies(denoiser, self.job.compile, self.job.compiler) as copies:
            yield lambda method: contextlib.nullcontext(copies.of(method))

    def _cell(self, method: Method, work: Work, runner: Callable[[Method], Any]) -> dict[str, Any]:
        """What came of one cell."""
        device = self.target.device
        try:
            with runner(method) as model:
                timing = measure(
                    self._call(work, model),
                    device,
                    warmup=self._warmups(),
                    least_seconds=self._least_seconds(),
                )
        except Exception as error:  # kernels, compilers and peers can fail in any way
            if not any(map(out_of_memory, filter(None, (error, error.__cause__)))):
                if isinstance(error, TokendownError):
                    raise
                return {"outcome": FAILED, "why": f"{type(error).__name__}: {first_line(error)}"}
        else:
            # a graph is recorded before its calls are timed, and has its memory from then on
            return _numbers(timing, memory=self.job.compile != "graph")
        gc.collect()  # what the failed call left behind
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return {"outcome": NO_MEMORY, "why": f"on {self.key['hardware']}"}

    def _call(self, work: Work, model: Any) -> Callable[[], dict[str, float]]:
        """What is timed."""
        call = partial(work, model)
        return replayed(call, self.target.device) if self.job.compile == "graph" else call

    def _warmups(self) -> int:
        if self.job.warmup is not None:
            return self.job.warmup
        if self.job.compile != "no":
            return 2  # what breaks the graph, as tomesd does, compiles again at the second call
        return 0 if self.target.device.type == "cpu" else 1

    def _least_seconds(self) -> float:
        if self.job.least_seconds is not None:
            return self.job.least_seconds
        return 0.0 if self.target.device.type == "cpu" else 0.5

    def _longest(self) -> float:
        """Seconds of the longest cell of this group so far."""
        cells = self.file.group(self.key)
        return max((sum(c.get("calls", [])) + sum(c.get("warmup", [])) for c in cells), default=0.0)

    def _guess(self) -> float:
        """Seconds until the first cell, from other sizes of this model; 0 if there are none.

        Attention grows with the square of the area; what is tried before the first cell takes as
        long as some of them.
        """
        area = self.width * self.height
        guesses = [
            cell["seconds"] * (area / (cell["width"] * cell["height"])) ** 2
            for cell in self.file.cells
            if cell["target"] == self.key["target"] and cell["hardware"] == self.key["hardware"]
            if cell["seconds"]
        ]
        return 4 * max(guesses, default=0.0)

    def _add(self, method: Method, number: int, **facts: Any) -> None:
        cell = {
            "schema": SCHEMA,
            **self.key,
            "method": method.name,
            "detail": method.detail,
            "round": number,
            "seconds": None,
            "flops": self.flops.get(method.name),
            **facts,
            "run": self.started,
            **software(),
        }
        self.file.append(cell)
        self.report(cell)


def _numbers(timing: Timing, memory: bool) -> dict[str, Any]:
    extra = {f"{name}_seconds": round(value, 6) for name, value in timing.extra.items()}
    return {
        "outcome": MEASURED,
        "seconds": round(timing.median, 6),
        "calls": [round(value, 6) for value in timing.seconds],
        "warmup": [round(value, 6) for value in timing.warmup],
        "peak_gib": round(timing.peak_gib, 3) if memory and timing.peak_gib is not None else None,
        **extra,
    }
