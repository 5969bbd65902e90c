"""On what a benchmark runs: hardware, what else it does, versions, commit."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("tokendown", "torch", "diffusers", "tomesd", "triton")


def hardware(device: torch.device) -> str:
    """The name of the card, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as info:
        for line in info:
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def threads(device: torch.device) -> int | None:
    """Of the CPU that computes; None where something else does."""
    return torch.get_num_threads() if device.type == "cpu" else None


def busy() -> list[str]:
    """A remark if other processes will distort what is measured on the CPU."""
    if not hasattr(os, "getloadavg"):
        return []
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load < 0.75 * cores:
        return []
    return [f"this machine is busy (load {load:.1f} on {cores} cores): seconds are not reliable"]


@cache
def software() -> dict[str, Any]:
    """Versions, and the commit of a checkout; packages that are missing are left out."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {"versions": versions, "commit": _commit()}


def _commit() -> str | None:
    """Of the checkout that this package lies in; None for an installed package."""
    package = Path(__file__).resolve().parent.parent
    root = package.parent.parent
    if not (root / ".git").exists() or package.parent.name != "src":
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError:  # no git here
        return None
    return done.stdout.strip() or None
