"""Renders result files as the Markdown tables that the pages show.

    python benchmarks/table.py            # rewrites the tables under the marks in PAGES

A mark is a line such as ``<!-- table benchmarks/results/cpu.jsonl sd15 2048x2048 -->``; the table
follows it, up to the next empty line. What the words do depends on the file:

* ``.jsonl``, cells of ``tokendown bench``: they choose the one group of cells that has them all,
  its target, size, dtype, compilation and so on.
* ``.md``, a table of ``paper/``: quoted, they choose rows by what the first column begins with.
* ``.json``: a sheet of ``tokendown compare``, a plan of ``tokendown tune`` against its rivals, or a
  record of the script that was there before ``tokendown bench``; one table, no words.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from tokendown.bench.cells import read_cells
from tokendown.bench.report import markdown_table, summarise

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "paper/README.md",
    "docs/benchmarks.md",
    "docs/how-it-works.md",
    "docs/quality.md",
)
MARK = re.compile(r"(<!-- table (\S+)(.*) -->\n)(?:.+\n)*")


def table(match: re.Match[str]) -> str:
    """The mark and what belongs under it."""
    mark, name, words = match.groups()
    path = ROOT / name
    if path.suffix == ".md":
        return mark + rows_of(path.read_text(), shlex.split(words))
    if path.suffix == ".json":
        return mark + render(json.loads(path.read_text()))
    groups = [g for g in summarise(read_cells(path)) if set(words.split()) <= words_of(g.key)]
    if len(groups) != 1:
        raise SystemExit(f"{name}{words}: {len(groups)} groups of cells; a table needs one")
    return mark + markdown_table(groups[0])


def rows_of(text: str, beginnings: list[str]) -> str:
    """The table of a page, or some of its rows."""
    head, rule, *rows = [line for line in text.splitlines() if line.startswith("|")]
    if beginnings:
        rows = [row for start in beginnings for row in rows if row.startswith(f"| {start}")]
        if len(rows) != len(beginnings):
            raise SystemExit(f"{beginnings} choose {len(rows)} rows")
    return "\n".join([head, rule, *rows]) + "\n"


def render(record: dict[str, Any]) -> str:
    """The table of a JSON file, by what it is a record of."""
    if "tuning" in record:
        return render_tuning(record)
    return render_sheet(record) if record.get("kind") == "methods" else render_record(record)


def render_sheet(record: dict[str, Any]) -> str:
    """What each method gains, and how far its pictures are from the dense ones on average."""
    lines = [
        "| method | speed-up, FLOPs | MSE | PSNR, dB | SSIM | LPIPS |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method in record["methods"]:
        means, speedup = method["means"], method["predicted_speedup"]
        if method["name"] != "dense":
            lines.append(
                f"| {method['name']} | {'' if speedup is None else format(speedup, '.2f')} | "
                f"{means['mse']:.1e} | {means['psnr_db']:.1f} | {means['ssim']:.3f} | "
                f"{means['lpips']:.4f} |"
            )
    return "\n".join(lines) + "\n"


def render_tuning(record: dict[str, Any]) -> str:
    """What each method gains and costs on held-out prompts."""
    lines = ["| method | speed-up, FLOPs | error | PSNR, dB |", "| --- | --- | --- | --- |"]
    for entry in record["entries"]:
        if entry["name"] != "dense":
            speedup, error, psnr = entry["speedup"], entry["error"], entry["psnr_db"]
            lines.append(f"| {entry['name']} | {speedup:.2f} | {error:.2g} | {psnr:.1f} |")
    return "\n".join(lines) + "\n"


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
    for name in PAGES:
        page = ROOT / name
        page.write_text(fill(page.read_text()))
