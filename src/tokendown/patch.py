"""Apply and remove: two verbs, safe twice."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from ._errors import ConfigError, UnsupportedModelError
from .adapters import families, schedule, transformers
from .adapters.joint_plan import JointPlan
from .adapters.plan import Plan
from .config import Method, PatchConfig, Preset, expect, is_int
from .grid import Grid
from .tuned import Options, TunedPlan, expect_options

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

# Wan 2.2 and Ideogram 4 have two.
_DENOISERS = ("unet", "transformer", "transformer_2", "unconditional_transformer")


class Patch:
    """A patch at work; a context manager that removes it at the end, also after an error.

    Attributes:
        config: the options in use.
        models: the patched denoisers.
    """

    def __init__(
        self, owner: Any, parts: list[nn.Module], plans: list[Plan], config: Options
    ) -> None:
        """Puts plans to work; ``apply_patch`` makes them.

        Args:
            owner: the pipeline or the denoiser.
            parts: its denoisers, with the wrappers around them.
            plans: of these, in their order.
            config: the options that they were made with.
        """
        self.models = [_unwrap(part) for part in parts]
        self.config = config
        self._plans = plans
        self._installed: list[tuple[nn.Module, Plan]] = []
        self._followers: list[schedule.Follower] = []
        for part, model, plan in zip(parts, self.models, plans, strict=True):
            self._install(owner, part, model, plan)

    def remove(self) -> None:
        """Restores the models exactly. Does nothing if this patch was removed or replaced."""
        for module, plan in self._installed:
            if any(plan is each for each in families.installed_plans(module)):
                families.uninstall(module)
        for follower in self._followers:
            follower.release()

    def set_progress(self, step: int, steps: int) -> None:
        """Tells a patch with a step window or jitter where a hand-written sampling loop is.

        Args:
            step: index of the coming step, from 0.
            steps: length of the schedule.

        Raises:
            ConfigError: the step is none of the schedule.
        """
        expect(
            is_int(steps, 1) and is_int(step, 0) and step < steps,
            "0 <= step < steps, integers",
            f"step={step!r}, steps={steps!r}",
        )
        for plan in self._plans:
            for clock in plan.clocks:
                clock.set(step, steps)

    def set_grid(self, *grids: tuple[int, int]) -> None:
        """Tells the size to a transformer that was compiled as a whole before it could be read.

        Needed only where positions come as tensors (the FLUX family), which a compiled model cannot
        read, and where a ControlNet runs layers of the transformer first. A wrong size is noticed
        on the device, and fails. Other models read their size at every call, whatever is said here.

        Args:
            *grids: (height, width) in tokens, of the picture and then of reference pictures. A
                token of FLUX is 16 x 16 pixels.

        Raises:
            ConfigError: no grid is given, or no model is a transformer with joint attention.
            GridError: a side is smaller than 1.
        """
        shapes = tuple((1, grid.height, grid.width) for grid in (Grid(*grid) for grid in grids))
        joint = [plan for plan in self._plans if isinstance(plan, JointPlan)]
        if not shapes or not joint:
            raise ConfigError(
                "expected at least one (height, width) in tokens, for a transformer; other models "
                "are read by themselves"
            )
        for plan in joint:
            plan.set_shapes(shapes)

    def __repr__(self) -> str:
        found = map(_coverage, self.models, self._plans)
        return f"<Patch: {'; '.join(found)}>"

    def __enter__(self) -> Self:
        if not any(plan.patched for plan in self._plans):
            raise ConfigError("this patch was removed; apply_patch makes another one")
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()

    def _install(self, owner: Any, part: nn.Module, model: nn.Module, plan: Plan) -> None:
        self._installed.append((part, plan))
        families.install(model, plan)
        if isinstance(plan, JointPlan):
            self._watch(owner, part, model, plan)
        if plan.clocks:
            self._follow(owner, {part, model}, plan)
        logger.info("%s", _coverage(model, plan))

    def _watch(self, owner: Any, part: nn.Module, model: nn.Module, plan: JointPlan) -> None:
        """Reads the grid where the model does not see its arguments itself, or not first."""
        if part is not model:
            transformers.watch(part, model, plan)
        for net in _borrowers(owner, model):
            self._installed.append((net, plan))
            transformers.watch(net, model, plan, net)

    def _follow(self, owner: Any, modules: set[nn.Module], plan: Plan) -> None:
        """Lets a plan know the step, where what was patched has a scheduler."""
        if _scheduler_of(owner) is None:
            logger.info(
                "no scheduler tells the step, as that of a pipeline would: kept tokens stay "
                "the same until patch.set_progress(step, steps) does"
            )
            return
        follower = schedule.Follower(owner, plan.clocks)
        self._followers.append(follower)
        for module in modules:
            module.register_forward_pre_hook(follower, with_kwargs=True, prepend=True)


def apply_patch(
    model: Any,
    config: Options | None = None,
    /,
    *,
    preset: Preset = "auto",
    factor: int | Mapping[int, int] | None = None,
    budget: int | None = None,
    anchors: int | None = None,
    method: Method | None = None,
    start: float = 0.0,
    stop: float = 1.0,
    controlnet: bool = False,
    multiplicity: bool = True,
    references: int = 1,
    temporal_factor: int = 1,
) -> Patch:
    """Lets self-attention use fewer keys and values, in place. Applying again replaces.

    Args:
        model: a diffusers pipeline or its denoiser (U-Net or transformer), also in the wrappers of
            ``torch.compile``, ``DistributedDataParallel`` and peft.
        config: all options as one object, instead of by name; or a :class:`TunedPlan`, which says
            it for every layer.
        preset: "auto", or "paper" for ToDo as published. This and the following are the fields of
            :class:`PatchConfig`, which says more about each.
        factor: linear, >= 1, instead of the preset's choice; or a dict from downsampling to factor.
        budget: most grid keys that a layer may keep, >= 1; None means the preset's own.
        anchors: tokens kept besides the grid, >= 0; None means 32, or 0 with preset "paper".
        method: "nearest", "mean" or "jitter" (another token of a cell at every step); None means
            "jitter", or "nearest" with preset "paper".
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
        UnsupportedModelError: no adapter knows the model, or the plan was made for another one.
        NothingPatchedError: no layer matches; the message says where self-attention is.

    Source: arXiv:2402.13573 for the grid; docs/how-it-works.md for anchors and multiplicities.
    """
    options = PatchConfig(
        preset, factor, budget, anchors, method, start, stop, controlnet,
        multiplicity=multiplicity, references=references, temporal_factor=temporal_factor,
    )  # fmt: skip
    expect_options(config)
    if config is not None and options != PatchConfig():
        raise ConfigError(f"expected a PatchConfig or options by name, got both: {options}")
    config = config or options
    controlnet = not isinstance(config, TunedPlan) and config.controlnet
    parts = _find_parts(model, controlnet)
    plans = [families.make_plan(_unwrap(part), config) for part in parts]
    remove_patch(model)  # not before: what cannot be planned leaves everything as it is
    try:
        return Patch(model, parts, plans, config)
    except BaseException:  # Ctrl-C as well
        remove_patch(model)
        raise


def remove_patch(model: Any) -> None:
    """Restores a pipeline or denoiser exactly; needs no handle, and does nothing if unpatched.

    A pipeline without a denoiser is one that is not patched.

    Args:
        model: what was patched, or a copy of it.

    Raises:
        UnsupportedModelError: not a pipeline and not a torch module.
    """
    for module in _find_parts(model, controlnet=True, needed=False):
        families.uninstall(module)
    scheduler = _scheduler_of(model)
    if scheduler is not None:
        schedule.release(scheduler)


def is_patched(model: Any) -> bool:
    """Whether a pipeline (its denoiser or a ControlNet of it) or a denoiser is patched.

    Raises:
        UnsupportedModelError: not a pipeline and not a torch module.
    """
    return any(
        families.installed_plan(_unwrap(part)) is not None
        for part in _find_parts(model, controlnet=True, needed=False)
    )


def find_denoisers(model: Any, controlnet: bool = False) -> list[nn.Module]:
    """The networks that a patch of ``model`` goes into, without the wrappers around them.

    Args:
        model: a pipeline or a denoiser.
        controlnet: also the ControlNets of a pipeline.

    Raises:
        UnsupportedModelError: neither a torch module nor a pipeline with a denoiser.
    """
    return [_unwrap(part) for part in _find_parts(model, controlnet)]


def _find_parts(model: Any, controlnet: bool, needed: bool = True) -> list[nn.Module]:
    """The same with the wrappers on; none of a pipeline without a denoiser, if none is needed."""
    if isinstance(model, nn.Module):
        return [model]
    found = [part for name in _DENOISERS if (part := getattr(model, name, None)) is not None]
    if not found and (needed or not hasattr(model, "components")):
        raise UnsupportedModelError(
            "expected a diffusers pipeline with a unet or a transformer, or such a denoiser; "
            f"got {type(model).__name__}"
        )
    if controlnet and (nets := getattr(model, "controlnet", None)) is not None:
        found += list(getattr(nets, "nets", [nets]))
    return list(dict.fromkeys(found))  # a pipeline may have one in two places


def _borrowers(owner: Any, model: nn.Module) -> list[nn.Module]:
    """ControlNets of a pipeline that run blocks of its transformer before that itself (Z-Image)."""
    net = None if isinstance(owner, nn.Module) else getattr(owner, "controlnet", None)
    if not isinstance(net, nn.Module):
        return []
    own = set(model.modules())
    return [net] if any(module in own for module in net.modules()) else []


def _coverage(model: nn.Module, plan: Plan) -> str:
    """How much of a model is patched, in words; none of it once the patch is gone."""
    count = len(plan.layers) + len(plan.left_alone)
    return f"{type(model).__name__}: {len(plan.patched)} of {count} self-attention layers patched"


def _unwrap(module: Any) -> nn.Module:
    """Without the wrappers of torch.compile, of data parallelism and of peft."""
    while True:
        if "_orig_mod" in getattr(module, "_modules", {}):
            module = module._orig_mod
        elif isinstance(module, nn.parallel.DistributedDataParallel):
            module = module.module
        elif hasattr(module, "get_base_model"):
            module = module.get_base_model()
        else:
            return module  # type: ignore[no-any-return]


def _scheduler_of(model: Any) -> Any:
    return None if isinstance(model, nn.Module) else getattr(model, "scheduler", None)
