"""One JSON line a measured cell, written as it is measured: an interruption loses nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .._errors import BenchError, ConfigError
from .methods import DENSE

SCHEMA = 1
# What tells groups of comparable cells apart; method and round tell the cells of a group apart.
GROUP = (
    "target", "what", "width", "height", "batch", "steps", "dtype", "device", "hardware",
    "threads", "compile", "backend", "blocks",
)  # fmt: skip
MEASURED, SKIPPED, NO_MEMORY, FAILED = "measured", "skipped", "out of memory", "failed"
_FIELDS = {*GROUP, "schema", "method", "round", "outcome", "seconds", "flops"}


class CellFile:
    """The cells of a benchmark, in memory and on the disk.

    Args:
        path: of the file; its folder is made.
        resume: go on with the cells that are in it; otherwise it must not exist.

    Raises:
        ConfigError: it exists and was not to be resumed.
        BenchError: it is something else, or cannot be written.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        if path.exists() and not resume:
            raise ConfigError(f"{path} exists; go on with --resume {path}, or name another --out")
        self.cells = read_cells(path) if path.exists() else []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BenchError(f"cannot write {path}: {error.strerror}") from error

    def append(self, cell: dict[str, Any]) -> None:
        """Adds a cell, on the disk first."""
        try:
            _drop_half_line(self.path)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(cell, allow_nan=False) + "\n")
        except OSError as error:
            raise BenchError(f"cannot write {self.path}: {error.strerror}") from error
        self.cells.append(cell)

    def group(self, key: dict[str, Any]) -> list[dict[str, Any]]:
        """The cells of one group."""
        return [cell for cell in self.cells if all(cell[name] == key[name] for name in GROUP)]

    def needs(self, key: dict[str, Any], method: str, round_: int) -> bool:
        """Whether a cell is still to be measured; one that failed is tried again.

        A cell without dense beside it, of its run and round, has nothing to be compared with.
        """
        group = self.group(key)
        own = [cell for cell in group if cell["method"] == method]
        if any(cell["outcome"] in (SKIPPED, NO_MEMORY) for cell in own):  # and so in every round
            return False
        turns = {turn(cell) for cell in own if cell["outcome"] == MEASURED}
        if not self.without_dense(key):
            turns &= set(dense_of(group))
        return all(number != round_ for _, number in turns)

    def without_dense(self, key: dict[str, Any]) -> bool:
        """Whether dense does not fit into memory, so that nothing can be compared with it."""
        outcomes = [cell["outcome"] for cell in self.group(key) if cell["method"] == DENSE]
        return NO_MEMORY in outcomes


def turn(cell: dict[str, Any]) -> tuple[str | None, int]:
    """Run and round: what shares both was measured side by side, and ratios mean something."""
    return cell.get("run"), cell["round"]


def dense_of(cells: list[dict[str, Any]]) -> dict[tuple[str | None, int], dict[str, Any]]:
    """The measured dense cells, by run and round."""
    return {turn(c): c for c in cells if c["method"] == DENSE and c["outcome"] == MEASURED}


def read_cells(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a file; a last one that was cut off is left out.

    Raises:
        BenchError: no such file, or a line is no cell.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"{path}: not a readable file of benchmark cells") from error
    cells = []
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if not line.strip() or (not line.endswith("\n") and _begins_a_cell(line)):
            continue
        try:
            cell = json.loads(line)
        except ValueError:
            cell = None
        if not isinstance(cell, dict) or cell.get("schema") != SCHEMA or _FIELDS - set(cell):
            raise BenchError(
                f"{path}, line {number}: not a cell of tokendown bench (schema {SCHEMA}); "
                "name another file"
            )
        cells.append(cell)
    return cells


def _begins_a_cell(line: str) -> bool:
    """Whether a line may be the part of a cell that was written before an interruption."""
    start = json.dumps({"schema": SCHEMA})[:-1]
    return line.startswith(start) or start.startswith(line)


def _drop_half_line(path: Path) -> None:
    """So that what is appended begins on a line of its own."""
    if not path.exists():
        return
    whole = path.read_bytes()
    kept = whole[: whole.rfind(b"\n") + 1]
    if kept != whole:
        path.write_bytes(kept)
