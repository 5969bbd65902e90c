"""One call of a diffusers pipeline: what it accepts, which sizes suit it, how long it takes."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ._errors import ConfigError, GenerateError, TokendownError
from .models.sources import first_line, out_of_memory
from .patch import find_denoisers
from .request import Request

Progress = Callable[[int, int], None]
"""Called after every step with the number of steps done and of all steps."""

_VIDEO = {"num_frames", "video_length"}


@dataclass(frozen=True)
class Picture:
    """One picture and how long it took.

    Attributes:
        image: RGB, 8 bits.
        request: with every default filled in.
        seconds: from the prompt to the picture.
        denoising_seconds: of all steps together, between the first call of the denoiser and the end
            of the last step.
        step_seconds: of each step; their spread tells how steady the machine was.
        note: a remark for people, or empty.
        latents: what was decoded to the image; None where the pipeline does not show it.
    """

    image: Image.Image
    request: Request
    seconds: float
    denoising_seconds: float
    step_seconds: tuple[float, ...] = ()
    note: str = ""
    latents: Tensor | None = field(default=None, repr=False, compare=False)


class _Clock:
    """Notes when the first call of the denoiser begins and when each step ends."""

    def __init__(self, device: torch.device, steps: int, progress: Progress | None) -> None:
        self.device = device
        self.steps = steps
        self.progress = progress
        self.begin: float | None = None
        self.ends: list[float] = []
        self.latents: Tensor | None = None

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    def before_call(self, *_: Any) -> None:
        if self.begin is None:
            self.begin = self.now()

    def after_step(self, _: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self.ends.append(self.now())
        self.latents = tensors.get("latents")
        if self.progress is not None:
            self.progress(min(step + 1, self.steps), self.steps)
        return tensors

    def step_seconds(self) -> tuple[float, ...]:
        if self.begin is None:
            return ()
        begins = [self.begin, *self.ends]
        return tuple(end - begin for begin, end in zip(begins, self.ends, strict=False))


def call_parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """What the pipeline's call accepts."""
    return inspect.signature(pipe.__call__).parameters


def check_pipeline(pipe: Any, request: Request) -> None:
    """Whether the pipeline makes still pictures from text, and takes the request's options.

    Raises:
        ConfigError: it does not.
    """
    known, kind = call_parameters(pipe), type(pipe).__name__
    if _VIDEO & set(known):
        raise ConfigError(
            f"{kind} makes video, and generate makes still pictures only so far; in Python, "
            "tokendown.apply_patch(pipe) works on it"
        )
    required = [
        name
        for name, parameter in known.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if "prompt" not in known or set(required) - {"prompt"}:
        needs = ", ".join(required) or "no prompt"
        raise ConfigError(f"{kind} does not make pictures from text alone (it takes {needs})")
    if request.negative_prompt and "negative_prompt" not in known:
        raise ConfigError(f"{kind} takes no negative prompt")
    if request.guidance is not None and "guidance_scale" not in known:
        raise ConfigError(f"{kind} takes no guidance")
    if request.steps is not None and "num_inference_steps" not in known:
        raise ConfigError(f"{kind} takes no number of steps")


def fitting_size(pipe: Any, request: Request) -> tuple[int, int]:
    """(width, height) in pixels: the request's, or the native size of the model.

    Raises:
        ConfigError: no multiple of what the model needs, or there is no native size.
    """
    denoiser: Any = find_denoisers(pipe)[0]
    scale = int(getattr(pipe, "vae_scale_factor", 8))
    if request.width is None or request.height is None:
        native = getattr(denoiser.config, "sample_size", None)
        native = native or getattr(pipe, "default_sample_size", None)
        if not native:
            raise ConfigError(f"{type(denoiser).__name__} has no native size; give --size")
        rows, columns = (native, native) if isinstance(native, int) else native
        return columns * scale, rows * scale
    width, height = request.width, request.height
    multiple = _multiple(pipe, denoiser, scale)
    if width < 1 or height < 1 or width % multiple or height % multiple:
        near = [max(1, round(side / multiple)) * multiple for side in (width, height)]
        raise ConfigError(
            f"{width}x{height}: this model needs sides that are multiples of {multiple}, "
            f"such as {near[0]}x{near[1]}"
        )
    return width, height


def sample(pipe: Any, request: Request, progress: Progress | None) -> Picture:
    """Calls the pipeline as it is; the patch is the caller's business.

    Raises:
        ConfigError: the pipeline refuses its arguments.
        GenerateError: out of memory, or the pipeline fails or returns no picture.
    """
    denoiser = find_denoisers(pipe)[0]
    clock = _Clock(next(denoiser.parameters()).device, request.steps or 1, progress)
    hook = denoiser.register_forward_pre_hook(clock.before_call)
    begin = time.perf_counter()
    try:
        result = pipe(**_arguments(pipe, request, clock))
    except TokendownError:
        raise
    except ValueError as error:
        raise ConfigError(f"{type(pipe).__name__}: {first_line(error)}") from error
    except Exception as error:  # a third party's pipeline can fail in any way
        if out_of_memory(error):
            raise GenerateError(_memory_advice(request)) from error
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise GenerateError(f"{type(pipe).__name__} failed with {reason}") from error
    finally:
        hook.remove()
    seconds = clock.now() - begin
    if not getattr(result, "images", None):
        raise GenerateError(f"{type(pipe).__name__} returned no picture")
    steps = clock.step_seconds()
    denoising = sum(steps) if steps else seconds
    blanked = getattr(result, "nsfw_content_detected", None) or [False]
    note = "the model's safety checker blanked this picture" if any(blanked) else ""
    image = result.images[0].convert("RGB")
    return Picture(image, request, seconds, denoising, steps, note, clock.latents)


def _arguments(pipe: Any, request: Request, clock: _Clock) -> dict[str, Any]:
    known = call_parameters(pipe)
    wanted = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt or None,
        "width": request.width,
        "height": request.height,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "generator": torch.Generator("cpu").manual_seed(request.seed),
        "callback_on_step_end": clock.after_step,
    }
    return {name: value for name, value in wanted.items() if name in known and value is not None}


def _multiple(pipe: Any, denoiser: Any, scale: int) -> int:
    """Of which the sides must be multiples, in pixels."""
    patch = getattr(denoiser.config, "patch_size", None)
    needs = [scale * (patch if isinstance(patch, int) else 1)]
    processor = getattr(pipe, "image_processor", None)
    if processor is not None:  # counts the 2 x 2 packing of FLUX, which is in no other place
        needs.append(int(processor.config.get("vae_scale_factor", 1)))
    if hasattr(pipe, "unet"):  # diffusers' pipelines with a U-Net insist on this
        needs.append(8)
    return math.lcm(*needs)


def _memory_advice(request: Request) -> str:
    size = f"{request.width}x{request.height} as {request.dtype} on {request.device}"
    advice = ["a smaller --size"]
    if request.dtype == "float32":
        advice.append("--dtype bfloat16")
    advice.append("a patch instead of --dense" if request.config is None else "a larger --factor")
    return f"out of memory at {size}; try {', '.join(advice)}"
