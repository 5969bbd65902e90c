"""What a patch does to a model at one size: every layer, before and after, in numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from ._errors import ConfigError
from .adapters import families, skeleton
from .adapters.classic import PERTURBED
from .adapters.joint_plan import JointLayer, JointPlan
from .adapters.plan import Layer, Plan, Rule
from .adapters.skeleton import Cost
from .config import expect, in_window, is_int
from .flops import joint_attention_flops, self_attention_flops
from .patch import find_denoisers
from .scales import latent_frames, spatial_scale, temporal_scale
from .select import kept_tokens
from .sequence import joint_tokens
from .tuned import Options, expect_options

_LONG = 1000  # steps, of which a window has its share to three digits


@dataclass(frozen=True)
class LayerSummary:
    """One self-attention layer.

    Attributes:
        name: dotted path in the denoiser.
        grid: (height, width) of its tokens; None where it has none.
        factor: linear; 1 is dense.
        keys_before: N, image tokens only.
        keys_after: kept, grid and anchors.
        flops_before: projections and attention, of one denoiser call.
        flops_after: the same when patched, at the steps from ``start`` to ``stop``.
        note: why it is left alone, or empty.
        start: fraction of the schedule from which it is patched.
        stop: fraction from which it is dense again.
    """

    name: str
    grid: tuple[int, int] | None
    factor: int
    keys_before: int
    keys_after: int
    flops_before: int
    flops_after: int
    note: str = ""
    start: float = 0.0
    stop: float = 1.0


@dataclass(frozen=True)
class Summary:
    """A model at one size; ``str()`` is a table, :meth:`to_dict` is JSON-ready.

    Attributes:
        model: class name of the denoiser, and of ControlNets that are patched or would be.
        patched: whether a patch is at work, or this is what the config would do.
        config: the options, or None for a dense model.
        height: of the image, pixels.
        width: of the image, pixels.
        batch: of the denoiser call; 2 is one image with classifier-free guidance.
        layers: every self-attention layer.
        step_flops_before: of one whole denoiser call and of those ControlNets, dense.
        frames: of a film; None for still pictures, or where a usual number was taken.
    """

    model: str
    patched: bool
    config: dict[str, Any] | None
    height: int
    width: int
    batch: int
    layers: list[LayerSummary]
    step_flops_before: int
    frames: int | None = None

    @property
    def step_flops_after(self) -> int:
        """Of one denoiser call inside the step window, or inside all of them."""
        return self.step_flops_before - sum(
            layer.flops_before - layer.flops_after for layer in self.layers
        )

    @property
    def predicted_speedup(self) -> float:
        """Dense over patched FLOPs of one denoiser call inside the step window."""
        return self.step_flops_before / self.step_flops_after

    def speedup_over(self, steps: int, made: int | None = None) -> float:
        """Dense over patched FLOPs of a schedule; steps outside a window are dense.

        Args:
            steps: of the schedule, >= 1.
            made: how many of the last ones are made, as from a picture; None means all.
        """
        made = steps if made is None else made
        saved = sum(
            (layer.flops_before - layer.flops_after)
            * sum(in_window(i, steps, layer.start, layer.stop) for i in range(steps - made, steps))
            for layer in self.layers
        )
        total = self.step_flops_before * made
        return total / (total - saved)

    @property
    def windowed(self) -> bool:
        """Whether layers are coarse in a part of the schedule only."""
        return any(
            layer.keys_after < layer.keys_before and (layer.start, layer.stop) != (0.0, 1.0)
            for layer in self.layers
        )

    @property
    def changes_anything(self) -> bool:
        """Whether any layer has fewer keys at this size."""
        return any(layer.keys_after < layer.keys_before for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON types."""
        return {
            **asdict(self),
            "step_flops_after": self.step_flops_after,
            "predicted_speedup": self.predicted_speedup,
            "schedule_speedup": self.speedup_over(_LONG),
        }

    def __str__(self) -> str:
        state = "patched" if self.patched else "not patched"
        size = f"{self.width} x {self.height} pixels"
        size += "" if self.frames is None else f", {self.frames} frames"
        head = f"{self.model}, {size}, batch {self.batch}, {state}"
        rows: list[tuple[str, ...]] = [("layer", "grid", "factor", "keys", "GFLOP", "")]
        rows += [_row(layer) for layer in self.layers]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([head, *table, self._foot()])

    def _foot(self) -> str:
        before, after = self.step_flops_before / 1e9, self.step_flops_after / 1e9
        foot = (
            f"one step: {before:,.1f} -> {after:,.1f} GFLOP, predicted speed-up "
            f"{self.predicted_speedup:.2f}"
        )
        if self.windowed:
            foot += f" where all is active, {self.speedup_over(_LONG):.2f} over a whole schedule"
        if self.config is not None and not self.changes_anything:
            foot += "\nthe patch changes nothing at this size"
            if "budget" in self.config and self.config["factor"] is None:
                foot += "; a smaller budget, or factor=2, would"
        return foot


