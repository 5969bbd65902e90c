"""What the user may name: a device, a dtype, a model here or on the Hub.

Only safetensors files are accepted: other checkpoint formats can run code when they are opened.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import torch

from .._errors import ConfigError, LoadError

_REFUSED = {".ckpt", ".bin", ".pt", ".pth", ".pkl"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_DTYPES = ("float32", "float16", "bfloat16")


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is the first that works here of cuda, mps, cpu.

    Raises:
        ConfigError: there is no such device here.
    """
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next((kind for kind, works in usable.items() if works), "cpu"))
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # meta has no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        found = ", ".join([kind for kind, works in usable.items() if works] + ["cpu"])
        raise ConfigError(f"no device {name!r} here; found: {found}") from error
    return device


def synchronize(device: torch.device) -> None:
    """Waits until everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of that name; "auto" is float32 on the CPU and float16 elsewhere.

    Raises:
        ConfigError: not one of float32, float16, bfloat16.
    """
    if name == "auto":
        name = "float32" if device.type == "cpu" else "float16"
    if name not in _DTYPES:
        raise ConfigError(f"expected a dtype of {', '.join(_DTYPES)}, got {name!r}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def kind_of(model: str) -> str:
    """What was typed: "folder", "file" (.safetensors) or "hub".

    Raises:
        LoadError: none of these, or a format that can run code.
    """
    try:
        path = Path(model).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long; of ~nobody; a null character
        raise LoadError(f"{model[:80]}: {first_line(error)}") from error
    if path.suffix in _REFUSED:
        raise LoadError(
            f"{model}: {path.suffix} files can run code when opened; convert it to .safetensors"
        )
    if path.is_dir():
        return "folder"
    if path.suffix == ".safetensors" and path.is_file():
        return "file"
    if path.exists():
        raise LoadError(f"{model}: expected a folder or a .safetensors file")
    if _HUB_ID.fullmatch(model) and path.suffix != ".safetensors":
        return "hub"
    raise LoadError(f"{model}: no such file or folder, and not a Hub id such as owner/name")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without a full stop, or its class name."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".")[:300] if lines else type(error).__name__


def need_diffusers() -> None:
    """Imports diffusers and transformers, which the library itself does without.

    Raises:
        LoadError: one is missing, or what is installed does not go together.
    """
    try:
        import diffusers  # noqa: F401, whether it is there
        import transformers  # noqa: F401, pipelines need it
    except ModuleNotFoundError as error:
        raise LoadError(
            f"this needs an extra: pip install 'tokendown[cli]' ({error.name} is missing)"
        ) from error
    except ImportError as error:
        raise LoadError(
            f"diffusers and transformers cannot be imported: {first_line(error)}; "
            "pip install -U 'tokendown[cli]' takes versions that go together"
        ) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    marks = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(mark in str(error).lower() for mark in marks)


def versions() -> dict[str, str]:
    """Of tokendown and of what the pixels depend on; empty where a package is missing."""
    found = {}
    for package in ("tokendown", "torch", "diffusers", "transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = ""
    return found
