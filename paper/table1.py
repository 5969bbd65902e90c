"""The paper's Table 1: ToMe and ToDo at ratios 0.75, 0.89 and 0.9375, against dense attention.

    python -m paper.table1                      # the built-in model, 4,096 kept tokens
    python -m paper.table1 --size 256 512 1024  # every ratio at these sizes
    python -m paper.table1 --model FOLDER_OR_HUB_ID --steps 30 --prompts FILE
    python -m paper.table1 --quick              # under a minute, fewer of everything, no file

Rows: tomesd 0.1.3 (ToMe), the grid alone (ToDo), and the grid with anchors and log m (tokendown);
factors 2, 3, 4 of the finest level that has self-attention keep 1/4, 1/9 and 1/16 of its tokens.
Distances are to the dense picture of the same prompt and seed. The definition of the paper's own
"HPF" is not known to us: ``tokendown.quality.hpf`` says what ours is.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from paper.report import RESULTS, environment, markdown, write

from tokendown import generate as gen
from tokendown import quality, sheets
from tokendown.methods import DENSE, Method, parse_method
from tokendown.models import builtin

LPIPS = Path(__file__).parent.parent / ".cache" / "metrics" / quality.LPIPS_FILE
KEPT = 4096
RATIOS = {2: "0.75", 3: "0.89", 4: "0.9375"}
PROMPTS = (
    "red apple on a blue background",
    "dog face on a green background",
    "pizza on a white background",
    "rocket on a purple background",
    "sunflower on a teal background",
    "red heart on a yellow background",
    "hamburger on a black background",
    "airplane on a pink background",
)
COLUMNS = {
    "mse": ("MSE", "{:.2e}"),
    "psnr_db": ("PSNR, dB", "{:.1f}"),
    "ssim": ("SSIM", "{:.3f}"),
    "ms_ssim": ("MS-SSIM", "{:.3f}"),
    "lpips": ("LPIPS", "{:.3f}"),
    "hpf": ("HPF", "{:.4f}"),
}


def methods(factors: list[int]) -> dict[Method, tuple[str, int]]:
    """Method to its name in the table and its factor."""
    found = {}
    for factor in factors:
        found[parse_method(f"tomesd={1 - 1 / factor**2:.4f},stride={factor}")] = ("ToMe", factor)
        found[parse_method(f"factor={factor},anchors=0")] = ("ToDo", factor)
        found[parse_method(f"factor={factor}")] = ("tokendown", factor)
    return found


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


def at_size(pipe: Any, requests: list[gen.Request], factors: list[int], lpips: Any) -> dict:
    """Every method with these factors on every request."""
    table = methods(factors)
    plans = sheets.plan(pipe, requests[0], list(table))
    rows = []
    for row in sheets.make_rows(pipe, requests, list(plans), lpips=lpips):
        rows.append(row)
        print(f"{row.request.width} pixels, {row.request.prompt!r}, seed {row.request.seed}: "
              f"{sum(p.seconds for p in row.pictures.values()):.0f} s", flush=True)  # fmt: skip
    height, width = finest(pipe, requests[0])
    lines = [
        {"method": name, "factor": factor, "ratio": RATIOS[factor], "size": requests[0].width,
         "kept_tokens": math.ceil(height / factor) * math.ceil(width / factor),
         **sheets.means(rows, method)}
        for method, (name, factor) in table.items()
    ]  # fmt: skip
    dense = {"method": "dense", "size": requests[0].width, "kept_tokens": height * width,
             **sheets.means(rows, DENSE)}  # fmt: skip
    return {"lines": [dense, *lines], "pictures": sheets.record(pipe, plans, rows)}


def table(lines: list[dict[str, Any]]) -> str:
    """The lines of all sizes as Markdown; numbers that none of them has are left out."""
    known = [c for c in COLUMNS if any(line[c] is not None for line in lines)]
    body = []
    for line in lines:
        dense = line["method"] == "dense"
        numbers = [
            "" if line[c] is None or (dense and c != "hpf") else COLUMNS[c][1].format(line[c])
            for c in known
        ]
        size, kept = str(line["size"]), f"{line['kept_tokens']:,}"
        body.append([size, line["method"], line.get("ratio", ""), kept, *numbers])
    return markdown(["size", "method", "ratio", "tokens", *(COLUMNS[c][0] for c in known)], body)


def main() -> None:
    """Draws, measures, prints the table, writes it with its record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=builtin.NAME)
    parser.add_argument("--size", type=int, nargs="+", help="pixels; every factor at each")
    parser.add_argument("--kept", type=int, default=KEPT, help="without --size: tokens kept")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int, default=1, help="pictures a prompt")
    parser.add_argument("--count", type=int, default=4, help="of the prompts")
    parser.add_argument("--prompts", type=Path, help="a file, one a line")
    parser.add_argument("--json", type=Path, default=RESULTS / "table1.json")
    parser.add_argument("--quick", action="store_true", help="a trial of the script; no file")
    a = parser.parse_args()
    if a.quick:
        a.size, a.steps, a.count, a.seeds = [192], 1, 1, 1
    prompts = a.prompts.read_text().split("\n") if a.prompts else list(PROMPTS)
    prompts = [prompt for prompt in prompts if prompt][: a.count]
    pipe, native = gen.open_pipeline(gen.Request(model=a.model, steps=a.steps, config=None))
    lpips = quality.load_lpips(LPIPS) if LPIPS.exists() else None
    pairs = [(size, list(RATIOS)) for size in a.size or ()] or [
        (size, [factor]) for size, factor in sizes_that_keep(pipe, native, a.kept)
    ]
    random = a.model == builtin.NAME and builtin.trained_folder() is None
    record: dict[str, Any] = {
        "model": a.model,
        "note": builtin.RANDOM_WARNING if random else "",
        "environment": environment(),
        "prompts": prompts,
        "seeds": a.seeds,
        "steps": native.steps,
        "lines": [],
        "sizes": [],
    }
    for size, factors in pairs:
        requests = [replace(native, prompt=prompt, seed=seed, width=size, height=size)
                    for prompt in prompts for seed in range(a.seeds)]  # fmt: skip
        found = at_size(pipe, requests, factors, lpips)
        record["lines"] += found["lines"]
        record["sizes"].append(found["pictures"])
        text = f"{about(record, native)}\n\n{table(record['lines'])}"
        if not a.quick:
            write(a.json, record, text)
    print(text)


def about(record: dict[str, Any], request: gen.Request) -> str:
    """Where the numbers come from."""
    made = record["environment"]
    note = f" **{record['note']}**." if record["note"] else ""
    return (
        f"Model: {record['model']}.{note} {len(record['prompts'])} prompts, {record['seeds']} "
        f"seed(s) each, {record['steps']} steps, guidance {request.guidance}; means of distances "
        f"to the dense picture. {request.dtype} on {request.device}, {made['cpu']}, "
        f"torch {made['torch']}, commit {str(made['commit'])[:12]}."
    )


if __name__ == "__main__":
    main()
