"""From measurements on a few prompts to a plan that is checked on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from .._errors import ConfigError
from ..adapters import skeleton
from ..analyze import Analysis, analyze
from ..analyze.analysis import ANCHORS, FACTORS, LayerAnalysis
from ..analyze.measures import DENSE, Candidate
from ..patch import find_denoisers
from ..request import Request
from ..rounding import significant
from ..sampling import Picture, Progress
from ..scales import latent_frames, spatial_scale, temporal_scale
from ..tuned import TunedPlan
from . import costs as pricing
from .contest import Choices, Contest, readings
from .effects import Calls, measure_gains, measure_weights, middle_calls, size_of
from .menu import Menu, Target, build_menu
from .rivals import Rival, presets
from .validate import Entry, validate

_LEAST_TOKENS = 256  # of a grid whose layer is coarse in the reference plan for measuring


@dataclass(frozen=True)
class Tuning:
    """A plan and the evidence for it.

    Attributes:
        plan: what was chosen.
        analysis: of the prompts that it was chosen on.
        gains: name of a layer to one gain a part of the schedule, see :mod:`.effects`.
        weights: one a part.
        curve: predicted (speed-up, error) of the best plans, from dense on.
        entries: measured on held-out prompts, dense first.
        notes: what people should know.
    """

    plan: TunedPlan
    analysis: Analysis
    gains: dict[str, list[float]]
    weights: list[float]
    curve: list[tuple[float, float]]
    entries: list[Entry]
    notes: list[str] = field(default_factory=list)


def tune(
    pipe: Any,
    request: Request,
    prompts: Sequence[str],
    held_out: Sequence[str],
    target: Target,
    *,
    factors: Sequence[int] = FACTORS,
    anchors: Sequence[int] = ANCHORS,
    parts: int = 4,
    measure: bool = False,
    progress: Progress | None = None,
) -> Tuning:
    """Chooses factor, anchors and step window of every layer, and checks the choice.

    Args:
        pipe: a diffusers pipeline that makes pictures from text, not patched.
        request: as for ``analyze``.
        prompts: on which it is chosen.
        held_out: others, on which it is checked.
        target: what it is to reach.
        factors: >= 2, the presets' own are added.
        anchors: >= 0, likewise.
        parts: of the schedule, at most one a step; windows begin and end between them.
        measure: time the layers here instead of counting FLOPs.
        progress: called with the number of pictures made and of all, roughly.

    Raises:
        As analyze; ConfigError also where the target cannot be reached.
    """
    if not held_out or parts < 1:
        raise ConfigError("expected a held-out prompt and a part of the schedule at least")
    twice = sorted(set(prompts) & set(held_out))
    if twice:
        raise ConfigError(f"expected held-out prompts that are no others, got {twice[0]!r} in both")
    rivals = presets(pipe, request)
    ticker = _Ticker(progress, 3 * len(prompts) + parts * len(prompts) + 8 + 9 * len(held_out))
    analysis, dense, calls = _look(pipe, request, prompts, rivals, factors, anchors, parts, ticker)
    reference = _reference(analysis, rivals["auto"])
    gains = measure_gains(analysis, calls, reference)
    weights = measure_weights(analysis, gains, pipe, dense, reference, ticker.tick)
    prices = pricing.measured(analysis, calls) if measure else _flops(pipe, request, analysis)
    menu = build_menu(analysis, prices, gains, weights)
    flat = build_menu(analysis, prices, gains, [fmean(weights)] * len(weights))
    contest = Contest(
        pipe, readings(menu, flat), lambda choices: _plan(analysis, menu, choices),
        [tuple(menu.find(rival.candidates)) for rival in rivals.values()],
        dense, ticker.tick,
    )  # fmt: skip
    picked = _pick(menu, contest, rivals, target)
    plans = {name: _plan(analysis, menu, choices) for name, choices in picked.items()}
    entries = validate(pipe, request, held_out, len(prompts), rivals, plans, ticker.tick)
    known = {**picked, **{rivals[name].name: menu.find(rivals[name].candidates) for name in rivals}}
    entries = [
        replace(e, predicted_error=menu.error(known[e.name])) if e.name in known else e
        for e in entries
    ]
    made = _made(analysis, target, menu, picked["tuned"], entries, held_out)
    found = contest.error(picked["tuned"])
    made["error_on_prompts"] = significant(found, 4)
    plan = replace(plans["tuned"], made=made)
    ticker.finish()
    return Tuning(
        plan, analysis, gains, weights, _curve(menu), entries,
        [*_missed(target, found), *_notes(entries)],
    )  # fmt: skip


def _pick(
    menu: Menu, contest: Contest, rivals: dict[str, Rival], target: Target
) -> dict[str, Choices]:
    """What the target asks for, and for comparison the best at the cost of each preset."""
    limits = {name: menu.cost(menu.find(rival.candidates)) for name, rival in rivals.items()}
    limit = menu.dense / target.speedup if target.speedup else limits.get(target.like or "")
    picked = {"tuned": contest.settle(limit, target.error)}
    for name, most in limits.items():
        try:
            other = contest.settle(most, None)
        except ConfigError:
            continue  # by measured seconds the preset is no faster than dense
        if other not in picked.values():
            picked[f"tuned, cost of {name}"] = other
    return picked


def _look(
    pipe: Any,
    request: Request,
    prompts: Sequence[str],
    rivals: dict[str, Rival],
    factors: Sequence[int],
    anchors: Sequence[int],
    parts: int,
    ticker: _Ticker,
) -> tuple[Analysis, list[Picture], Calls]:
    """Dense pictures, what is seen meanwhile, and the inputs of a call in each part."""
    used = {each for rival in rivals.values() for each in rival.candidates.values()}
    calls = Calls(find_denoisers(pipe)[0])
    dense: list[Picture] = []

    def made(picture: Picture) -> None:
        calls.release()  # the first prompt is enough
        dense.append(picture)
        ticker.tick()

    try:
        analysis = analyze(
            pipe, request, prompts, made=made,
            factors=sorted({*factors, 2, *(each.factor for each in used if each.factor > 1)}),
            anchors=sorted({*anchors, *(each.anchors for each in used)}),
        )  # fmt: skip
    finally:
        calls.release()
    steps = len(analysis.timesteps)
    calls.keep(middle_calls(len(calls.kept), steps, min(parts, steps)))
    return analysis, dense, calls


def _reference(analysis: Analysis, auto: Rival) -> Any:
    """What is coarse while effects are measured: as auto, and factor 2 where that is dense."""
    chosen = {}
    for layer in analysis.layers:
        candidate = auto.candidates.get(layer.name, DENSE)
        if candidate.factor == 1 and layer.grid[0] * layer.grid[1] >= _LEAST_TOKENS:
            candidate = Candidate(2, auto.config.anchors or 0)
        chosen[layer.name] = candidate if candidate in layer.errors else DENSE
    if all(candidate.factor == 1 for candidate in chosen.values()):
        largest = max(layer.grid[0] * layer.grid[1] for layer in analysis.layers)
        raise ConfigError(
            f"nothing to tune at this size: the largest grid has {largest} tokens; try a larger one"
        )

    def choose_by_name(layer: LayerAnalysis) -> Candidate:
        return chosen[layer.name]

    return choose_by_name


def _flops(pipe: Any, request: Request, analysis: Analysis) -> pricing.Costs:
    denoiser: Any = find_denoisers(pipe)[0]
    scale, frames = spatial_scale(pipe), request.frames
    height, width = size_of(analysis)[::-1]
    latents = frames and latent_frames(frames, temporal_scale(pipe))
    cost = skeleton.measure(denoiser, height // scale, width // scale, 2, latents)
    return pricing.predicted(analysis, denoiser, cost)


def _plan(analysis: Analysis, menu: Menu, choices: Choices) -> TunedPlan:
    layers = tuple(options[i] for options, i in zip(menu.options, choices, strict=True))
    return TunedPlan(analysis.model, layers, (size_of(analysis),))


def _curve(menu: Menu) -> list[tuple[float, float]]:
    """At most a hundred places of the front."""
    front = menu.front()
    every = max(1, len(front.costs) // 100)
    spent = menu.fixed + front.costs
    return [
        (menu.dense / cost, error)
        for cost, error in zip(spent[::every].tolist(), front.errors[::every].tolist(), strict=True)
    ]


def _made(
    analysis: Analysis,
    target: Target,
    menu: Menu,
    choices: Choices,
    entries: list[Entry],
    held_out: Sequence[str],
) -> dict[str, Any]:
    """What goes into the plan for people to read."""
    return {
        "by": "tokendown tune",
        "model": analysis.request["model"],
        "steps": analysis.request["steps"],
        "target": {k: v for k, v in vars(target).items() if v is not None},
        "cost": menu.unit,
        "predicted_speedup": round(menu.dense / menu.cost(choices), 4),
        "predicted_error": significant(menu.error(choices), 4),
        "prompts": list(analysis.prompts),
        "held_out": list(held_out),
        "held_out_results": [entry.to_dict() for entry in entries],
        "dominates": dominated(entries),
        "better_on": better_on(entries),
    }


def dominated(entries: Sequence[Entry]) -> list[str]:
    """What is no faster than the tuned plan and has more error, on the held-out prompts."""
    tuned = next(entry for entry in entries if entry.name == "tuned")
    return [
        entry.name
        for entry in entries
        if not entry.name.startswith("tuned")
        and entry.error > tuned.error
        and entry.speedup <= tuned.speedup * (1 + 1e-6)
    ]


def better_on(entries: Sequence[Entry]) -> dict[str, int]:
    """On how many of the held-out prompts the tuned plan has less error than each of the others."""
    tuned = next(entry for entry in entries if entry.name == "tuned")
    return {
        entry.name: sum(a < b for a, b in zip(tuned.errors, entry.errors, strict=True))
        for entry in entries
        if entry.name != "dense" and not entry.name.startswith("tuned")
    }


def _missed(target: Target, error: float) -> list[str]:
    """Whether pictures of the prompts that it was chosen on are within the error asked for."""
    if target.error is None or error <= target.error:
        return []
    return [
        f"the error asked for, {target.error:.3g}, is not reached: this plan has {error:.3g} on "
        "the prompts that it was chosen on; allow more error, or smaller factors"
    ]


def _notes(entries: list[Entry]) -> list[str]:
    """Whether the plan keeps what it promises on held-out prompts."""
    by_name = {entry.name: entry for entry in entries}
    tuned, notes = by_name["tuned"], []
    for entry in entries:
        rival = entry.name.startswith(("paper", "auto")) and entry.speedup >= 0.999 * tuned.speedup
        if rival and entry.error < tuned.error:
            notes.append(
                f"{entry.name} is no slower and has less error on the held-out prompts "
                f"({entry.error:.3g}, tuned {tuned.error:.3g}): the additive model misleads here"
            )
    if tuned.predicted_error and tuned.error > 3 * tuned.predicted_error:
        times = tuned.error / tuned.predicted_error
        notes.append(f"the error on held-out prompts is {times:.1f} times the predicted one")
    return notes


class _Ticker:
    """Counts pictures for a progress bar."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def tick(self) -> None:
        self.done = min(self.done + 1, self.total - 1)
        if self.progress is not None:
            self.progress(self.done, self.total)

    def finish(self) -> None:
        if self.progress is not None:
            self.progress(self.total, self.total)
