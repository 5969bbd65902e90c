"""The real error of whole pictures, on prompts that nothing was chosen on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

from ..generate import summary_of
from ..patch import apply_patch
from ..pictures import as_tensor
from ..quality import psnr, ssim
from ..request import Request
from ..rounding import significant
from ..sampling import Picture, sample
from ..tuned import TunedPlan
from .effects import picture_error
from .rivals import Rival, tome_speedup, tomes


@dataclass(frozen=True)
class Entry:
    """One method.

    Attributes:
        name: for people.
        speedup: dense over its FLOPs of the whole schedule, predicted.
        error: squared difference of the final latents over the variance of the dense ones, mean.
        errors: of each held-out prompt.
        psnr_db: mean of the pictures that differ from the dense ones; None where none does.
        ssim: mean.
        seconds: of the denoising, mean; measured one after the other, so read them with care.
        predicted_error: by the additive model; None where it says nothing.
    """

    name: str
    speedup: float
    error: float
    errors: tuple[float, ...]
    psnr_db: float | None
    ssim: float
    seconds: float
    predicted_error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, rounded."""
        return {
            name: [significant(x, 4) for x in value]
            if isinstance(value, tuple)
            else (significant(value, 4) if isinstance(value, float) else value)
            for name, value in asdict(self).items()
        }


def validate(
    pipe: Any,
    request: Request,
    prompts: Sequence[str],
    offset: int,
    rivals: Mapping[str, Rival],
    plans: Mapping[str, TunedPlan],
    tick: Callable[[], None],
) -> list[Entry]:
    """Dense, the presets, the plans and tomesd, each on every prompt.

    Args:
        pipe: not patched.
        request: size, steps, guidance, first seed.
        prompts: held out.
        offset: added to the seed, so that no noise was seen before.
        rivals: the presets.
        plans: name to plan.
        tick: called after each picture.
    """
    steps = request.steps or 1
    requests = [
        replace(request, prompt=prompt, seed=request.seed + offset + i, config=None)
        for i, prompt in enumerate(prompts)
    ]

    def pictures(context: Callable[[], Any]) -> list[Picture]:
        made = []
        for one in requests:
            with context():
                made.append(sample(pipe, one, None))
            tick()
        return made

    dense = pictures(nullcontext)
    entries = [_entry("dense", 1.0, dense, dense)]
    for rival in rivals.values():
        made = pictures(partial(apply_patch, pipe, rival.config))
        entries.append(_entry(rival.name, rival.summary.speedup_over(steps), made, dense))
    for name, plan in plans.items():
        what = summary_of(pipe, replace(request, config=plan))
        made = pictures(partial(apply_patch, pipe, plan))
        entries.append(_entry(name, what.speedup_over(steps), made, dense))
    finest = max(layer.factor for layer in rivals["paper"].summary.layers)
    for tome in tomes(pipe, finest):
        faster = tome_speedup(pipe, tome, request.height or 0, request.width or 0)
        if faster is not None:
            made = pictures(partial(tome.on, pipe))
            entries.append(_entry(tome.name, faster, made, dense))
    return entries


def _entry(name: str, speedup: float, made: Sequence[Picture], dense: Sequence[Picture]) -> Entry:
    pairs = list(zip(made, dense, strict=True))
    errors = tuple(picture_error(a, b) for a, b in pairs)
    pixels = [(as_tensor(a.image), as_tensor(b.image)) for a, b in pairs]
    decibels = [float(psnr(*pair)) for pair in pixels]
    finite = [value for value in decibels if value != float("inf")]
    return Entry(
        name,
        speedup,
        fmean(errors),
        errors,
        fmean(finite) if finite else None,
        fmean(float(ssim(*pair)) for pair in pixels),
        fmean(picture.denoising_seconds for picture in made),
    )
