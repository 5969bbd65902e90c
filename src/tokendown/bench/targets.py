"""What is benchmarked: a published shape, a pipeline's denoiser, or a pipeline as a whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from .._errors import ConfigError, RunError
from ..adapters import skeleton
from ..adapters.families import installed_plan
from ..adapters.schedule import Follower, release
from ..counting import call
from ..inputs import denoiser_inputs
from ..models.sources import need_diffusers, out_of_memory, pick_device, pick_dtype
from ..patch import find_denoisers
from ..scales import spatial_scale
from .jobs import Job
from .machine import hardware, threads
from .shapes import find_shape
from .stacks import StackClock, extrapolate

Work = Callable[[nn.Module], dict[str, float]]
"""One call of a denoiser, or of the pipeline around it; may return further seconds by name."""
_PROMPT = "a lighthouse on a cliff, sunset"
_SMALL = 16  # latent pixels a side of the call that warms a CPU up


class Target:
    """A step of a denoiser with random weights in a published shape.

    Args:
        job: what was asked for.

    Raises:
        ConfigError: no such device, dtype or shape.
    """

    def __init__(self, job: Job) -> None:
        need_diffusers()
        self.job = job
        self.device = pick_device(job.device)
        self.dtype = pick_dtype(job.dtype, self.device)

    @cached_property
    def denoiser(self) -> Any:
        """With weights, on its device."""
        assert self.job.shape is not None
        shape = find_shape(self.job.shape)
        return shape.with_random_weights(self.device, self.dtype, self.job.blocks)

    @cached_property
    def skeleton(self) -> Any:
        """The whole architecture without weights, whatever part of it is timed."""
        assert self.job.shape is not None
        return find_shape(self.job.shape).on_meta()

    @cached_property
    def timed_skeleton(self) -> Any:
        """The part of it that is timed."""
        if self.job.shape is None or self.job.blocks is None:
            return self.skeleton
        return find_shape(self.job.shape).on_meta(self.job.blocks)

    @cached_property
    def scale(self) -> int:
        """Pixels a latent pixel, per side."""
        assert self.job.shape is not None
        return find_shape(self.job.shape).scale

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) in pixels."""
        assert self.job.shape is not None
        usual = find_shape(self.job.shape).size
        return self.job.sizes or ((usual,) if usual else ())

    def key(self, width: int, height: int) -> dict[str, Any]:
        """What tells this group of cells from others, see ``cells.GROUP``."""
        job = self.job
        return {
            "target": job.target, "what": "picture" if job.whole else "step",
            "width": width, "height": height, "batch": job.batch, "steps": job.steps,
            "dtype": str(self.dtype).removeprefix("torch."), "device": self.device.type,
            "hardware": hardware(self.device), "threads": threads(self.device),
            "compile": job.compile, "backend": job.backend, "blocks": job.blocks,
        }  # fmt: skip

    def latent(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) of the latent.

        Raises:
            ConfigError: the size is no multiple of what the model needs.
        """
        patch = self.job.shape and find_shape(self.job.shape).patch
        patch = patch or getattr(self.skeleton.config, "patch_size", None)
        needs = self.scale * (patch if isinstance(patch, int) else 1)
        if width % needs or height % needs or not width or not height:
            raise ConfigError(
                f"{width}x{height}: {self.job.target} needs sides that are multiples of {needs}"
            )
        return height // self.scale, width // self.scale

    def inputs(self, model: Any, rows: int, columns: int) -> dict[str, Any]:
        """Of one step, the sample first; noise, where zeros would compute faster than pictures.

        On the meta device shapes only.
        """
        weight = next(model.parameters())
        device, dtype = weight.device, weight.dtype
        made = denoiser_inputs(
            model, rows, columns, batch=self.job.batch, device=device, dtype=dtype
        )
        if device.type != "meta":
            generator = torch.Generator(device).manual_seed(0)
            for name, value in made.items():
                if name.endswith("_ids"):  # positions
                    continue
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    made[name] = value.normal_(generator=generator)
        return made

    def work(self, width: int, height: int) -> Work:
        """The call that is timed at one size."""
        return self._step(*self.latent(width, height))

    def small_work(self, width: int, height: int) -> Work | None:
        """A call at a fraction of the size, or None where that makes no difference."""
        rows, columns = self.latent(width, height)
        return None if min(rows, columns) <= _SMALL else self._step(_SMALL, _SMALL)

    def _step(self, rows: int, columns: int) -> Work:
        inputs = self.inputs(self.denoiser, rows, columns)
        depths = find_shape(self.job.shape).depths if self.job.shape and self.job.blocks else {}

        def step(denoiser: Any) -> dict[str, float]:
            if not depths:
                call(denoiser, inputs)
                return {}
            with StackClock(denoiser, list(depths), self.device) as clock:
                total = clock.time(lambda: call(denoiser, inputs))
            timed = {name: len(getattr(denoiser, name)) for name in depths}
            return {"whole_model": extrapolate(total, clock.seconds, timed, depths)}

        return step


class PipelineTarget(Target):
    """A step of a pipeline's denoiser."""

    @cached_property
    def pipe(self) -> Any:
        from ..models.loading import load_pipeline

        return load_pipeline(self.job.model, device=self.device, dtype=self.dtype)

    @cached_property
    def denoiser(self) -> Any:
        return find_denoisers(self.pipe)[0]

    @cached_property
    def skeleton(self) -> Any:
        return skeleton.on_meta(self.denoiser)

    @cached_property
    def scale(self) -> int:
        return spatial_scale(self.pipe)

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        if self.job.sizes:
            return self.job.sizes
        native = getattr(self.denoiser.config, "sample_size", None)
        if native is None:
            raise ConfigError(f"{self.job.model} has no native size; give one with --size")
        rows, columns = (native, native) if isinstance(native, int) else native
        return ((columns * self.scale, rows * self.scale),)


