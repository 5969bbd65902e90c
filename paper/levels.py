"""What self-attention is worth at each level of a U-Net, and what fewer keys cost there.

    python -m paper.levels             # the built-in model; out/paper/levels.json and .md
    python -m paper.levels --size 512  # likewise, levels-512.json and .md
    python -m paper.levels --quick     # under a minute, fewer of everything, no file

Two questions for every level that has self-attention on an image grid: how much do pictures change
when it is switched off, and how much when it keeps the keys of a grid, or the means of its cells,
with and without anchors? A low second number means something only where the first is high. Error:
mean squared difference of the final latents over the variance of the dense ones; median (lowest to
highest picture).
"""

from __future__ import annotations

import argparse
from typing import Any

from paper.pictures import PROMPTS, errors, latents, open_model
from paper.report import add_model, environment, markdown, spread, write

from tokendown import PatchConfig, apply_patch
from tokendown import generate as gen
from tokendown.adapters.families import make_plan
from tokendown.bench.methods import without_attention
from tokendown.config import Method

FACTORS = (2, 4, 8)
KEYS: tuple[tuple[Method, int], ...] = (
    ("nearest", 0), ("nearest", 32), ("jitter", 0), ("jitter", 32), ("mean", 0), ("mean", 32),
)  # fmt: skip


def rows(pipe: Any, request: gen.Request, prompts: tuple[str, ...]) -> list[dict[str, Any]]:
    """Every level with every change."""
    levels: dict[int, list[str]] = {}
    for layer in make_plan(pipe.unet, None).layers:
        levels.setdefault(layer.downsample, []).append(layer.name)
    dense = latents(pipe, request, prompts)
    found = []

    def note(level: int, what: str) -> None:
        error = spread(errors(latents(pipe, request, prompts), dense))
        found.append({"downsampling": level, "layers": len(levels[level]), "what": what, **error})
        print(f"downsampling {level}, {what}: {error['median']:.2g}", flush=True)

    for level, names in sorted(levels.items()):
        with without_attention(pipe.unet, names):
            note(level, "switched off")
        for factor in FACTORS:
            for method, anchors in KEYS:
                options = {"factor": {level: factor}, "anchors": anchors, "method": method}
                with apply_patch(pipe, PatchConfig(**options)):
                    note(level, f"factor {factor}, {method}, {anchors} anchors")
    return found


def table(found: list[dict[str, Any]]) -> str:
    """One line a change, one column a level."""
    levels = sorted({row["downsampling"] for row in found})
    cell = {
        (row["what"], row["downsampling"]): f"{row['median']:.2g} ({row['low']:.2g} to "
        f"{row['high']:.2g})"
        for row in found
    }
    head = ["self-attention", *(f"downsampling {level}" for level in levels)]
    names = dict.fromkeys(row["what"] for row in found)
    return markdown(head, [[what, *(cell[what, level] for level in levels)] for what in names])


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, help="pixels, square; default: the model's own")
    parser.add_argument("--steps", type=int, help="default: the model's own")
    parser.add_argument("--count", type=int, default=4, help="of the prompts")
    add_model(parser)
    parser.add_argument("--quick", action="store_true", help="a trial of the script; no file")
    a = parser.parse_args()
    if a.quick:
        a.steps, a.count = 1, 1
    out = a.out
    pipe, request = open_model(a)
    prompts = PROMPTS[: a.count]
    found = rows(pipe, request, prompts)
    if a.quick:
        return
    settings = {"model": a.model, "size": request.width, "steps": request.steps,
                "guidance": request.guidance, "prompts": prompts}  # fmt: skip
    record = {"command": "python -m paper.levels", **settings, "dtype": request.dtype,
              **environment(request.device), "rows": found}  # fmt: skip
    name = "levels" if a.size is None else f"levels-{a.size}"
    write(out / f"{name}.json", record, table(found))


if __name__ == "__main__":
    main()
