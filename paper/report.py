"""What the scripts here share: where numbers were made, their spread, tables of them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tokendown.bench.machine import hardware
from tokendown.models import builtin

RESULTS = Path(__file__).parent / "results"
OUT = Path("out/paper")  # what a script makes does not overwrite what the pages show


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median first, then the extremes and every run, to four digits."""
    runs = [float(f"{value:.4g}") for value in values]
    return {"median": statistics.median(runs), "low": min(runs), "high": max(runs), "runs": runs}


def add_device(parser: argparse.ArgumentParser) -> None:
    """The options of every script that computes: ``--device``, and ``--out``, a folder."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder for the files; {OUT}")


def add_model(parser: argparse.ArgumentParser) -> None:
    """``--model``, and the options of :func:`add_device`."""
    parser.add_argument("--model", default=builtin.NAME, help="hub id or diffusers folder")
    add_device(parser)


def earlier(path: Path, shared: Mapping[str, Any]) -> dict[str, Any]:
    """The record that an earlier call left, to go on with; empty where there is none.

    Says so where it was made under other circumstances, and is begun anew.

    Args:
        path: of the record.
        shared: what all numbers of a record have in common, the machine and the software too.
    """
    record: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    other = [name for name, value in shared.items() if record.get(name) != value]
    if record and other:
        print(f"{path} is begun anew: made with other {' and '.join(other)}", flush=True)
    return {} if other else record


def exact() -> None:
    """Makes float32 mean float32 on CUDA as well.

    TF32 keeps 10 bits of a factor's mantissa. PyTorch uses it in convolutions unless told not to,
    and the distances measured here can be smaller than what that rounds away.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def environment(device: str = "cpu") -> dict[str, Any]:
    """The machine and the software that a record comes from.

    Args:
        device: that computed; anything but the CPU is recorded beside it.
    """
    commit = None
    with contextlib.suppress(OSError):  # no git here
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
        commit = git.stdout.strip() or None
    cpu = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    where = torch.device(device)
    other = {} if where.type == "cpu" else {"device": hardware(where)}
    return {
        **other,
        "commit": commit,
        "cpu": cpu[0].split(":")[1].strip() if cpu else platform.processor() or None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write(path: Path, record: dict[str, Any], table: str) -> None:
    """A record as JSON, and its table beside it as Markdown; each whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, text in ((path, json.dumps(record, indent=1)), (path.with_suffix(".md"), table)):
        draft = target.with_name(target.name + ".tmp")
        draft.write_text(text.rstrip() + "\n", encoding="utf-8")
        draft.replace(target)


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []
