"""The paper's Table 1: ToMe and ToDo at ratios 0.75, 0.89 and 0.9375, against dense attention.

    python -m paper.table1                      # the built-in model; resumes where it stopped
    python -m paper.table1 --size 256 512 --count 2 --kept 0
    python -m paper.table1 --model FOLDER_OR_HUB_ID --steps 30 --prompts FILE
    python -m paper.table1 --quick              # under a minute, fewer of everything, no file

Rows: tomesd 0.1.3 (ToMe), the grid alone (ToDo), and the grid with anchors and log m (tokendown);
factors 2, 3, 4 of the finest level that has self-attention keep 1/4, 1/9 and 1/16 of its tokens.
First every ratio at the sizes asked for, with ``--count`` prompts; then each ratio at the size
where it leaves 4,096 tokens, as in the paper, with one prompt and few steps, for a large picture
takes minutes on a CPU (``--kept-count`` and ``--kept-steps`` ask for more). The row auto is the
preset of that name, where it differs from every other row. Distances are to the dense picture of
the same prompt, seed and steps; median (lowest to highest) over prompts and seeds. The
definition of the paper's own "HPF" is not known to us: ``tokendown.quality.hpf`` says what ours is.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from paper.pictures import PROMPTS
from paper.report import add_model, earlier, environment, exact, markdown, spread, write

from tokendown import generate as gen
from tokendown import quality, sheets
from tokendown._errors import NothingPatchedError
from tokendown.methods import Method, parse_method
from tokendown.models.loading import fingerprint
from tokendown.summary import Summary

LPIPS = Path(__file__).parent.parent / ".cache" / "metrics" / quality.LPIPS_FILE
KEPT = 4096
RATIOS = {2: "0.75", 3: "0.89", 4: "0.9375"}
COLUMNS = {
    "mse": ("MSE", "{:.2e}"),
    "psnr_db": ("PSNR, dB", "{:.1f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "ms_ssim": ("MS-SSIM", "{:.3f}"),
    "lpips": ("LPIPS", "{:.3f}"),
    "hpf": ("HPF", "{:.4f}"),
}


Cell = dict[str, Any]
"""One prompt and seed at one size: what was asked for, and the numbers of every method."""


@dataclass(frozen=True)
class Job:
    """A part of the table.

    Args:
        size: pixels, square.
        factors: of the finest level.
        count: of the prompts.
        steps: of a picture.
    """

    size: int
    factors: tuple[int, ...]
    count: int
    steps: int


def methods(factors: tuple[int, ...]) -> dict[Method, tuple[str, int]]:
    """Method to its name in the table and its factor."""
    found = {}
    for factor in factors:
        found[parse_method(f"tomesd={1 - 1 / factor**2:.4f},stride={factor}")] = ("ToMe", factor)
        found[parse_method(f"paper,factor={factor}")] = ("ToDo", factor)
        found[parse_method(f"factor={factor}")] = ("tokendown", factor)
    return found


AUTO = parse_method("auto")


def with_auto(
    pipe: Any, request: gen.Request, plans: dict[Method, Summary | None]
) -> tuple[dict[Method, Summary | None], int]:
    """The preset beside the plans, if none of them does the same, and its factor at the finest."""
    try:
        auto = sheets.plan(pipe, request, [AUTO])[AUTO]
    except NothingPatchedError:
        return plans, 1
    if auto is None or not auto.changes_anything:
        return plans, 1
    if any(plan is not None and plan.layers == auto.layers for plan in plans.values()):
        return plans, 1
    largest = max(auto.layers, key=lambda layer: layer.keys_before)
    return {**plans, AUTO: auto}, largest.factor


def finest(pipe: Any, request: gen.Request) -> tuple[int, int]:
    """(height, width) of the finest grid that has self-attention, at the request's size."""
    plan = sheets.plan(pipe, request, [parse_method("factor=2")])
    summary = plan[parse_method("factor=2")]
    return max((layer.grid for layer in summary.layers if layer.grid), key=math.prod)


def sizes_that_keep(pipe: Any, native: gen.Request, kept: int) -> list[tuple[int, int]]:
    """(pixels, factor) of square pictures for which a factor of RATIOS leaves ``kept`` tokens."""
    rows, _ = finest(pipe, native)
    side = native.height * math.isqrt(kept) / rows
    return [(round(side * factor), factor) for factor in RATIOS]


def measure(
    pipe: Any,
    native: gen.Request,
    job: Job,
    words: list[tuple[str, int]],
    lpips: Any,
    known: Sequence[Cell] = (),
) -> Iterator[Cell]:
    """The cells of a job that are not known yet, one after the other.

    Args:
        pipe: not patched.
        native: device, dtype and guidance.
        job: what to make.
        words: (prompt, seed) of each picture.
        lpips: to measure that as well, or None.
        known: cells of an earlier run.
    """
    table = methods(job.factors)
    for prompt, seed in words:
        asked = {**asdict(job), "factors": list(job.factors), "prompt": prompt, "seed": seed}
        del asked["count"]
        if any(asked == {name: cell[name] for name in asked} for cell in known):
            continue
        request = replace(
            native, prompt=prompt, seed=seed, width=job.size, height=job.size, steps=job.steps
        )
        plans = sheets.plan(pipe, request, list(table))
        plans, automatic = with_auto(pipe, request, plans)
        names = {**table, AUTO: ("auto", automatic)}
        [row] = sheets.make_rows(pipe, [request], list(plans), lpips=lpips)
        height, width = finest(pipe, request)
        numbers = []
        for method, picture in row.pictures.items():
            name, factor = names.get(method, ("dense", 1))
            kept = math.ceil(height / factor) * math.ceil(width / factor)
            numbers.append(
                {"method": name, "factor": factor, "kept_tokens": kept,
                 "seconds": round(picture.denoising_seconds, 2), **row.numbers[method]}
            )  # fmt: skip
        yield {**asked, "numbers": numbers}


