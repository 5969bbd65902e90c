"""Files that carry their settings, and JSON files beside them, whole or not at all."""

from __future__ import annotations

import itertools
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from . import videos
from ._errors import LoadError, RunError

CHUNK = "tokendown"


# Files


def check_folder(folder: Path) -> None:
    """Fails early where pictures could not be saved later.

    Raises:
        RunError: ``folder`` is a file, or may not be written to.
    """
    nearest = folder
    try:
        while not nearest.exists() and nearest != nearest.parent:
            nearest = nearest.parent
    except (OSError, ValueError) as error:  # a name that is too long
        raise RunError(f"cannot write to {str(folder)[:80]}: {error}") from error
    if not nearest.is_dir():
        raise RunError(f"cannot write to {folder}: {nearest} is a file")
    if not os.access(nearest, os.W_OK):
        raise RunError(f"cannot write to {folder}: no permission in {nearest}")


def stem_for(prompt: str, seed: int) -> str:
    """A file name for a picture: letters, digits and hyphens only, so it cannot leave a folder."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-")
    return f"{words or 'picture'}-{seed}"


def save(
    folder: Path,
    stem: str,
    parts: Mapping[str, tuple[Image.Image | Sequence[Image.Image], Mapping[str, Any]]],
    record: Mapping[str, Any] | None = None,
    *,
    fps: float | None = None,
    kind: str = "png",
) -> list[Path]:
    """Writes files side by side: all of them, whole, under new names, or none.

    Args:
        folder: made if it is not there.
        stem: of the names; a number is added where a name is taken.
        parts: suffix of the name to picture, or frames of a film, and settings, which must be JSON
            types.
        record: JSON types for a file ``stem.json`` among them, or None.
        fps: frames a second of films.
        kind: of films, "png" or "mp4".

    Returns:
        The files, in the order of ``parts``, the record last.

    Raises:
        RunError: the disk is full, the folder cannot be written, ...
    """
    contents = {
        f"{suffix}.{kind}": _encode([picture] if isinstance(picture, Image.Image) else picture,
                                    settings, fps, kind)
        for suffix, (picture, settings) in parts.items()
    }  # fmt: skip
    if record is not None:
        contents[".json"] = (json.dumps(record, indent=2, allow_nan=False) + "\n").encode()
    drafts: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for content in contents.values():
            handle, draft = tempfile.mkstemp(dir=folder, prefix=".tokendown-", suffix=".tmp")
            drafts.append(draft)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
        return _publish(folder, stem, dict(zip(contents, drafts, strict=True)))
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"cannot write to {folder}: {reason}; nothing was saved") from error
    finally:
        for draft in drafts:
            Path(draft).unlink(missing_ok=True)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that :func:`save` put into a file.

    Raises:
        LoadError: no such file, not a picture, or not one of tokendown's.
    """
    try:
        if path.suffix.lower() == ".mp4":
            text = videos.mp4_settings(path)
        else:
            with Image.open(path) as image:
                text = image.info.get(CHUNK)
    except FileNotFoundError as error:
        raise LoadError(f"{path}: no such file") from error
    except (
        UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError
    ) as error:  # fmt: skip
        raise LoadError(f"{path}: not a readable picture") from error
    if not isinstance(text, str):
        raise LoadError(f"{path}: no settings of tokendown in this picture")
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{path}: its settings are damaged") from error
    if not isinstance(settings, dict):
        raise LoadError(f"{path}: its settings are damaged")
    return settings


def as_tensor(image: Image.Image) -> Tensor:
    """[1, 3, H, W] in [0, 1], float64."""
    pixels = torch.from_numpy(numpy.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1)[None].double() / 255.0


def _encode(
    frames: Sequence[Image.Image], settings: Mapping[str, Any], fps: float | None, kind: str
) -> bytes:
    text = json.dumps(settings)
    if kind == "mp4":
        return videos.mp4(frames, fps or 1, text)
    info = PngInfo()
    info.add_text(CHUNK, text)
    return videos.animated_png(frames, fps or 1, info)


def _publish(folder: Path, stem: str, drafts: Mapping[str, str]) -> list[Path]:
    """Gives finished files their names; never takes a name that exists."""
    for number in itertools.count(1):
        tail = "" if number == 1 else f"-{number}"
        names = {folder / f"{stem}{tail}{suffix}": draft for suffix, draft in drafts.items()}
        if any(name.exists() for name in names):
            continue
        done: list[Path] = []
        try:
            for name, draft in names.items():
                _rename(draft, name)
                done.append(name)
        except BaseException as error:
            for name in done:
                _take_back(name, names[name])
            if not isinstance(error, FileExistsError):  # else it was taken meanwhile
                raise
        else:
            return done
    raise AssertionError("there is always one more number")


def _rename(draft: str, name: Path) -> None:
    if name.exists():
        raise FileExistsError(name)
    os.chmod(draft, 0o666 & ~_umask())  # temporary files are private
    try:
        os.link(draft, name)  # unlike a rename, it fails if the name was taken meanwhile
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        os.replace(draft, name)


def _take_back(name: Path, draft: str) -> None:
    if Path(draft).exists():  # linked: a rename of one to the other would do nothing
        name.unlink()
    else:
        os.replace(name, draft)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
