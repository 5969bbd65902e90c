"""``tokendown generate --compare``: dense and patched from one seed, in pictures and in numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.table import Table

from .. import captions, pictures, quality
from .. import generate as gen
from ..config import PatchConfig
from ..summary import Summary
from ..tuned import TunedPlan
from .output import out


def save_comparison(
    pipe: Any, folder: Path, result: gen.Comparison, film: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Path]]:
    """Measures a comparison and writes its three files.

    Args:
        pipe: that made it.
        folder: where to.
        result: what was made.
        film: ``fps`` and ``kind`` of :func:`tokendown.pictures.save`.

    Returns:
        The numbers as JSON types, and the files: dense, patched, side by side.
    """
    numbers = measure(result)
    settings = [gen.describe(pipe, picture) for picture in (result.dense, result.patched)]
    frames = [each.frames for each in (result.dense, result.patched)]
    names = (
        f"dense: {result.dense.seconds:.1f} s",
        f"{_patch_name(result)}: {result.patched.seconds:.1f} s",
    )
    sheets = [
        captions.side_by_side((dense, names[0]), (patched, names[1]), _foot(result, numbers))
        for dense, patched in zip(*frames, strict=True)
    ]
    whole = {**settings[1], "kind": "comparison", "numbers": numbers}
    request = result.patched.request
    files = pictures.save(
        folder,
        pictures.stem_for(request.prompt, request.seed),
        {
            "-dense": (frames[0], settings[0]),
            "-patched": (frames[1], settings[1]),
            "-compare": (sheets, whole),
        },
        **film,
    )
    return numbers, files


def measure(result: gen.Comparison) -> dict[str, Any]:
    """Seconds, speed-ups, keys and distances, as JSON types; PSNR is null for equal pictures."""
    return {
        "seed": result.patched.request.seed,
        "seconds": {
            "dense": round(result.dense.seconds, 3),
            "patched": round(result.patched.seconds, 3),
        },
        "denoising_seconds": {
            "dense": round(result.dense.denoising_seconds, 3),
            "patched": round(result.patched.denoising_seconds, 3),
        },
        "step_seconds": {
            "dense": [round(step, 4) for step in result.dense.step_seconds],
            "patched": [round(step, 4) for step in result.patched.step_seconds],
        },
        "measured_speedup": round(result.measured_speedup, 3),
        "predicted_speedup": round(result.predicted_speedup, 3),
        "keys": keys_by_grid(result.summary),
        **distances(result.dense.frames, result.patched.frames),
    }


def distances(dense: Sequence[Image.Image], patched: Sequence[Image.Image]) -> dict[str, Any]:
    """PSNR of all frames together, mean SSIM, and for a film both of every frame; JSON types.

    Pictures of less than 11 pixels a side have no SSIM.

    Args:
        dense: frames, RGB.
        patched: as many, of the same size.
    """
    psnrs, ssims = list[float](), list[float]()
    for pair in zip(patched, dense, strict=True):  # one by one: a film in float64 fills memories
        image, reference = (pictures.as_tensor(frame) for frame in pair)
        psnrs.append(float(quality.psnr(image, reference)))
        if min(image.shape[-2:]) >= quality.SSIM_WINDOW:
            ssims.append(float(quality.ssim(image, reference)))
    error = sum(10 ** (-decibels / 10) for decibels in psnrs) / len(psnrs)
    found: dict[str, Any] = {
        "psnr_db": round(-10 * math.log10(error), 2) if error else None,
        "ssim": round(sum(ssims) / len(ssims), 4) if ssims else None,
    }
    if len(psnrs) > 1:
        found["frames"] = {
            "psnr_db": [None if math.isinf(each) else round(each, 2) for each in psnrs],
            "ssim": [round(each, 4) for each in ssims],
        }
    return found


def keys_by_grid(summary: Summary) -> list[dict[str, Any]]:
    """One entry for each token grid: how many layers, keys before and after."""
    entries: dict[tuple[int, int, int, int], int] = {}
    for layer in summary.layers:
        if layer.grid is not None:
            key = (*layer.grid, layer.keys_before, layer.keys_after)
            entries[key] = entries.get(key, 0) + 1
    return [
        {"grid": f"{height}x{width}", "layers": count, "before": before, "after": after}
        for (height, width, before, after), count in sorted(entries.items(), reverse=True)
    ]


def keys_text(summary: Summary) -> str:
    """The same in words, for what the patch changes."""
    changed = [e for e in keys_by_grid(summary) if e["after"] < e["before"]]
    return ", ".join(
        f"{e['before']} -> {e['after']} keys in {e['layers']} layer{'s' * (e['layers'] > 1)}"
        for e in changed
    )


def print_comparison(result: gen.Comparison, numbers: dict[str, Any]) -> None:
    """A table for people."""
    table = Table(title=f"seed {numbers['seed']}", title_justify="left")
    table.add_column("")
    for column in ("dense", "patched", "speed-up", "predicted"):
        table.add_column(column, justify="right")
    for name, label in (("denoising_seconds", "denoising, s"), ("seconds", "whole picture, s")):
        dense, patched = numbers[name]["dense"], numbers[name]["patched"]
        predicted = f"{numbers['predicted_speedup']:.2f}" if name != "seconds" else ""
        table.add_row(label, f"{dense:.2f}", f"{patched:.2f}", f"{dense / patched:.2f}", predicted)
    console = out()
    console.print(table)
    console.print(f"{keys_text(result.summary) or 'no fewer keys'}; {_distance(numbers)}")


def _distance(numbers: dict[str, Any]) -> str:
    if numbers["psnr_db"] is None:
        return "equal pictures"
    similar = "" if numbers["ssim"] is None else f", SSIM {numbers['ssim']:.3f}"
    return f"PSNR {numbers['psnr_db']:.1f} dB{similar}"


def _patch_name(result: gen.Comparison) -> str:
    config = result.patched.request.config
    assert config is not None, "a comparison has a patch"
    if not result.summary.changes_anything:
        return "patched (changes nothing at this size)"
    factors = sorted({layer.factor for layer in result.summary.layers if layer.factor > 1} or {1})
    if isinstance(config, TunedPlan):
        return f"tuned plan, factors {', '.join(map(str, factors))}"
    how = f"factor {' and '.join(map(str, factors))}, {config.anchors} anchors"
    return f"{config.preset} ({how})" if config == PatchConfig(preset=config.preset) else how


def _steps(result: gen.Comparison) -> str:
    """A pipeline that is given a picture takes only the last of its steps."""
    asked, taken = result.patched.request.steps, len(result.patched.step_seconds)
    return f"{taken} of {asked} steps" if taken and taken != asked else f"{asked} steps"


def _foot(result: gen.Comparison, numbers: dict[str, Any]) -> list[str]:
    request = result.patched.request
    return [
        f"denoising speed-up {result.measured_speedup:.2f}, predicted "  # not rounded twice
        f"{result.predicted_speedup:.2f}. {_distance(numbers)}.",
        keys_text(result.summary) or "no fewer keys",
        f"{json.dumps(request.prompt, ensure_ascii=False)}, {request.width} x {request.height}, "
        + (f"{request.frames} frames, " if request.frames is not None else "")
        + f"{_steps(result)}, seed {request.seed}, {request.dtype} on {request.device}",
    ]
