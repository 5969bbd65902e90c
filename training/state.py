"""Being a polite, resumable process: pausing, thread counts, checkpoints in small files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .config import CACHE

PAUSE = CACHE / "PAUSE"
SHARD_BYTES = 15_000_000


def wait_while_paused(told_to_end: Callable[[], bool]) -> None:
    """Sleeps as long as .cache/training/PAUSE exists, so that a benchmark can have the cores."""
    while PAUSE.exists() and not told_to_end():
        time.sleep(1)


def on_terminate() -> Callable[[], bool]:
    """After this, `kill` makes the returned function say True, and ends nothing by itself."""
    seen: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    return lambda: bool(seen)


def save(folder: Path, tensors: dict[str, Tensor], meta: dict) -> None:
    """Replaces a checkpoint in one rename, so that a kill at any moment leaves a whole one."""
    fresh = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for number, shard in enumerate(_shards(tensors)):
        save_file(shard, fresh / f"{number:03d}.safetensors")
    (fresh / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def load(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """What `save` wrote; ({}, {}) where there is none yet."""
    kept = folder if folder.exists() else folder.with_name(folder.name + ".tmp")
    if not (kept / "meta.json").exists():
        return {}, {}
    tensors: dict[str, Tensor] = {}
    for shard in sorted(kept.glob("*.safetensors")):
        tensors |= load_file(shard)
    return tensors, json.loads((kept / "meta.json").read_text(encoding="utf-8"))


def _shards(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    shards, size = [{}], 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.detach().cpu().contiguous()
        size += tensor.nbytes
    return shards


class Threads:
    """Two threads that share a core wait for each other: use as many as there are idle cores.

    Processes with a nice value do not count, they give way (to a run with none, that is).
    """

    def __init__(self) -> None:
        self.most = torch.get_num_threads()
        self.last = self._busy()

    def adapt(self) -> None:
        """Call now and then; reads how much of the machine others used since the last call."""
        now = self._busy()
        passed, others = (b - a for a, b in zip(self.last, now, strict=True))
        if passed < 3:
            return
        self.last = now
        torch.set_num_threads(max(1, self.most - round(others / passed * self.most + 0.2)))

    @staticmethod
    def _busy() -> tuple[float, float]:
        """Seconds since boot of all cores, and those that others spent without a nice value."""
        try:
            fields = Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
        except OSError:
            return 0.0, 0.0
        user, _, system, *_ = seconds = [int(x) / os.sysconf("SC_CLK_TCK") for x in fields]
        mine = os.times()
        own = mine.system + (mine.user if os.nice(0) <= 0 else 0.0)
        return sum(seconds), user + system - own


class Log:
    """One JSON line a report, and a mean of the loss since the last one."""

    def __init__(self, path: Path, every: float = 20.0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.every = path, every
        self.total, self.count, self.since = 0.0, 0, time.time()

    def add(self, loss: Tensor, fields: dict) -> None:
        """Writes at most once in `every` seconds, and waits for the device only then."""
        self.total, self.count = self.total + loss, self.count + 1
        seconds = time.time() - self.since
        if seconds < self.every:
            return
        line = fields | {
            "loss": round(float(self.total) / self.count, 5),
            "seconds_a_step": round(seconds / self.count, 3),
            "threads": torch.get_num_threads(),
            "time": time.strftime("%H:%M:%S"),
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.total, self.count, self.since = 0.0, 0, time.time()
