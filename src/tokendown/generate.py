"""Pictures and films from a request: plain, patched, or dense beside patched from one seed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from ._errors import ConfigError, UnsupportedModelError
from .calls import call_parameters, check_pipeline, hints, image_name, uses_guidance
from .models import builtin
from .models.loading import fingerprint, load_pipeline
from .models.sources import pick_device, pick_dtype, versions
from .originals import sha256_of
from .patch import apply_patch
from .request import Request
from .sampling import Picture, Progress, nth, sample
from .sizes import fitting_fps, fitting_frames, fitting_size
from .summary import Summary, summary

__all__ = [
    "Comparison",
    "Picture",
    "Progress",
    "Request",
    "compare",
    "describe",
    "hints",
    "make_picture",
    "open_pipeline",
    "predict",
    "speedup_of",
]


@dataclass(frozen=True)
class Comparison:
    """The same request dense and patched, from one seed; speed-ups are of the denoising.

    Attributes:
        dense: without the patch.
        patched: with it.
        summary: of one denoiser call.
    """

    dense: Picture
    patched: Picture
    summary: Summary

    @property
    def measured_speedup(self) -> float:
        """Dense over patched seconds."""
        return self.dense.denoising_seconds / self.patched.denoising_seconds

    @property
    def predicted_speedup(self) -> float:
        """Dense over patched FLOPs, see :func:`speedup_of`."""
        return speedup_of(self.summary, self.patched)


def speedup_of(plan: Summary, picture: Picture) -> float:
    """Dense over patched FLOPs of the steps that made a picture; some may be out of a window."""
    steps, made = picture.request.steps or 1, len(picture.step_seconds)
    return plan.speedup_over(steps, made if 0 < made < steps else None)


def open_pipeline(request: Request) -> tuple[Any, Request]:
    """Loads the pipeline of a request and fills in the request's defaults.

    Raises:
        LoadError: the model or the LoRA cannot be loaded.
        ConfigError: the pipeline does not take what the request has, needs what it has not, or
            the size does not suit it.
        RunError: out of memory.
    """
    device = pick_device(request.device)
    dtype = pick_dtype(request.dtype, device)
    pipe = load_pipeline(
        request.model, device=device, dtype=dtype, base=request.base, lora=request.lora
    )
    pipe = _taking_pictures(pipe, request)
    check_pipeline(pipe, request)
    known = call_parameters(pipe)
    steps, guidance = request.steps, request.guidance
    if steps is None and request.model == builtin.NAME:
        steps = builtin.STEPS
    if steps is None:
        steps = known["num_inference_steps"].default
    if guidance is None and request.model == builtin.NAME:
        guidance = builtin.GUIDANCE
    if guidance is None and uses_guidance(pipe):
        guidance = known["guidance_scale"].default
    request = _with_hashes(request)
    width, height = fitting_size(pipe, request)
    dtype_name = str(dtype).removeprefix("torch.")
    return pipe, replace(
        request, steps=steps, guidance=guidance, width=width, height=height,
        device=str(device), dtype=dtype_name,
        frames=fitting_frames(pipe, request), fps=fitting_fps(pipe, request),
    )  # fmt: skip


def _taking_pictures(pipe: Any, request: Request) -> Any:
    """The pipeline, or where a picture was given and it takes none, its sibling that does."""
    if request.image is None or image_name(pipe) is not None:
        return pipe
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting

    kind = AutoPipelineForImage2Image if request.mask is None else AutoPipelineForInpainting
    try:
        sibling = kind.from_pipe(pipe)
    except ValueError:  # there is none; check_pipeline says so
        return pipe
    sibling.set_progress_bar_config(disable=True)
    return sibling


def _with_hashes(request: Request) -> Request:
    """The request with its files' content in it, where that was not recorded before."""
    image, mask = (
        sha256_of(path) if path is not None and known is None else known
        for path, known in (
            (request.image, request.image_sha256),
            (request.mask, request.mask_sha256),
        )
    )
    return replace(request, image_sha256=image, mask_sha256=mask)


def make_picture(pipe: Any, request: Request, progress: Progress | None = None) -> Picture:
    """One picture or film; the pipeline is as it was afterwards.

    Args:
        pipe: from :func:`open_pipeline`.
        request: likewise, its seed may differ.
        progress: called after every step.

    Raises:
        NothingPatchedError: no layer matches the patch options.
        ConfigError: the pipeline refuses its arguments.
        RunError: out of memory.
    """
    if request.config is None:
        return sample(pipe, request, progress)
    with apply_patch(pipe, request.config):
        return sample(pipe, request, progress)


def compare(
    pipe: Any, request: Request, progress: Progress | None = None, plan: Summary | None = None
) -> Comparison:
    """The request dense and then patched, from one seed, each after one step that is not timed.

    Args:
        pipe: from :func:`open_pipeline`.
        request: likewise; its ``config`` must not be None.
        progress: called after every step, with the steps of both pictures together.
        plan: what :func:`predict` said, if that was asked already.

    Raises:
        ConfigError: there is no patch to compare with.
        As make_picture.
    """
    if request.config is None:
        raise ConfigError("nothing to compare: --dense asks for no patch")
    plan = plan or summary_of(pipe, request)
    requests = [replace(request, config=None), request]
    for each in requests:
        make_picture(pipe, replace(each, steps=fewest_steps(pipe, request)))
    dense, patched = (
        make_picture(pipe, each, nth(progress, index, 2)) for index, each in enumerate(requests)
    )
    return Comparison(dense, patched, plan)


def predict(pipe: Any, request: Request) -> Summary | None:
    """What the patch does at this size; None for a dense request or where it is not known."""
    if request.config is None:
        return None
    try:
        return summary_of(pipe, request)
    except UnsupportedModelError:
        return None


def fewest_steps(pipe: Any, request: Request) -> int:
    """Steps of the shortest schedule that runs one: from an image only its last part is run."""
    strength = call_parameters(pipe).get("strength")
    if strength is None:
        return 1
    share: float = request.parameters.get("strength", strength.default)
    return math.ceil(1 / max(share, 1e-3))


def summary_of(pipe: Any, request: Request) -> Summary:
    """What the patch of a request does at its size."""
    return summary(
        pipe, request.config, height=request.height, width=request.width, frames=request.frames
    )


def describe(pipe: Any, picture: Picture) -> dict[str, Any]:
    """All that is needed to repeat a picture, as JSON types."""
    return {
        **picture.request.to_dict(),
        "pipeline": type(pipe).__name__,
        "scheduler": type(pipe.scheduler).__name__,
        "weights": fingerprint(pipe),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "seconds": round(picture.seconds, 3),
    }
