"""Every way of choosing keys, on the trained network of ``paper/terrain.py``.

    python -m paper.terrain_table               # out/paper/terrain_table.json and .md
    python -m paper.terrain_table --factors 2   # one at a time; the file keeps the others
    python -m paper.terrain_table --quick       # under a minute, fewer of everything, no file

The ways are those of ``paper/choices.py``. The error is that of ``paper/sinks.py``, which asks how
few anchors are enough and which score finds them.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paper import terrain
from paper.choices import FACTORS, Choice, Keys, rows, table
from paper.report import OUT, earlier, environment, spread, write
from paper.sinks import TOKENS
from paper.terrain import Site
from torch import Tensor


def at_full_size(keys: Keys) -> terrain.Attend:
    """Dense in the smaller layers."""

    def attention(site: Site, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        chosen = keys if site.grid.tokens == TOKENS else terrain.dense
        return chosen(site, query, key, value)

    return attention


def measure(
    seeds: int, steps: int, factors: tuple[int, ...], most_phases: int
) -> list[dict[str, Any]]:
    """One record a choice, with the relative error of each seed."""
    net = terrain.load()
    wanted = [terrain.sample(net, seed=seed, steps=steps) for seed in range(seeds)]
    found: dict[Choice, list[float]] = {}
    records = []
    for factor in factors:
        for row, choice in rows(factor, most_phases):
            if choice not in found:
                found[choice] = []
                for seed in range(seeds):
                    keys = Keys(choice, seed)
                    out = terrain.sample(
                        net, at_full_size(keys), seed=seed, steps=steps, on_step=keys.on_step
                    )
                    found[choice].append(terrain.relative_error(out, wanted[seed]))
                print(f"{row}, {choice}: {found[choice]}", flush=True)
            records.append({"row": row, **asdict(choice), **spread(found[choice])})
    return records


def main() -> None:
    """Measures, prints the table, writes it with its record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=OUT / "terrain_table.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--phases", type=int, default=16, help="most of them that are tried, >= 2")
    parser.add_argument("--factors", type=int, nargs="+", default=FACTORS)
    parser.add_argument("--quick", action="store_true", help="a trial of the script; no file")
    a = parser.parse_args()
    if a.quick:
        a.seeds, a.steps, a.phases, a.factors = 1, 1, 2, (2, 4)
    settings = {"seeds": a.seeds, "steps": a.steps, "phases": a.phases}
    shared = {"settings": settings, "environment": environment()}
    before = {} if a.quick else earlier(a.json, shared)
    records = [each for each in before.get("errors", []) if each["factor"] not in a.factors]
    records += measure(a.seeds, a.steps, tuple(a.factors), a.phases)
    about = (
        f"Mean squared error over the variance of the dense output, {a.steps}-step samples, "
        f"{a.seeds} seeds; median (lowest to highest) over seeds, in the first row also over at "
        f"most {a.phases} phases."
    )
    text = f"{about}\n\n{table(records)}"
    print(text)
    if not a.quick:
        write(a.json, {**shared, "errors": records}, text)


if __name__ == "__main__":
    main()
