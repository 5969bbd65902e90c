"""Files that carry their settings, written whole or not at all; captions and side by side."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from . import videos
from ._errors import GenerateError, LoadError

CHUNK = "tokendown"

_INK, _PAPER = (235, 235, 235), (24, 24, 27)
_GAP = 8  # pixels between two pictures


# Files


def check_folder(folder: Path) -> None:
    """Fails early where pictures could not be saved later.

    Raises:
        GenerateError: ``folder`` is a file, or may not be written to.
    """
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise GenerateError(f"cannot write to {folder}: {nearest} is a file")
    if not os.access(nearest, os.W_OK):
        raise GenerateError(f"cannot write to {folder}: no permission in {nearest}")


def stem_for(prompt: str, seed: int) -> str:
    """A file name for a picture: letters, digits and hyphens only, so it cannot leave a folder."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-")
    return f"{words or 'picture'}-{seed}"


def save(
    folder: Path,
    stem: str,
    parts: Mapping[str, tuple[Image.Image | Sequence[Image.Image], Mapping[str, Any]]],
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
        fps: frames a second of films.
        kind: of films, "png" or "mp4".

    Returns:
        The files, in the order of ``parts``.

    Raises:
        GenerateError: the disk is full, the folder cannot be written, ...
    """
    contents = {
        f"{suffix}.{kind}": _encode([picture] if isinstance(picture, Image.Image) else picture,
                                    settings, fps, kind)
        for suffix, (picture, settings) in parts.items()
    }  # fmt: skip
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
        raise GenerateError(f"cannot write to {folder}: {reason}; nothing was saved") from error
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
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise LoadError(f"{path}: not a readable picture") from error
    if not isinstance(text, str):
        raise LoadError(f"{path}: no settings of tokendown in this picture")
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise LoadError(f"{path}: its settings are damaged") from error
    if not isinstance(settings, dict):
        raise LoadError(f"{path}: its settings are damaged")
    return settings


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
    number = 1
    while True:
        tail = "" if number == 1 else f"-{number}"
        names = [folder / f"{stem}{tail}{suffix}" for suffix in drafts]
        done: list[Path] = []
        try:
            for draft, name in zip(drafts.values(), names, strict=True):
                _rename(draft, name)
                done.append(name)
            return names
        except BaseException as error:
            for name in done:
                name.unlink(missing_ok=True)
            if not isinstance(error, FileExistsError) or done:
                raise
            number += 1


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# Captions


def with_strip(image: Image.Image, text: str) -> Image.Image:
    """The picture with a strip of text under it."""
    return _stack([image.convert("RGB"), _strip(image.width, [text])])


def side_by_side(
    left: tuple[Image.Image, str], right: tuple[Image.Image, str], foot: list[str]
) -> Image.Image:
    """Two pictures of one size, each under its caption, and lines of text below.

    Args:
        left: picture and caption.
        right: likewise.
        foot: lines; a long one is wrapped.
    """
    columns = [
        _stack([_strip(image.width, [text]), image.convert("RGB")]) for image, text in (left, right)
    ]
    height = max(column.height for column in columns)
    pair = Image.new("RGB", (sum(c.width for c in columns) + _GAP, height), _PAPER)
    x = 0
    for column in columns:  # pictures end on one line, however long the captions are
        pair.paste(column, (x, height - column.height))
        x += column.width + _GAP
    return _stack([pair, _strip(pair.width, foot)])


def _stack(rows: list[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), _PAPER)
    y = 0
    for row in rows:
        sheet.paste(row, (0, y))
        y += row.height
    return sheet


def _strip(width: int, lines: list[str]) -> Image.Image:
    size = max(12, min(20, width // 26))
    font = ImageFont.load_default(size)
    margin, pitch = size // 2, round(size * 1.4)
    wrapped = [part for line in lines for part in _wrap(line, font, width - 2 * margin)]
    strip = Image.new("RGB", (width, margin * 2 + pitch * len(wrapped)), _PAPER)
    draw = ImageDraw.Draw(strip)
    for index, line in enumerate(wrapped):
        draw.text((margin, margin + index * pitch), line, font=font, fill=_INK)
    return strip


def _wrap(line: str, font: Any, width: int) -> list[str]:
    """Words to lines that fit; the default font has Latin letters only."""
    rows, row = [], ""
    for word in line.encode("latin-1", "replace").decode("latin-1").split():
        longer = f"{row} {word}".strip()
        if row and font.getlength(longer) > width:
            rows.append(row)
            longer = word
        row = longer
    return [*rows, row]
