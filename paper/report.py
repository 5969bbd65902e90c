"""What the scripts here share: where numbers were made, their spread, tables of them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median first, then the extremes and every run, to four digits."""
    runs = [float(f"{value:.4g}") for value in values]
    return {"median": statistics.median(runs), "low": min(runs), "high": max(runs), "runs": runs}


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option of the scripts that draw pictures."""
    parser.add_argument(
        "--device", default="auto", help="cuda, mps or cpu; default: the first here"
    )


def single_precision(device: str) -> dict[str, str]:
    """Part of a request: small distances are measured in float32, also by a GPU's convolutions."""
    torch.backends.cudnn.allow_tf32 = False  # of its own accord cuDNN keeps ten bits of a number
    return {"device": device, "dtype": "float32"}


def environment(device: str = "cpu") -> dict[str, Any]:
    """The machine and the software that a record comes from."""
    commit = None
    with contextlib.suppress(OSError):  # no git here
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
        commit = git.stdout.strip() or None
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    cpu = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "commit": commit,
        "cpu": cpu[0].split(":")[1].strip() if cpu else platform.processor() or None,
        "cores": os.cpu_count(),
        "gpu": gpu,
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
