"""Several methods on several prompts, from the same seeds: distances to the dense picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from . import captions, pictures, quality
from .generate import describe, predict, speedup_of
from .methods import DENSE, Method
from .models.loading import fingerprint
from .models.sources import versions
from .request import Request
from .rounding import significant
from .sampling import Picture, Progress, nth, sample
from .summary import Summary

Numbers = dict[str, float | None]
_DIGITS = 6  # that numbers are kept with


@dataclass(frozen=True)
class Row:
    """One prompt and seed: the dense picture first, then one of each method.

    Attributes:
        request: without a patch.
        pictures: by method.
        numbers: by method, see :func:`measure`.
    """

    request: Request
    pictures: dict[Method, Picture]
    numbers: dict[Method, Numbers]


def plan(pipe: Any, request: Request, methods: Sequence[Method]) -> dict[Method, Summary | None]:
    """What each method does at the request's size; the dense one is added, and comes first.

    Every method is put to work once, so that one that cannot work says so before any waiting.

    Raises:
        ConfigError, NothingPatchedError, UnsupportedModelError: a method does not suit the model.
    """
    found: dict[Method, Summary | None] = {}
    for method in dict.fromkeys((DENSE, *methods)):
        with method.on(pipe):
            pass
        found[method] = predict(pipe, replace(request, config=method.config))
    return found


def make_rows(
    pipe: Any,
    requests: Sequence[Request],
    methods: Sequence[Method],
    *,
    lpips: quality.Lpips | None = None,
    progress: Progress | None = None,
) -> Iterator[Row]:
    """Makes and measures the pictures of one request after the other.

    Args:
        pipe: from ``open_pipeline``; it is as it was afterwards.
        requests: prompts and seeds, with every default filled in; a patch in them is ignored.
        methods: the dense one must be the first.
        lpips: to measure that as well.
        progress: called after every step with the steps of all pictures together.

    Raises:
        As make_picture.
    """
    assert methods[0] == DENSE, "distances are to the dense picture"
    count = len(requests) * len(methods)
    advances = (nth(progress, index, count) for index in range(count))
    for request in requests:
        made: dict[Method, Picture] = {}
        for method in methods:
            with method.on(pipe, request.seed):
                one = replace(request, config=method.config)
                made[method] = sample(pipe, one, next(advances))
        dense = made[DENSE].frames
        numbers = {m: measure(picture.frames, dense, lpips) for m, picture in made.items()}
        yield Row(replace(request, config=None), made, numbers)


def measure(
    frames: Sequence[Image.Image], dense: Sequence[Image.Image], lpips: quality.Lpips | None = None
) -> Numbers:
    """Distances of a picture to the dense one, or means over the frames of a film.

    The PSNR of a film is that of all frames together.

    Args:
        frames: one, or those of a film.
        dense: as many.
        lpips: to measure that as well.
    """
    each = [_measure(*pair, lpips) for pair in zip(frames, dense, strict=True)]
    found = {name: _mean([numbers[name] for numbers in each]) for name in each[0]}
    if len(each) > 1 and found["mse"]:
        found["psnr_db"] = significant(-10 * math.log10(found["mse"]), _DIGITS)
    return found


def _measure(image: Image.Image, dense: Image.Image, lpips: quality.Lpips | None) -> Numbers:
    """None where a number is infinite or undefined.

    PSNR in dB is infinite for equal pictures; SSIM, MS-SSIM, LPIPS and HPF need sides of so
    many pixels, LPIPS its weights as well. All of them are computed on the device of the latter,
    where there are any. ``hpf`` and ``hpf_dense`` are the detail of either picture.
    """
    x, y = pictures.as_tensor(image), pictures.as_tensor(dense)
    if lpips is not None:
        x, y = x.to(lpips.heads[0].device), y.to(lpips.heads[0].device)
    side = min(x.shape[-2:])
    decibels = float(quality.psnr(x, y))
    found: Numbers = {
        "mse": float(quality.mse(x, y)),
        "psnr_db": None if math.isinf(decibels) else decibels,
        "ssim": float(quality.ssim(x, y)) if side >= quality.SSIM_WINDOW else None,
        "ms_ssim": float(quality.ms_ssim(x, y)) if side >= quality.MS_SSIM_SIDE else None,
        "lpips": float(lpips(x, y)) if lpips is not None and side >= quality.LPIPS_SIDE else None,
        "hpf": float(quality.hpf(x)) if side >= quality.HPF_SIDE else None,
        "hpf_dense": float(quality.hpf(y)) if side >= quality.HPF_SIDE else None,
    }
    return {
        name: None if value is None else significant(value, _DIGITS)
        for name, value in found.items()
    }


def means(rows: Sequence[Row], method: Method) -> Numbers:
    """The mean of each number over the rows; None where a row has none."""
    names = rows[0].numbers[method]
    return {name: _mean([row.numbers[method][name] for row in rows]) for name in names}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return significant(statistics.mean(known), _DIGITS) if len(known) == len(values) else None


def record(
    pipe: Any, plans: dict[Method, Summary | None], rows: Sequence[Row], notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Every number, the settings and the versions, as JSON types."""
    return {
        "kind": "methods",
        "notes": list(notes),
        "weights": fingerprint(pipe),
        "versions": versions(),
        "methods": [
            {
                **method.to_dict(),
                "predicted_speedup": None
                if p is None
                else significant(speedup_of(p, rows[0].pictures[method]), _DIGITS),
                "keys": None if p is None else [[k.keys_before, k.keys_after] for k in p.layers],
                "means": means(rows, method),
            }
            for method, p in plans.items()
        ],
        "rows": [
            {
                "request": describe(pipe, row.pictures[DENSE]),
                "methods": {
                    method.name: {
                        "seconds": round(picture.seconds, 3),
                        "denoising_seconds": round(picture.denoising_seconds, 3),
                        **row.numbers[method],
                    }
                    for method, picture in row.pictures.items()
                },
            }
            for row in rows
        ],
    }


def contact_sheet(rows: Sequence[Row], foot: list[str], limit: int = 384) -> Image.Image:
    """Prompts from top to bottom, methods from left to right, and numbers under each picture.

    Args:
        rows: at least one.
        foot: lines under the whole sheet.
        limit: most pixels of a picture's longer side on the sheet; larger ones are shown smaller.
    """
    lines = []
    for row in rows:
        cells = [
            captions.Cell(picture.image, method.name, words(row.numbers[method], method))
            for method, picture in row.pictures.items()
        ]
        lines.append((f'"{row.request.prompt}", seed {row.request.seed}', cells))
    return captions.contact_sheet(lines, foot, limit)


def words(numbers: Numbers, method: Method) -> list[str]:
    """The numbers of one picture as lines for people."""
    detail = numbers["hpf"]
    lines = [] if detail is None else [f"HPF {detail:.4f}"]
    if method == DENSE:
        return lines
    if numbers["mse"] == 0:
        return ["equal to dense", *lines]
    kinds = {"psnr_db": "PSNR {:.1f} dB", "ssim": "SSIM {:.3f}", "ms_ssim": "MS-SSIM {:.3f}",
             "lpips": "LPIPS {:.3f}", "mse": "MSE {:.2e}"}  # fmt: skip
    values = ((form, numbers[name]) for name, form in kinds.items())
    return [form.format(value) for form, value in values if value is not None] + lines
