"""Renders result files as the Markdown tables that README.md shows.

    python benchmarks/table.py            # rewrites the tables between the marks in README.md

A mark is a line such as ``<!-- table benchmarks/results/cpu.jsonl sd15 2048x2048 -->``; the table
follows it, up to the next empty line. The words choose the one group of cells that has them all:
its target, size, dtype, compilation and so on. A .json file is a record of the script that was
there before ``tokendown bench``, and is one table.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tokendown.bench.cells import read_cells
from tokendown.bench.report import markdown_table, summarise

ROOT = Path(__file__).resolve().parent.parent
MARK = re.compile(r"(<!-- table (\S+)(.*) -->\n)(?:.+\n)*")


def table(match: re.Match[str]) -> str:
    """The mark and what belongs under it."""
    mark, name, words = match.groups()
    path = ROOT / name
    if path.suffix == ".json":
        return mark + render_record(json.loads(path.read_text()))
    groups = [g for g in summarise(read_cells(path)) if set(words.split()) <= words_of(g.key)]
    if len(groups) != 1:
        raise SystemExit(f"{name}{words}: {len(groups)} groups of cells; a table needs one")
    return mark + markdown_table(groups[0])


def words_of(key: dict[str, Any]) -> set[str]:
    """What a mark may say of a group."""
    return {str(value) for value in key.values()} | {f"{key['width']}x{key['height']}"}


def render_record(record: dict[str, Any]) -> str:
    """One row a method."""
    lines = [
        "| method | median, s | speed-up (range) | predicted by FLOPs | peak GiB |",
        "|---|---|---|---|---|",
    ]
    for name, row in record["methods"].items():
        low, high = row["speedup_range"]
        flops = row["predicted_flop_ratio"]
        lines.append(
            f"| {name} | {row['median_s']:.1f} | {row['speedup']:.2f} ({low:.2f} to {high:.2f}) | "
            f"{'' if flops is None else format(flops, '.2f')} | {row['peak_gib']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def fill(page: str) -> str:
    """The page with every table made anew from its file."""
    return MARK.sub(table, page)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(fill(readme.read_text()))
