"""Draws docs/figures/selection.png: which tokens stay as keys, and how much each one counts.

python docs/figures/selection.py
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tokendown import Grid
from tokendown.select import kept_tokens

ROWS, COLUMNS, FACTOR = 7, 10, 2
ANCHORS = [(1, 5), (3, 8), (4, 3)]
CELL, GAP, TOP, SCALE = 34, 70, 46, 2
INK, FADED, GRID, ANCHOR = "#22303c", "#e6eaee", "#3b7dd8", "#e07b39"


def main() -> None:
    """Three panels: dense, grid, grid and anchors."""
    width = 3 * COLUMNS * CELL + 2 * GAP + 40
    height = ROWS * CELL + TOP + 66
    picture = Image.new("RGB", (width * SCALE, height * SCALE), "white")
    draw = ImageDraw.Draw(picture)
    grid = Grid(ROWS, COLUMNS)
    anchored = kept_tokens(grid, FACTOR, len(ANCHORS))
    panels = [
        ("dense", f"{grid.tokens} keys, each counts 1", 1, []),
        ("ToDo: a grid", f"{grid.coarse(FACTOR).tokens} keys, all count the same", FACTOR, []),
        ("tokendown: grid + anchors", f"{anchored} keys, counting 4 and 1", FACTOR, ANCHORS),
    ]
    for index, (title, caption, factor, anchors) in enumerate(panels):
        left = 20 + index * (COLUMNS * CELL + GAP)
        _text(draw, left, 10, title, 20)
        _panel(draw, left, factor, anchors)
        _text(draw, left, TOP + ROWS * CELL + 14, caption, 17)
    picture.save(Path(__file__).with_suffix(".png"), optimize=True)


def _panel(
    draw: ImageDraw.ImageDraw, left: int, factor: int, anchors: list[tuple[int, int]]
) -> None:
    for row in range(ROWS):
        for column in range(COLUMNS):
            on_grid = row % factor == 0 and column % factor == 0
            anchor = (row, column) in anchors
            x, y = left + column * CELL, TOP + row * CELL
            box = [SCALE * v for v in (x + 2, y + 2, x + CELL - 2, y + CELL - 2)]
            draw.rounded_rectangle(box, 8, fill=GRID if on_grid else ANCHOR if anchor else FADED)
            if anchors and (on_grid or anchor):
                _text(draw, x + 12, y + 6, "1" if anchor else "4", 17, "white")


def _text(draw: ImageDraw.ImageDraw, x: int, y: int, text: str, size: int, fill: str = INK) -> None:
    font = ImageFont.load_default(size * SCALE)
    draw.text((x * SCALE, y * SCALE), text, fill=fill, font=font)


if __name__ == "__main__":
    main()
