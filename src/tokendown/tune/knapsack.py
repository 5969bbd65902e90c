"""One option for every layer, so that costs and errors add up best: exact, by all best trade-offs.

The multiple-choice knapsack problem. Layer by layer, the sums that no other sum beats in both cost
and error are kept: exactly as long as there are at most :data:`MOST` of them, else the best of so
many equal steps of cost. Source: Nemhauser and Ullmann, Management Science 15 (1969), for the
dominance argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST = 20_000


@dataclass(frozen=True)
class Front:
    """All best trade-offs, by rising cost and falling error.

    Attributes:
        costs: [S].
        errors: [S].
    """

    costs: Tensor
    errors: Tensor
    _steps: tuple[tuple[Tensor, Tensor], ...]

    def choices(self, index: int) -> list[int]:
        """Which option each layer takes at a place of the front."""
        found = []
        for before, option in reversed(self._steps):
            found.append(int(option[index]))
            index = int(before[index])
        return found[::-1]

    def within_cost(self, most: float) -> int | None:
        """The place of least error at no more than this cost; None if even the cheapest is more."""
        affordable = int((self.costs <= most).sum())
        return affordable - 1 if affordable else None

    def within_error(self, most: float) -> int | None:
        """The cheapest place with no more than this error, or None."""
        good = (self.errors <= most).nonzero()
        return int(good[0]) if len(good) else None


def best_tradeoffs(costs: Sequence[Sequence[float]], errors: Sequence[Sequence[float]]) -> Front:
    """Combines one option of every layer in all ways that are worth it.

    Args:
        costs: of the options of each layer, >= 0.
        errors: likewise, >= 0.
    """
    cost, error = torch.zeros(2, 1, dtype=torch.float64)
    steps = []
    for layer_costs, layer_errors in zip(costs, errors, strict=True):
        more = torch.tensor(layer_costs, dtype=torch.float64)
        worse = torch.tensor(layer_errors, dtype=torch.float64)
        useful = _undominated(more, worse)
        more, worse = more[useful], worse[useful]
        all_costs, all_errors = (cost[:, None] + more).flatten(), (error[:, None] + worse).flatten()
        kept = _undominated(all_costs, all_errors)
        kept = kept[_thinned(all_costs[kept])]
        cost, error = all_costs[kept], all_errors[kept]
        steps.append((kept // len(more), useful[kept % len(more)]))
    return Front(cost, error, tuple(steps))


def _thinned(costs: Tensor) -> Tensor:
    """Which of the rising costs are kept: the cheapest, and the last of each of so many steps."""
    if len(costs) <= MOST:
        return torch.ones(len(costs), dtype=torch.bool)
    step = ((costs - costs[0]) / (costs[-1] - costs[0]) * (MOST - 2)).long()
    last = torch.ones(len(costs), dtype=torch.bool)
    last[:-1] = step[1:] > step[:-1]
    last[0] = True
    return last


def _undominated(costs: Tensor, errors: Tensor) -> Tensor:
    """Indices by rising cost of what has less error than everything that costs no more."""
    by_error = errors.argsort(stable=True)
    order = by_error[costs[by_error].argsort(stable=True)]  # by cost, equal ones by error
    ordered = errors[order]
    least_before = torch.cummin(ordered, 0).values.roll(1)
    least_before[0] = torch.inf
    return order[ordered < least_before]
