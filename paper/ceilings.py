"""What fewer keys can save in a transformer: counted FLOPs of a step, beside what was timed.

    python -m paper.ceilings           # published shapes; out/paper/ceilings.json and .md
    python -m paper.ceilings --quick   # one of them, no file

The published widths on the meta device: no weights, nothing is computed. ``factor 2`` and
``factor 4`` are the predicted speed-up of one denoiser call at batch 1 with 32 anchors. ``attention
alone`` is what they would be if only QK^T and PV shrank; that selected keys are not projected comes
on top, but for FLUX.2's single blocks, whose projections are fused.
The last column is factor 2 as timed on a GPU, from ``benchmarks/results/gpu-h200.jsonl``, where it
was; of models that were timed in part, a model of that many blocks.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

from diffusers import Flux2Transformer2DModel
from paper.report import RESULTS, add_device, environment, markdown, write

from tokendown import PatchConfig, summary
from tokendown.adapters.families import make_plan
from tokendown.adapters.skeleton import build_on_meta
from tokendown.bench.cells import read_cells
from tokendown.bench.report import Group, summarise
from tokendown.bench.shapes import find_shape

FACTORS = (2, 4)
ANCHORS = 32
FRAME_SCALE = 4  # frames of a film a latent frame: Wan and HunyuanVideo
TIMED = RESULTS.parent.parent / "benchmarks" / "results" / "gpu-h200.jsonl"


class Case(NamedTuple):
    """A model at a size, pixels; `shape` is a name of ``bench --shape``, or none of them."""

    name: str
    shape: str
    width: int
    height: int
    frames: int | None = None


CASES = (
    *(Case("FLUX.1 dev", "flux", side, side) for side in (1024, 2048, 4096)),
    *(Case("SD3.5 medium", "sd35-medium", side, side) for side in (1024, 2048)),
    *(Case("PixArt-Sigma", "pixart-sigma", side, side) for side in (1024, 2048)),
    Case("Qwen-Image", "qwen-image", 2048, 2048),
    Case("Z-Image", "z-image", 2048, 2048),
    Case("FLUX.2 dev", "flux2", 2048, 2048),
    *(Case("Wan 1.3B", "wan-1.3b", *size, 81) for size in ((832, 480), (1280, 720))),
    *(Case("Wan 14B", "wan-14b", *size, 81) for size in ((832, 480), (1280, 720))),
    Case("HunyuanVideo", "hunyuan-video", 1280, 720, 129),
)


def build(case: Case) -> Any:
    """The model on the meta device; FLUX.2 dev is what its class builds by default."""
    if case.shape == "flux2":
        return build_on_meta(Flux2Transformer2DModel, {})
    return find_shape(case.shape).on_meta()


def measure(case: Case, records: list[Group]) -> dict[str, Any]:
    """A row of the table."""
    model = build(case)
    layers = {layer.name: layer for layer in make_plan(model, None).layers}
    row: dict[str, Any] = case._asdict()
    for factor in FACTORS:
        found = summary(
            model, PatchConfig(factor=factor, anchors=ANCHORS),
            height=case.height, width=case.width, batch=1,
            frames=case.frames, frame_scale=FRAME_SCALE if case.frames else None,
        )  # fmt: skip
        projections = sum(
            4 * (each.keys_before - each.keys_after) * layers[each.name].channels
            * layers[each.name].key_width
            for each in found.layers
            if each.factor > 1 and getattr(layers[each.name], "selects_first", True)
        )  # fmt: skip
        whole = found.step_flops_before
        row[f"factor {factor}"] = found.predicted_speedup
        row[f"attention alone {factor}"] = whole / (found.step_flops_after + projections)
    return {**row, "timed": timed(case, records)}


def timed(case: Case, records: list[Group]) -> float | None:
    """Factor 2 on a GPU, the speed-up over dense."""
    for group in records:
        if (group.key["target"], group.key["width"], group.key["height"]) == case[1:4]:
            speedups = {row.method: row.speedup for row in group.rows}
            return speedups.get(f"factor=2,anchors={ANCHORS}")
    return None


def table(rows: list[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = []
    for row in rows:
        frames = f", {row['frames']} frames" if row["frames"] else ""
        numbers = [f"{row[f'{kind}{factor}']:.2f}" for factor in FACTORS
                   for kind in ("factor ", "attention alone ")]  # fmt: skip
        clock = "" if row["timed"] is None else f"{row['timed']:.2f}"
        lines.append([row["name"], f"{row['width']} x {row['height']}{frames}", *numbers, clock])
    head = ["model", "size"]
    head += [text for factor in FACTORS for text in (f"factor {factor}", "attention alone")]
    return markdown([*head, "factor 2, timed"], lines)


def main() -> None:
    """Counts, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_device(parser)
    parser.add_argument("--quick", action="store_true", help="a trial of the script; no file")
    a = parser.parse_args()
    out = a.out
    records = summarise(read_cells(TIMED))
    rows = [measure(case, records) for case in (CASES[3:4] if a.quick else CASES)]
    print(table(rows))
    if not a.quick:
        record = {"anchors": ANCHORS, "batch": 1, "environment": environment(), "rows": rows}
        write(out / "ceilings.json", record, table(rows))


if __name__ == "__main__":
    main()
