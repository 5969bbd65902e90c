"""Apply and remove: two verbs, safe twice."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from ._errors import ConfigError, UnsupportedModelError
from .adapters import families, schedule
from .adapters.plan import Clock, Plan
from .config import Method, PatchConfig, Preset

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

_DENOISERS = ("unet", "transformer")


class Patch:
    """A patch at work; a context manager that removes it at the end, also after an error.

    Attributes:
        config: the options in use.
        models: the patched denoisers.
    """

    def __init__(self, models: list[nn.Module], config: PatchConfig, scheduler: Any = None) -> None:
        self.models = models
        self.config = config
        self._scheduler = scheduler
        self._plans: list[Plan] = []

    def remove(self) -> None:
        """Restores the models exactly. Does nothing if this patch was removed or replaced."""
        for model, plan in zip(self.models, self._plans, strict=True):
            if families.installed_plan(model) is plan:
                families.uninstall(model)
        if self._scheduler is not None:
            schedule.release(self._scheduler)

    def set_progress(self, step: int, steps: int) -> None:
        """Tells a patch with a step window where a hand-written sampling loop is.

        Args:
            step: index of the coming step, from 0.
            steps: length of the schedule.
        """
        for plan in self._plans:
            if plan.clock is not None:
                plan.clock.set(step, steps)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()

    def _plan(self) -> None:
        for model in self.models:
            plan = families.make_plan(model, self.config)
            if not self.config.always_active:
                plan.clock = Clock(self.config.start, self.config.stop)
            self._plans.append(plan)

    def _install(self) -> None:
        for model, plan in zip(self.models, self._plans, strict=True):
            families.install(model, plan)
            if self._scheduler is not None and plan.clock is not None:
                schedule.follow(self._scheduler, plan.clock)
            logger.info(
                "%s: %d of %d self-attention layers patched",
                type(model).__name__, len(plan.patched), len(plan.layers) + len(plan.left_alone),
            )  # fmt: skip


def apply_patch(
    model: Any,
    config: PatchConfig | None = None,
    /,
    *,
    preset: Preset = "auto",
    factor: int | Mapping[int, int] | None = None,
    budget: int | None = None,
    anchors: int | None = None,
    method: Method = "nearest",
    start: float = 0.0,
    stop: float = 1.0,
    controlnet: bool = False,
    multiplicity: bool = True,
    references: int = 1,
    temporal_factor: int = 1,
) -> Patch:
    """Lets self-attention use fewer keys and values, in place. Applying again replaces.

    Args:
        model: a diffusers pipeline or its denoiser (U-Net or transformer).
        config: all options as one object, instead of by name.
        preset: "auto", or "paper" for ToDo as published. This and the following are the fields of
            :class:`PatchConfig`, which says more about each.
        factor: linear, >= 1, instead of the preset's choice; or a dict from downsampling to factor.
        budget: most grid keys that a layer may keep, >= 1; None means the preset's own.
        anchors: tokens kept besides the grid, >= 0; None means 32, or 0 with preset "paper".
        method: "nearest" or "mean".
        start: fraction of the schedule at which the patch becomes active.
        stop: fraction of the schedule from which it is inactive again.
        controlnet: patch the ControlNets of a pipeline as well.
        multiplicity: whether a kept key counts as often as it stands for an original token.
        references: linear factor for reference pictures in the sequence, >= 1.
        temporal_factor: keys of one of so many frames are kept in video transformers, >= 1.

    Returns:
        A handle; ``.remove()`` or leaving a ``with`` block restores the model exactly.

    Raises:
        ConfigError: options are out of range, or given in both forms.
        UnsupportedModelError: no adapter knows the model.
        NothingPatchedError: no layer matches; the message says where self-attention is.

    Source: arXiv:2402.13573 for the grid; docs/how-it-works.md for anchors and multiplicities.
    """
    options = PatchConfig(
        preset, factor, budget, anchors, method, start, stop, controlnet,
        multiplicity=multiplicity, references=references, temporal_factor=temporal_factor,
    )  # fmt: skip
    if config is not None and options != PatchConfig():
        raise ConfigError(f"expected a PatchConfig or options by name, got both: {options}")
    config = config or options
    patch = Patch(find_denoisers(model, config.controlnet), config, _scheduler_of(model))
    patch._plan()  # raises before anything is touched
    remove_patch(model)
    patch._install()
    return patch


def remove_patch(model: Any) -> None:
    """Restores a pipeline or denoiser exactly; needs no handle, and does nothing if unpatched.

    Args:
        model: what was patched, or a copy of it.

    Raises:
        UnsupportedModelError: not a pipeline and not a torch module.
    """
    for module in find_denoisers(model, controlnet=True):
        families.uninstall(module)
    scheduler = _scheduler_of(model)
    if scheduler is not None:
        schedule.release(scheduler)


def is_patched(model: Any) -> bool:
    """Whether a pipeline (its denoiser or a ControlNet of it) or a denoiser is patched."""
    return any(
        families.installed_plan(module) is not None
        for module in find_denoisers(model, controlnet=True)
    )


def find_denoisers(model: Any, controlnet: bool = False) -> list[nn.Module]:
    """The networks that a patch of ``model`` goes into, with ``torch.compile`` wrappers taken off.

    Args:
        model: a pipeline or a denoiser.
        controlnet: also the ControlNets of a pipeline.

    Raises:
        UnsupportedModelError: neither a torch module nor a pipeline with a denoiser.
    """
    if isinstance(model, nn.Module):
        return [_unwrap(model)]
    found = [_unwrap(part) for name in _DENOISERS if (part := getattr(model, name, None))]
    if not found:
        raise UnsupportedModelError(
            "expected a diffusers pipeline with a unet or a transformer, or such a denoiser; "
            f"got {type(model).__name__}"
        )
    if controlnet and (nets := getattr(model, "controlnet", None)) is not None:
        found += [_unwrap(net) for net in getattr(nets, "nets", [nets])]
    return found


def _unwrap(module: nn.Module) -> nn.Module:
    return getattr(module, "_orig_mod", module)


def _scheduler_of(model: Any) -> Any:
    return None if isinstance(model, nn.Module) else getattr(model, "scheduler", None)
