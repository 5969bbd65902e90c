"""Methods against ``paper``, picture by picture, over records of ``tokendown compare``.

    python -m paper.pairs paper/results/compare-512-20.json paper/results/compare-512-20-more.json

Methods that are in all of the records count. The mean of the differences comes with its standard
error, as pictures differ far more from each other than methods do.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from paper.report import markdown

BASE = "paper"
HEAD = ("method", "FLOPs", "better on", "mean difference, dB (standard error)", "MSE, median",
        "MSE, mean")  # fmt: skip


def table(records: list[dict[str, Any]]) -> str:
    """A line a method; the first is what the others are compared with."""
    rows = [row["methods"] for record in records for row in record["rows"]]
    speedups = {method["name"]: method["predicted_speedup"] for method in records[0]["methods"]}
    names = [name for name in rows[-1] if all(name in row for row in rows) and name != "dense"]
    lines = []
    for name in sorted(names, key=lambda name: name != BASE):
        errors = [row[name]["mse"] for row in rows]
        gains = [row[name]["psnr_db"] - row[BASE]["psnr_db"] for row in rows]
        better = sum(gain > 0 for gain in gains)
        spread = statistics.stdev(gains) / len(gains) ** 0.5
        pair = (f"{better} of {len(rows)}", f"{statistics.mean(gains):.1f} ({spread:.1f})")
        lines.append((
            name, f"{speedups[name]:.2f}", *(pair if name != BASE else ("", "")),
            f"{statistics.median(errors):.1e}", f"{statistics.mean(errors):.1e}",
        ))  # fmt: skip
    return markdown(HEAD, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("records", nargs="+", type=Path, help="JSON of tokendown compare")
    found = parser.parse_args().records
    print(table([json.loads(path.read_text(encoding="utf-8")) for path in found]))


if __name__ == "__main__":
    main()
