"""Which token of a cell to keep at which step: orders of jitter, beside grids that stand still.

    python -m paper.jitter             # the built-in model; out/paper/jitter.json and .md
    python -m paper.jitter --quick     # under a minute, fewer of everything, no file

Every order keeps one token of each cell at a step, so that all cost the same. Error: mean squared
difference of the final latents over the variance of the dense ones, mean (lowest to highest
picture); no anchors.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import fmean

from paper.pictures import PROMPTS, errors, latents, open_model
from paper.report import add_model, environment, markdown, write

from tokendown import PatchConfig, apply_patch
from tokendown.jitter import Place, place_at

FACTORS = (2, 3, 4, 5, 8)
CORNERS = ((0, 0), (15, 15), (0, 15), (15, 0))
PLASTIC = 1.324717957244746  # of the R2 sequence (M. Roberts 2018)
Order = Callable[[int, int], tuple[int, int]]  # factor and step to row and column


def sixteenths(of: Callable[[int], tuple[int, int]]) -> Order:
    """One order for cells of all sizes, each scaled down from one of 16 places a side."""

    def scaled(factor: int, step: int) -> tuple[int, int]:
        row, column = of(step)
        return row * factor // 16, column * factor // 16

    return scaled


def _bayer(step: int) -> tuple[int, int]:
    return place_at(16, step)


def _at_random(step: int) -> tuple[int, int]:
    rng = random.Random(step)
    return rng.randrange(16), rng.randrange(16)


ORDERS: dict[str, Order] = {
    "top left at all steps (ToDo)": sixteenths(lambda step: (0, 0)),
    "centre at all steps": sixteenths(lambda step: (8, 8)),
    "two opposite corners": sixteenths(lambda step: CORNERS[step % 2]),
    "four corners": sixteenths(lambda step: CORNERS[step % 4]),
    "at random": sixteenths(_at_random),
    "R2 sequence": sixteenths(
        lambda step: (int(step / PLASTIC % 1 * 16), int(step / PLASTIC**2 % 1 * 16))
    ),
    "Bayer's matrix from its first place": sixteenths(lambda step: _bayer(step - 1)),
    "Bayer's matrix from its second place": sixteenths(_bayer),
    "the same, but every place once (jitter)": place_at,
}


@contextmanager
def going(chosen: Order) -> Iterator[None]:
    """Jitter goes in this order."""

    def at(step: int) -> Place:
        return Place.by(lambda factor: chosen(factor, max(step, 0)))

    ours = Place.__dict__["at"]
    Place.at = staticmethod(at)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Place.at = ours  # type: ignore[method-assign]


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--count", type=int, default=4, help="of the prompts")
    parser.add_argument("--factors", type=int, nargs="+", default=FACTORS)
    add_model(parser)
    parser.add_argument("--quick", action="store_true", help="a trial of the script; no file")
    a = parser.parse_args()
    if a.quick:
        a.steps, a.count, a.factors = 1, 1, (2,)
    out = a.out
    pipe, request = open_model(a)
    prompts = PROMPTS[: a.count]
    dense = latents(pipe, request, prompts)
    rows = []
    for name, chosen in ORDERS.items():
        for factor in a.factors:
            with going(chosen), apply_patch(pipe, PatchConfig(factor=factor, anchors=0)):
                found = errors(latents(pipe, request, prompts), dense)
            rows.append({"order": name, "factor": factor, "errors": found})
            print(f"{name}, factor {factor}: {fmean(found):.2g}", flush=True)
    lines = [
        [name, *(_cell(row["errors"]) for row in rows if row["order"] == name)] for name in ORDERS
    ]
    table = markdown(["kept token of a cell", *(f"factor {factor}" for factor in a.factors)], lines)
    print(table)
    if not a.quick:
        record = {"model": a.model, "size": request.width, "steps": a.steps,
                  "prompts": list(prompts), "dtype": request.dtype,
                  "environment": environment(request.device), "rows": rows}  # fmt: skip
        write(out / "jitter.json", record, table)


def _cell(found: list[float]) -> str:
    return f"{fmean(found):.2g} ({min(found):.2g} to {max(found):.2g})"


if __name__ == "__main__":
    main()
