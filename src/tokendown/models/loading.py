"""From what the user named to a pipeline on its device."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from .._errors import LoadError, RunError
from . import builtin
from .sources import first_line, kind_of, need_diffusers, out_of_memory

# How the names of text encoders and VAE begin in checkpoints that have them.
_OTHER_PARTS = ("first_stage_model.", "cond_stage_model.", "conditioner.", "text_encoders.", "vae.")


def load_pipeline(
    model: str = builtin.NAME,
    *,
    device: torch.device,
    dtype: torch.dtype,
    base: str | None = None,
    lora: str | None = None,
) -> Any:
    """A diffusers pipeline, ready on its device.

    Args:
        model: "built-in", a Hub id, a diffusers folder, or a .safetensors checkpoint.
        device: where it runs.
        dtype: of the weights.
        base: the Hub id or folder whose configuration a .safetensors checkpoint has, and whose
            other parts it takes if it has none; None means that diffusers recognises the checkpoint
            and asks the Hub.
        lora: a .safetensors file, or a Hub id.

    Raises:
        LoadError: nothing there, a refused format, a broken checkpoint, or no network.
        RunError: out of memory.
    """
    need_diffusers()
    try:
        pipe = _open(model, dtype, base)
        if lora is not None:
            _add_lora(pipe, lora)
        _check_complete(pipe, model)
        pipe = pipe.to(device)
    except LoadError:
        raise
    except Exception as error:  # a third party's file can go wrong in any way
        if out_of_memory(error):
            raise RunError(
                f"out of memory while loading {model} as {dtype} on {device}; "
                "try --dtype bfloat16 or --device cpu"
            ) from error
        raise LoadError(f"cannot load the model {model}: {first_line(error)}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def fingerprint(pipe: Any) -> str:
    """Twelve hex digits that tell other weights apart: a hash of the start of every parameter."""
    digest = hashlib.sha256()
    for part in ("unet", "transformer", "vae"):
        module = getattr(pipe, part, None)
        if isinstance(module, torch.nn.Module):
            for name, weight in module.named_parameters():
                head = weight.detach().flatten()[:64].float().cpu()
                digest.update(name.encode() + head.numpy().tobytes())
    return digest.hexdigest()[:12]


def _open(model: str, dtype: torch.dtype, base: str | None) -> Any:
    from diffusers import DiffusionPipeline

    source = builtin.source_of(model)
    kind = kind_of(source)
    source = source if kind == "hub" else str(Path(source).expanduser())
    if kind == "file":
        return _open_file(source, dtype, base)
    if kind == "folder" and not (Path(source) / "model_index.json").is_file():
        raise LoadError(f"{model}: no model_index.json, so not a diffusers pipeline folder")
    try:
        return DiffusionPipeline.from_pretrained(source, torch_dtype=dtype, use_safetensors=True)
    except OSError as error:
        if kind == "hub":
            raise LoadError(
                f"{model}: no such folder here, and the Hub did not give it "
                f"({type(error).__name__}; offline, misspelt, gated, or without safetensors)"
            ) from error
        raise


def _open_file(path: str, dtype: torch.dtype, base: str | None) -> Any:
    """A checkpoint in one file; its pipeline class is that of its configuration.

    A file with the denoiser alone takes the other parts from there, too.
    """
    import diffusers
    from diffusers.loaders.single_file_utils import fetch_diffusers_config
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        shapes = {key: SimpleNamespace(shape=file.get_slice(key).get_shape()) for key in names}
    base = base or fetch_diffusers_config(shapes)["pretrained_model_name_or_path"]
    try:
        settings = diffusers.DiffusionPipeline.load_config(base)
    except OSError as error:
        raise LoadError(
            f"{path}: its configuration {base} is neither here nor on the Hub just now; "
            "give a folder that has it with --base"
        ) from error
    if not any(name.startswith(_OTHER_PARTS) for name in names):  # the denoiser alone
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            base, torch_dtype=dtype, use_safetensors=True
        )
        part = "unet" if hasattr(pipe, "unet") else "transformer"
        denoiser = type(getattr(pipe, part)).from_single_file(
            path, config=base, subfolder=part, torch_dtype=dtype
        )
        pipe.register_modules(**{part: denoiser})
        return pipe
    kind = getattr(diffusers, settings["_class_name"])
    return kind.from_single_file(path, config=base, torch_dtype=dtype)


def _add_lora(pipe: Any, lora: str) -> None:
    """Loads a LoRA; one that changes nothing is an error."""
    kind, path = kind_of(lora), Path(lora).expanduser()
    options: dict[str, Any] = {}
    if kind == "file":
        lora, options = str(path.parent), {"weight_name": path.name}
    if not hasattr(pipe, "load_lora_weights"):
        raise LoadError(f"{type(pipe).__name__} takes no LoRA")
    try:
        pipe.load_lora_weights(lora, use_safetensors=True, **options)
    except Exception as error:  # as above
        raise LoadError(f"cannot load the LoRA {path}: {first_line(error)}") from error
    if not pipe.get_active_adapters():
        raise LoadError(f"the LoRA {path} has no weights for this {type(pipe).__name__}")


def _check_complete(pipe: Any, model: str) -> None:
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            lost = [key for key, weight in part.named_parameters() if weight.is_meta]
            if lost:
                raise LoadError(f"{model}: {len(lost)} weights of the {name} are missing")