def summary(
    model: Any,
    config: Options | None = None,
    *,
    height: int | None = None,
    width: int | None = None,
    batch: int = 2,
    scale: int | None = None,
    frames: int | None = None,
    frame_scale: int | None = None,
) -> Summary:
    """Lists every self-attention layer with grid, keys, FLOPs, and the predicted speed-up.

    Runs the architecture once on the meta device: no weights are read, nothing is computed.

    Args:
        model: a pipeline or a denoiser, patched or not.
        config: what to predict for an un-patched model; None describes it as it is.
        height: of the image in pixels; None means the model's native size.
        width: likewise.
        batch: of the denoiser call; 2 is one image with classifier-free guidance.
        scale: pixels a latent pixel, per side; None means the pipeline's own, and 8 for a denoiser
            on its own, as in Stable Diffusion.
        frames: of a film; None means a usual number.
        frame_scale: frames a latent frame; None means the pipeline's own, and 1 for a denoiser.

    Raises:
        ConfigError: the model has no native size and none was given, or it is too small; a number
            is below 1; ``config`` is no such object.
        UnsupportedModelError: no adapter knows the model.
        NothingPatchedError: the config matches no layer.
    """
    expect_options(config)
    counts = {"batch": batch, "scale": scale, "frames": frames, "frame_scale": frame_scale}
    for name, count in counts.items():
        expect(count is None or is_int(count, 1), f"{name}, an integer >= 1", count)
    scale = scale if scale is not None else spatial_scale(model)
    latents = frames and latent_frames(frames, frame_scale or temporal_scale(model))
    plans = _called(model, config)
    denoiser = next(iter(plans))
    families.expect_supported(denoiser)
    height, width = _size(denoiser, height, width, scale)
    layers: list[LayerSummary] = []
    total = 0
    # PAG pipelines put their processors in for the time of a call only
    perturbed = getattr(model, "pag_applied_layers", ())
    for each, plan in plans.items():
        cost = skeleton.measure(each, height // scale, width // scale, batch, latents)
        total += cost.flops
        layers += _layers(
            plan or families.make_plan(each, config), cost, perturbed if each is denoiser else ()
        )
    patched = any(plan is not None for plan in plans.values())
    used = next((plan.config for plan in plans.values() if plan is not None), config)
    return Summary(
        model=" + ".join(type(each).__name__ for each in plans),
        patched=patched,
        config=None if used is None else used.to_dict(),
        height=height,
        width=width,
        batch=batch,
        layers=layers,
        step_flops_before=total,
        frames=frames,
    )


def _called(model: Any, config: Options | None) -> dict[nn.Module, Plan | None]:
    """What runs for one step, the denoiser first, each with the plan that is at work on it.

    Of two denoisers (Wan 2.2) a step runs one. A ControlNet is shown where it is patched, or would
    be.
    """
    both = find_denoisers(model)
    nets = [each for each in find_denoisers(model, controlnet=True) if each not in both]
    plans = {each: families.installed_plan(each) for each in (*both, *nets)}
    denoiser = next((each for each in both if plans[each]), both[0])
    wanted = getattr(config, "controlnet", False) and not any(plans.values())
    return {
        each: plans[each] for each in (denoiser, *nets) if each is denoiser or wanted or plans[each]
    }


def _size(denoiser: Any, height: int | None, width: int | None, scale: int) -> tuple[int, int]:
    native = getattr(denoiser.config, "sample_size", None)
    if native is None and (height is None or width is None):
        raise ConfigError(
            f"{type(denoiser).__name__} has no native size; give height and width in pixels"
        )
    rows, columns = (native, native) if isinstance(native, int) else (native or (0, 0))
    height = rows * scale if height is None else height
    width = columns * scale if width is None else width
    expect(
        all(is_int(side, scale) and side % scale == 0 for side in (height, width)),
        f"sides that are multiples of {scale} pixels",
        (width, height),
    )
    return height, width


def _layers(plan: Plan, cost: Cost, perturbed: Iterable[str]) -> list[LayerSummary]:
    """One row a layer; ``perturbed`` are patterns of names, as diffusers matches them."""
    rows = []
    for layer in plan.layers:
        if any(re.search(pattern, layer.name) for pattern in perturbed):
            layer = replace(layer, rule=None, reason=PERTURBED)
        rows.append(layer_at(plan, layer, cost))
    rows += [
        LayerSummary(name, None, 1, 0, 0, 0, 0, reason) for name, reason in plan.left_alone.items()
    ]
    return rows


def layer_at(plan: Plan, layer: Layer, cost: Cost) -> LayerSummary:
    """A layer of a plan, at the size of a dense call."""
    rule = layer.rule
    name = layer.name.replace("_orig_mod.", "")  # blocks in the wrapper of torch.compile
    seen = cost.layers[name]
    factor = layer.factor(seen.grid)
    if isinstance(layer, JointLayer) and isinstance(cost.plan, JointPlan):
        assert isinstance(plan, JointPlan)
        boxes = plan.boxes(layer, cost.plan.shapes)
        image, keys = joint_tokens(boxes, rule.anchors if rule else 0)
        queries = seen.tokens if layer.text_asks else image
        before, after = (
            seen.batch * _joint_flops(layer, queries, seen.tokens - image + kept)
            for kept in (image, keys)
        )
    else:
        image = seen.grid.tokens
        keys = image if rule is None else kept_tokens(seen.grid, factor, rule.anchors, rule.cells)
        before, after = (
            seen.batch
            * self_attention_flops(image, kept, layer.channels, layer.inner_dim, layer.key_width)
            for kept in (image, keys)
        )
    note = layer.reason or (str(rule or "") if keys == image else _how(rule))
    return LayerSummary(
        name,
        (seen.grid.height, seen.grid.width),
        factor,
        image,
        keys,
        before,
        after,
        note,
        *(rule.window if rule else (0.0, 1.0)),
    )


def _how(rule: Rule | None) -> str:
    return "cell averages" if rule is not None and rule.method == "mean" else ""


def _joint_flops(layer: JointLayer, queries: int, keys: int) -> int:
    projected = keys if layer.selects_first else queries
    return joint_attention_flops(
        queries, keys, projected, layer.channels, layer.inner_dim, layer.key_width
    )


def _row(layer: LayerSummary) -> tuple[str, ...]:
    if layer.grid is None:
        return (layer.name, "", "", "", "", layer.note)
    return (
        layer.name,
        f"{layer.grid[0]}x{layer.grid[1]}",
        str(layer.factor),
        f"{layer.keys_before} -> {layer.keys_after}",
        f"{layer.flops_before / 1e9:,.2f} -> {layer.flops_after / 1e9:,.2f}",
        layer.note,
    )