class PictureTarget(PipelineTarget):
    """A whole picture: text encoder, all steps, decoder."""

    @cached_property
    def _opened(self) -> tuple[Any, Any]:
        from ..generate import Request, open_pipeline

        width, height = self.job.sizes[0] if self.job.sizes else (None, None)
        dtype = str(self.dtype).removeprefix("torch.")
        request = Request(
            _PROMPT, model=self.job.model, width=width, height=height, steps=self.job.steps,
            config=None, device=str(self.device), dtype=dtype,
        )  # fmt: skip
        return open_pipeline(request)

    @cached_property
    def pipe(self) -> Any:
        return self._opened[0]

    def work(self, width: int, height: int) -> Work:
        """Also tells the seconds of the denoising alone."""
        return self._picture(width, height, None)

    def small_work(self, width: int, height: int) -> Work | None:
        """One step at full size: the decoder is part of what is to be warm."""
        return self._picture(width, height, 1)

    def _picture(self, width: int, height: int, steps: int | None) -> Work:
        from ..sampling import sample
        from ..sizes import fitting_size

        pipe, request = self._opened
        request = replace(request, width=width, height=height, steps=steps or request.steps)
        fitting_size(pipe, request)

        def make(denoiser: Any) -> dict[str, float]:
            with _swapped(pipe, denoiser), _followed(pipe, denoiser):
                picture = sample(pipe, request, None)
            return {"denoising": picture.denoising_seconds}

        return make


@contextlib.contextmanager
def _swapped(pipe: Any, denoiser: Any) -> Iterator[None]:
    """The pipeline with another denoiser, which a compiled copy is."""
    before = find_denoisers(pipe)[0]
    name = "unet" if getattr(pipe, "unet", None) is before else "transformer"
    if denoiser is before:
        yield
        return
    setattr(pipe, name, denoiser)
    try:
        yield
    finally:
        setattr(pipe, name, before)


@contextlib.contextmanager
def _followed(pipe: Any, denoiser: Any) -> Iterator[None]:
    """A patch that was put into a denoiser alone goes with the steps of the pipeline."""
    plan = installed_plan(denoiser)
    if plan is None or not plan.clocks:
        yield
        return
    follower = Follower(pipe, plan.clocks)
    try:
        yield
    finally:
        release(follower.scheduler, plan.clocks)


def open_target(job: Job) -> Target:
    """The target of a job; weights are made or loaded when they are first needed.

    Raises:
        ConfigError: no such device, dtype or shape.
        LoadError: diffusers is not installed.
    """
    if job.shape is not None:
        return Target(job)
    return PictureTarget(job) if job.whole else PipelineTarget(job)


def load(target: Target) -> Any:
    """The denoiser with its weights.

    Raises:
        RunError: no memory for it.
        LoadError: it cannot be loaded.
    """
    try:
        return target.denoiser
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise RunError(
            f"no memory on {target.device} for the weights of {target.job.target} as "
            f"{target.dtype}; try --dtype bfloat16, or --blocks 1 where a shape allows it"
        ) from error
