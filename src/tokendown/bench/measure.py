"""Seconds and memory of one call, repeated until there is enough to take a median of."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .._errors import BenchError
from ..models.sources import synchronize

_GIB = 2**30
_STATM = Path("/proc/self/statm")
_WATCH_SECONDS = 0.1  # a busier watch would slow what it watches
_MOST_CALLS = 100


@dataclass(frozen=True)
class Timing:
    """What one cell of a benchmark took.

    Attributes:
        seconds: of each timed call.
        warmup: seconds of each call before, compilation included.
        peak_gib: largest memory during the timed calls; None where it cannot be told.
        extra: further seconds that the call itself reports, medians.
    """

    seconds: list[float]
    warmup: list[float]
    peak_gib: float | None
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def measure(
    call: Callable[[], dict[str, float]],
    device: torch.device,
    *,
    warmup: int = 0,
    least_seconds: float = 0.0,
) -> Timing:
    """Times a call, again and again until ``least_seconds`` are over.

    Args:
        call: what is timed; may return further seconds by name.
        device: where it computes.
        warmup: calls before that are not counted.
        least_seconds: of all timed calls together; there is one at least, and 100 at most.
    """
    warm = [_seconds(call, device)[0] for _ in range(warmup)]
    seconds: list[float] = []
    extras: list[dict[str, float]] = []
    with PeakMemory(device) as memory:
        while not seconds or (sum(seconds) < least_seconds and len(seconds) < _MOST_CALLS):
            taken, extra = _seconds(call, device)
            seconds.append(taken)
            extras.append(extra)
    medians = {name: statistics.median(extra[name] for extra in extras) for name in extras[0]}
    return Timing(seconds, warm, memory.gib, medians)


@torch.no_grad()
def replayed(
    call: Callable[[], dict[str, float]], device: torch.device
) -> Callable[[], dict[str, float]]:
    """A call as a CUDA graph: what it computes, without the time that Python takes to ask for it.

    Raises:
        BenchError: there is no CUDA device.
    """
    if device.type != "cuda":
        raise BenchError(f"CUDA graphs need a CUDA device, this one is {device}")
    for _ in range(2):  # libraries choose their kernels, which must not happen in the recording
        call()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()

    def replay() -> dict[str, float]:
        graph.replay()
        return {}

    return replay


@torch.no_grad()
def _seconds(
    call: Callable[[], dict[str, float]], device: torch.device
) -> tuple[float, dict[str, float]]:
    synchronize(device)
    start = time.perf_counter()
    extra = call()
    synchronize(device)
    return time.perf_counter() - start, extra


class PeakMemory:
    """Largest memory in a block, GiB: allocated on CUDA, else sampled ten times a second.

    On the CPU it is what the process has resident, weights and libraries included; on MPS what the
    driver has given out. None where neither can be read.

    Args:
        device: whose memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.gib: float | None = None

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def _watch(self) -> None:
        while True:
            now = self._now()
            if now is not None:
                self.gib = max(self.gib or 0.0, now)
            if self._stop.wait(_WATCH_SECONDS):
                return

    def _now(self) -> float | None:
        if self.device.type == "mps":
            return torch.mps.driver_allocated_memory() / _GIB
        if not _STATM.exists():
            return None
        pages = int(_STATM.read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / _GIB

    def __exit__(self, *exc: object) -> None:
        if self.device.type == "cuda":
            self.gib = torch.cuda.max_memory_allocated(self.device) / _GIB
        else:
            self._stop.set()
            self._thread.join()