def ratio(factor: int) -> str:
    """The share of tokens that goes, as the paper rounds it; nothing for a dense picture."""
    return RATIOS.get(factor, "" if factor == 1 else f"{1 - 1 / factor**2:.4f}")


def lines(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """One a size, number of steps, method and factor: median and extremes over its cells."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in cells:
        for each in cell["numbers"]:
            key = (cell["size"], cell["steps"], each["method"], each["factor"])
            groups.setdefault(key, []).append(each)
    found = []
    for (size, steps, method, factor), group in groups.items():
        line = {"size": size, "steps": steps, "method": method, "ratio": ratio(factor),
                "kept_tokens": group[0]["kept_tokens"], "pictures": len(group)}  # fmt: skip
        for name in COLUMNS:
            values = [each[name] for each in group]
            line[name] = None if None in values else spread(values)
        found.append(line)
    return found


def table(found: Sequence[dict[str, Any]]) -> str:
    """The lines as Markdown; numbers that none of them has are left out."""
    known = [c for c in COLUMNS if any(line[c] is not None for line in found)]
    body = []
    for line in found:
        dense = line["method"] == "dense"
        numbers = ["" if dense and c != "hpf" else _number(line[c], COLUMNS[c][1]) for c in known]
        body.append(
            [str(line["size"]), str(line["steps"]), str(line["pictures"]), line["method"],
             line["ratio"], f"{line['kept_tokens']:,}", *numbers]
        )  # fmt: skip
    head = ["size", "steps", "pictures", "method", "ratio", "tokens"]
    return markdown([*head, *(COLUMNS[c][0] for c in known)], body)


def _number(value: dict[str, Any] | None, form: str) -> str:
    if value is None:
        return ""
    middle, low, high = (form.format(value[name]) for name in ("median", "low", "high"))
    return middle if low == high else f"{middle} ({low} to {high})"


def settings(pipe: Any, a: argparse.Namespace, native: gen.Request) -> dict[str, Any]:
    """What all cells of a file have in common; under others the file is begun anew."""
    return {
        "model": a.model,
        "weights": fingerprint(pipe),
        "guidance": native.guidance,
        "dtype": native.dtype,
        "device": native.device,
        "environment": environment(native.device),
    }


def main() -> None:
    """Draws, measures, prints the table; writes it with its record after every cell."""
    a = _arguments()
    prompts = a.prompts.read_text().split("\n") if a.prompts else list(PROMPTS)
    prompts = [prompt for prompt in prompts if prompt]
    exact()
    pipe, native = gen.open_pipeline(
        gen.Request(model=a.model, steps=a.steps, config=None, device=a.device, dtype="float32")
    )
    lpips = quality.load_lpips(LPIPS) if LPIPS.exists() else None
    if lpips is not None and native.device.startswith("cuda"):
        lpips = lpips.to(native.device)
    shared = settings(pipe, a, native)
    cells: list[Cell] = [] if a.quick else earlier(a.json, shared).get("cells", [])
    jobs = [Job(size, tuple(RATIOS), a.count, native.steps) for size in a.size or [native.height]]
    if a.kept:
        for size, factor in sizes_that_keep(pipe, native, a.kept):
            jobs.append(Job(size, (factor,), a.kept_count, a.kept_steps))
    for job in jobs:
        words = [(p, seed) for p in prompts[: job.count] for seed in range(a.seeds)]
        for cell in measure(pipe, native, job, words, lpips, cells):
            cells.append(cell)
            seconds = sum(each["seconds"] for each in cell["numbers"])
            print(f"{job.size} pixels, {cell['prompt']!r}, seed {cell['seed']}: {seconds:.0f} s",
                  flush=True)  # fmt: skip
            if not a.quick:
                record = {**shared, "cells": cells}
                write(a.json, {**record, "lines": lines(cells)}, about(record))
    print(about({**shared, "cells": cells}))


def about(record: dict[str, Any]) -> str:
    """Where the numbers come from, and the table."""
    made = record["environment"]
    text = (
        f"Model: {record['model']}. Guidance {record['guidance']}; distances to the dense "
        "picture of the same steps, median (lowest to highest picture). "
        f"{record['dtype']} on {record['device']}, {made.get('device', made['cpu'])}, "
        f"torch {made['torch']}, commit {str(made['commit'])[:12]}."
    )
    return f"{text}\n\n{table(lines(record['cells']))}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs="+", help="pixels; every ratio at each")
    parser.add_argument("--count", type=int, default=4, help="of the prompts there")
    parser.add_argument("--steps", type=int, help="there; default: the model's own")
    parser.add_argument("--seeds", type=int, default=1, help="pictures a prompt")
    parser.add_argument("--kept", type=int, default=KEPT, help="tokens left at larger sizes; 0: no")
    parser.add_argument("--kept-count", type=int, default=1, help="of the prompts there")
    parser.add_argument("--kept-steps", type=int, default=4, help="of a picture there")
    parser.add_argument("--prompts", type=Path, help="a file, one a line")
    parser.add_argument("--json", type=Path, help="default: table1.json in the folder --out")
    add_model(parser)
    parser.add_argument("--quick", action="store_true", help="a trial of the script; no file")
    a = parser.parse_args()
    a.json = a.json or a.out / "table1.json"
    if a.quick:
        a.size, a.steps, a.count, a.seeds, a.kept = [192], 1, 1, 1, 0
    return a


if __name__ == "__main__":
    main()
