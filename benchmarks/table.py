"""Renders result files of unet_step.py as the Markdown tables that README.md shows.

    python benchmarks/table.py            # rewrites the tables between the marks in README.md

A mark is a line ``<!-- table benchmarks/results/NAME.json -->``; the table follows it, up to the
next empty line.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MARK = re.compile(r"(<!-- table (\S+) -->\n)(?:.+\n)*")


def render(record: dict[str, Any]) -> str:
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
    return MARK.sub(lambda m: m[1] + render(json.loads((ROOT / m[2]).read_text())), page)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(fill(readme.read_text()))
