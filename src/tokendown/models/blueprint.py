"""An architecture without weights, from its configuration files."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from .._errors import LoadError
from ..adapters.skeleton import build_on_meta
from ..scales import CODERS, PACKED, scales_of_vae
from . import builtin
from .sources import first_line, kind_of, need_diffusers


def load_skeleton(model: str = builtin.NAME) -> tuple[Any, int | None]:
    """A denoiser on the meta device, from its configuration alone.

    Args:
        model: "built-in", a Hub id, a pipeline folder with at least ``unet/config.json`` or
            ``transformer/config.json``, or the folder of a denoiser.

    Returns:
        The denoiser, and pixels a latent pixel per side: 1 for a pipeline without a VAE, None where
        nothing tells.

    Raises:
        LoadError: no such configuration.
    """
    need_diffusers()
    source = builtin.source_of(model)
    kind = kind_of(source)
    if kind == "file":
        raise LoadError(f"{model} is a single file; give the folder or Hub id it was made from")
    for name in ("unet", "transformer", None):
        settings = _config(source, kind, name)
        if settings is not None:
            scale = _spatial_scale(source, kind) if name else None
            packed = PACKED.get(str(settings.get("_class_name")), 1)
            return _on_meta(settings, model), scale and scale * packed
    where = "unet/config.json or transformer/config.json"
    raise LoadError(f"no {where} in {model}")


def frame_scale(model: str) -> int | None:
    """Frames a latent frame, as the VAE of a pipeline says; None where it says nothing.

    Args:
        model: as for :func:`load_skeleton`.
    """
    source = builtin.source_of(model)
    return _vae_scales(_config(source, kind_of(source), "vae"))[1]


def _spatial_scale(source: str, kind: str) -> int | None:
    for name in CODERS:
        settings = _config(source, kind, name)
        if settings is not None:
            return _vae_scales(settings)[0]
    index = _read(source, kind, "model_index.json")
    return 1 if index and not set(CODERS) & set(index) else None


def _config(source: str, kind: str, part: str | None) -> dict[str, Any] | None:
    """``config.json`` of one part, or None where there is none."""
    return _read(source, kind, f"{part}/config.json" if part else "config.json")


def _read(source: str, kind: str, name: str) -> dict[str, Any] | None:
    """A file of a folder or of the Hub, or None where there is none."""
    path = _from_hub(source, name) if kind == "hub" else Path(source).expanduser() / name
    if path is None or not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoadError(f"{path}: {first_line(error)}") from error
    return found if isinstance(found, dict) else {}


def _from_hub(repository: str, name: str) -> Path | None:
    """A downloaded or cached file, or None where the repository has none of that name."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, name))
    except Exception as error:  # without a network in many ways
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise LoadError(
            f"{repository}: no such folder here, and the Hub did not give its {name} "
            f"({type(error).__name__}; offline, misspelt, or gated)"
        ) from error


def _on_meta(settings: dict[str, Any], model: str) -> Any:
    import diffusers

    kind: Any = getattr(diffusers, str(settings.get("_class_name")), None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)):
        raise LoadError(f"{model}: diffusers has no model class {settings.get('_class_name')}")
    try:
        return build_on_meta(kind, settings)
    except Exception as error:  # a third party's configuration can be wrong in any way
        raise LoadError(f"cannot build {kind.__name__} of {model}: {first_line(error)}") from error


def _vae_scales(settings: dict[str, Any] | None) -> tuple[int | None, int | None]:
    """Pixels and frames a latent pixel and frame; a file may leave out what is a default."""
    import diffusers

    if settings is None:
        return None, None
    kind: Any = getattr(diffusers, str(settings.get("_class_name")), None)
    defaults = inspect.signature(kind).parameters if isinstance(kind, type) else {}
    known = {name: each.default for name, each in defaults.items()}
    return scales_of_vae({**known, **settings})
