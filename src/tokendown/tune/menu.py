"""What every layer may do, what each choice costs and how far it changes the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .._errors import ConfigError
from ..analyze import Analysis
from ..analyze.measures import DENSE, Candidate
from ..tuned import LayerChoice
from .costs import Costs
from .effects import candidate_of, choice_of, parts_of
from .knapsack import Front, best_tradeoffs


@dataclass(frozen=True)
class Target:
    """What the plan is to reach; exactly one of these.

    Args:
        error: least time at no more than this error of the picture, squared over its variance.
        speedup: least error at this predicted speed-up at least, > 1.
        like: least error at no more than the cost of this preset.
    """

    error: float | None = None
    speedup: float | None = None
    like: Literal["paper", "auto"] | None = None

    def __post_init__(self) -> None:
        given = [x for x in (self.error, self.speedup, self.like) if x is not None]
        if len(given) != 1:
            raise ConfigError("expected one of error, speedup and like")
        if self.error is not None and not self.error > 0:
            raise ConfigError(f"expected an error > 0, got {self.error}")
        if self.speedup is not None and not self.speedup > 1:
            raise ConfigError(f"expected a speed-up > 1, got {self.speedup}")
        if self.like not in (None, "paper", "auto"):
            raise ConfigError(f"expected like 'paper' or 'auto', got {self.like!r}")


@dataclass(frozen=True)
class Menu:
    """All options of all layers.

    Attributes:
        options: of each layer; the first is dense.
        costs: likewise, of the whole schedule.
        errors: likewise, predicted error of the picture.
        fixed: cost of everything that is not self-attention.
        unit: of the costs.
    """

    options: list[list[LayerChoice]]
    costs: list[list[float]]
    errors: list[list[float]]
    fixed: float
    unit: str

    @property
    def dense(self) -> float:
        """Cost of the whole dense schedule."""
        return self.fixed + sum(costs[0] for costs in self.costs)

    def front(self) -> Front:
        """All best trade-offs; costs are without the fixed one."""
        return best_tradeoffs(self.costs, self.errors)

    def cost(self, choices: Sequence[int]) -> float:
        """Of a whole schedule."""
        return self.fixed + sum(c[i] for c, i in zip(self.costs, choices, strict=True))

    def error(self, choices: Sequence[int]) -> float:
        """Predicted, of the picture."""
        return sum(e[i] for e, i in zip(self.errors, choices, strict=True))

    def find(self, candidates: dict[str, Candidate]) -> list[int]:
        """The options in which layers are at these candidates at all steps."""
        found = []
        for options in self.options:
            wanted = (candidates.get(options[0].name, DENSE), 0.0, 1.0)
            known = [(candidate_of(x, x.factor), x.start, x.stop) for x in options]
            found.append(known.index(wanted) if wanted in known else 0)
        return found


def build_menu(
    analysis: Analysis, prices: Costs, gains: dict[str, list[float]], weights: list[float]
) -> Menu:
    """Every layer: dense, or any candidate in any run of neighbouring parts of the schedule."""
    parts, steps = parts_of(len(weights)), len(analysis.timesteps)
    windows = [(a[0], b[1]) for i, a in enumerate(parts) for b in parts[i:]]
    options, costs, errors = [], [], []
    for layer in analysis.layers:
        candidates = layer.errors if layer.name in gains else ()
        chosen = [(DENSE, (0.0, 1.0)), *((x, window) for x in candidates for window in windows)]
        options.append([choice_of(layer, *each) for each in chosen])
        costs.append([prices.of(layer.name, *each, steps) for each in chosen])
        errors.append(
            [
                sum(
                    weight * gain * layer.error(candidate, *part)
                    for weight, gain, part in zip(
                        weights, gains.get(layer.name, [0.0] * len(parts)), parts, strict=True
                    )
                    if candidate.factor > 1 and window[0] <= part[0] and part[1] <= window[1]
                )
                for candidate, window in chosen
            ]
        )
    attention = sum(prices.layers[layer.name][DENSE] for layer in analysis.layers)
    return Menu(options, costs, errors, (prices.whole - attention) * steps, prices.unit)


def choose(menu: Menu, front: Front, limit: float | None, error: float | None) -> list[int]:
    """The options of least error within a cost, or of least cost within an error.

    Raises:
        ConfigError: nothing reaches it, or it takes no change at all.
    """
    if error is not None:
        index = front.within_error(error)
        assert index is not None, "dense has no error"
        picked = front.choices(index)
    else:
        assert limit is not None
        index = front.within_cost(limit * (1 + 1e-9) - menu.fixed)
        if index is None:
            fastest = menu.dense / menu.cost(front.choices(0))
            raise ConfigError(
                f"no plan is as fast as that; the fastest has a predicted speed-up of {fastest:.2f}"
            )
        picked = front.choices(index)
    if not any(picked):
        raise ConfigError("the best plan within this bound is the dense model; allow more error")
    return picked
