"""Pictures with text: a caption, two side by side, or a contact sheet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_INK, _PAPER = (235, 235, 235), (24, 24, 27)
_GAP = 8  # pixels between two pictures
_LEAST_WIDTH = 176  # pixels that text under a picture needs


@dataclass(frozen=True)
class Cell:
    """One picture of a contact sheet, the line over it and the lines under it."""

    image: Image.Image
    head: str
    foot: list[str]


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
    pair = _beside(columns, bottom=True)  # pictures end on one line, however long the captions are
    return _stack([pair, _strip(pair.width, foot)])


def contact_sheet(
    rows: list[tuple[str, list[Cell]]], foot: list[str], limit: int = 384
) -> Image.Image:
    """Rows of pictures, each row under a line of its own.

    Args:
        rows: the line, and the cells from left to right.
        foot: lines under all of it.
        limit: most pixels of a picture's longer side; larger ones are shown smaller.
    """
    parts = []
    for title, cells in rows:
        images = [_fit(cell.image, limit) for cell in cells]
        width = max(_LEAST_WIDTH, *(image.width for image in images))
        row = [
            _beside([_strip(width, [cell.head]) for cell in cells], bottom=True),
            _beside([_widen(image, width) for image in images]),
            _beside([_strip(width, cell.foot) for cell in cells]),
        ]
        parts += [_strip(row[0].width, [title]), *row]
    sheet = _stack(parts)
    return _stack([sheet, _strip(sheet.width, foot)])


def _fit(image: Image.Image, limit: int) -> Image.Image:
    scale = limit / max(image.size)
    if scale >= 1:
        return image.convert("RGB")
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _widen(image: Image.Image, width: int) -> Image.Image:
    canvas = Image.new("RGB", (width, image.height), _PAPER)
    canvas.paste(image, ((width - image.width) // 2, 0))
    return canvas


def _beside(columns: list[Image.Image], bottom: bool = False) -> Image.Image:
    """From left to right, with their tops or their bottoms on one line."""
    height = max(column.height for column in columns)
    width = sum(column.width + _GAP for column in columns) - _GAP
    row = Image.new("RGB", (width, height), _PAPER)
    x = 0
    for column in columns:
        row.paste(column, (x, height - column.height if bottom else 0))
        x += column.width + _GAP
    return row


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
