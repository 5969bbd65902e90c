"""Pictures that go into a pipeline: read once more for every use, and known by their content."""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from ._errors import LoadError


def sha256_of(path: str) -> str:
    """Of a file's bytes, 64 hex digits.

    Raises:
        LoadError: no such file.
    """
    return hashlib.sha256(_read(path)).hexdigest()


def open_original(path: str, sha256: str | None, mode: str = "RGB") -> Image.Image:
    """The picture, upright, in a mode of Pillow.

    Args:
        path: of the file.
        sha256: that it must have; None takes any.
        mode: "RGB", or "L" for a mask.

    Raises:
        LoadError: no such file, not a picture, or not the file it was.
    """
    content = _read(path)
    found = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, found):
        option = "--mask" if mode == "L" else "--image"
        raise LoadError(
            f"{path} is not the file that was used: its sha256 begins with {found[:12]}, expected "
            f"{str(sha256)[:12]}; put the file back, or name one with {option}"
        )
    try:
        with Image.open(BytesIO(content)) as image:
            return ImageOps.exif_transpose(image).convert(mode)
    except (
        UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError
    ) as error:  # fmt: skip
        raise LoadError(f"{path}: not a readable picture") from error


def _read(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except FileNotFoundError as error:
        raise LoadError(f"{path}: no such file") from error
    except OSError as error:
        raise LoadError(f"{path}: {error.strerror or error}") from error
    except RuntimeError as error:  # of ~nobody
        raise LoadError(f"{path}: {error}") from error
