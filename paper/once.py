"""An anchor that lies on the grid: counted for its whole cell, or once, on the terrain network.

    python -m paper.once           # out/paper/once.json and .md
    python -m paper.once --quick   # under a minute, fewer of everything, no file

The default keeps another token of a cell at every step, so that every sink is on the grid now and
then. "For its cell": anchors are the longest tokens off the grid, and a long one on the grid counts
factor squared times, as the plain formula has it. "Once": what the library does, where the cell
gets another token. Tokens are scored as the library scores them, by their length before the norm.
"""

from __future__ import annotations

import argparse

import torch
from paper import terrain
from paper.choices import ANCHORS, FACTORS, phases
from paper.report import add_device, environment, markdown, spread, write
from paper.sinks import TOKENS
from paper.terrain import Site
from torch import Tensor
from torch.nn import functional

from tokendown.jitter import Place
from tokendown.multiplicity import bias_of
from tokendown.sequence import Box, Sequence

MOVING = "another place at each step (jitter)"
STANDING = "worst of all places that stand still, at most 5 tried"


class Anchored:
    """Attention to a grid and anchors.

    Args:
        factor: linear.
        once: whether anchors on the grid count once.
        place: row and column in a cell, or None for jitter.
    """

    def __init__(self, factor: int, once: bool, place: tuple[int, int] | None) -> None:
        self.factor, self.once, self.fixed = factor, once, place
        self.on_step(0)

    def on_step(self, step: int) -> None:
        """Told before every step."""
        fixed = self.fixed
        self.place = Place.at(step) if fixed is None else Place.by(lambda factor: fixed)

    def __call__(self, site: Site, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if site.grid.tokens != TOKENS:
            return terrain.dense(site, query, key, value)
        scores = torch.linalg.vector_norm(site.block_input, dim=-1)
        box = Box(1, site.grid.height, site.grid.width, self.factor)
        if self.once:
            kept = Sequence((box,)).with_anchors(scores, ANCHORS, self.place)
        else:
            box = box.at(self.place, key.device)
            others = scores.index_fill(1, box.index, -torch.inf)
            kept = Sequence((box,), anchors=others.topk(ANCHORS).indices)
        mask = bias_of(kept.runs(), query)[None, None, None]
        return functional.scaled_dot_product_attention(
            query, kept.take(key, 2), kept.take(value, 2), attn_mask=mask
        )


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    add_device(parser)
    parser.add_argument("--quick", action="store_true", help="a trial of the script; no file")
    a = parser.parse_args()
    factors, steps = FACTORS, 5
    if a.quick:
        a.seeds, factors, steps = 1, (2,), 1
    net = terrain.load()
    wanted = [terrain.sample(net, seed=seed, steps=steps) for seed in range(a.seeds)]

    def errors(*of: object) -> list[float]:
        found = []
        for seed, want in enumerate(wanted):
            keys = Anchored(*of)
            out = terrain.sample(net, keys, seed=seed, steps=steps, on_step=keys.on_step)
            found.append(terrain.relative_error(out, want))
        return found

    rows = []
    for factor in factors:
        for once in (False, True):
            moving = errors(factor, once, None)
            fixed = [errors(factor, once, place) for place in phases(factor, 5)]
            worst = max(fixed, key=max)
            for grid, runs in ((MOVING, moving), (STANDING, worst)):
                rows.append({"grid": grid, "factor": factor, "once": once, **spread(runs)})
                print(rows[-1], flush=True)
    lines = [
        [f"{grid}; an anchor on it counts {'once' if once else 'for its cell'}", *(
            "{median:.2g} ({low:.2g} to {high:.2g})".format(**row)
            for row in rows if (row["grid"], row["once"]) == (grid, once))]
        for grid in (MOVING, STANDING) for once in (False, True)
    ]  # fmt: skip
    table = markdown(["grid", *(f"factor {factor}" for factor in factors)], lines)
    print(table)
    if not a.quick:
        record = {"settings": {"seeds": a.seeds, "steps": steps, "anchors": ANCHORS},
                  "environment": environment(a.device), "errors": rows}  # fmt: skip
        write(a.out / "once.json", record, table)


if __name__ == "__main__":
    main()
