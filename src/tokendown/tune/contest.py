"""Several readings of the same measurements, settled by real pictures of the same prompts.

The additive model is right about large differences and noisy about small ones. So the choice that
it makes competes with those of plainer readings (every part of the schedule alike; the same keys at
all steps; the same keys in all layers as well) and, where a cost is the bound, with what the
presets keep, jittered as in every plan: a tuned plan is then no worse than that on the prompts that
it was chosen on. A preset that stands still, as ``paper`` does, competes as itself on the held-out
prompts only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from .._errors import ConfigError
from ..generate import make_picture
from ..sampling import Picture
from ..tuned import TunedPlan
from .effects import candidate_of, picture_error
from .menu import Menu, choose

Choices = tuple[int, ...]


def readings(menu: Menu, flat: Menu) -> list[Menu]:
    """The menu, the one in which all parts weigh alike, and the one without windows.

    Args:
        menu: with measured weights.
        flat: with the mean weight everywhere.
    """
    whole = [
        [
            error if (choice.start, choice.stop) == (0.0, 1.0) else float("inf")
            for choice, error in zip(options, errors, strict=True)
        ]
        for options, errors in zip(menu.options, menu.errors, strict=True)
    ]
    return [menu, flat, replace(menu, errors=whole)]


def uniform(menu: Menu, limit: float | None, error: float | None) -> list[Choices]:
    """The best choice that treats all layers alike at all steps, if one is within the bound.

    Layers that lack the candidate stay dense.
    """
    names = [options[0].name for options in menu.options]
    candidates = {candidate_of(choice, choice.factor) for o in menu.options for choice in o[1:]}
    every = {tuple(menu.find(dict.fromkeys(names, each))) for each in sorted(candidates)}
    within = [
        choices
        for choices in sorted(every)
        if any(choices)
        and (limit is None or menu.cost(choices) <= limit * (1 + 1e-9))
        and (error is None or menu.error(choices) <= error)
    ]
    return [min(within, key=menu.error if error is None else menu.cost)] if within else []


@dataclass
class Contest:
    """Compares choices by the pictures that they make.

    Args:
        pipe: not patched.
        menus: from :func:`readings`.
        plan_for: choices to a plan.
        rivals: what the presets keep, as choices.
        dense: pictures to compare with; their requests are repeated.
        tick: called after each picture.
    """

    pipe: Any
    menus: Sequence[Menu]
    plan_for: Callable[[Choices], TunedPlan]
    rivals: Sequence[Choices]
    dense: Sequence[Picture]
    tick: Callable[[], None]
    known: dict[Choices, float] = field(default_factory=dict)

    def error(self, choices: Choices) -> float:
        """Of the pictures, mean."""
        if choices not in self.known:
            plan = self.plan_for(choices)
            self.known[choices] = fmean(
                picture_error(make_picture(self.pipe, replace(dense.request, config=plan)), dense)
                for dense in self.dense
            )
            self.tick()
        return self.known[choices]

    def settle(self, limit: float | None, error: float | None) -> Choices:
        """The least error within a cost; or the least cost within an error, measured.

        Where none is within the error it is the one that has least, which :meth:`error` tells.

        Raises:
            ConfigError: as ``choose`` of the measured menu.
        """
        found = [tuple(choose(self.menus[0], self.menus[0].front(), limit, error))]
        for menu in self.menus[1:]:
            try:
                found.append(tuple(choose(menu, menu.front(), limit, error)))
            except ConfigError:
                continue
        menu = self.menus[0]
        found += uniform(menu, limit, error)
        if limit is not None:
            found += [c for c in self.rivals if any(c) and menu.cost(c) <= limit * (1 + 1e-9)]
        unique = list(dict.fromkeys(found))
        good = [c for c in unique if error is not None and self.error(c) <= error]
        return min(good, key=menu.cost) if good else min(unique, key=self.error)
