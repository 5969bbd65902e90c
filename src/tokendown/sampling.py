"""One call of a diffusers pipeline: its arguments, what it returns, how long it takes."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

from ._errors import ConfigError, RunError, TokendownError
from .calls import call_parameters, frames_name, image_name
from .models.sources import first_line, out_of_memory, synchronize
from .originals import open_original
from .patch import find_denoisers
from .request import Request
from .sizes import check_multiple, fps_name

Progress = Callable[[int, int], None]
"""Called after every step with the number of steps done and of all steps."""


def nth(progress: Progress | None, index: int, count: int) -> Progress:
    """What to call with the steps of one picture of several, the first is 0.

    Args:
        progress: is told the steps of all of them together.
        index: which one.
        count: how many there are, of as many steps each.
    """

    def advance(done: int, steps: int) -> None:
        if progress is not None:
            progress(index * steps + done, count * steps)

    return advance


@dataclass(frozen=True)
class Picture:
    """One picture or film, and how long it took.

    Attributes:
        frames: RGB, 8 bits; one for a still picture.
        request: with every default filled in.
        seconds: from the prompt to the last pixel.
        denoising_seconds: of all steps together, between the first call of the denoiser and the end
            of the last step.
        step_seconds: of each step; their spread tells how steady the machine was.
        note: a remark for people, or empty.
        latents: what was decoded to the image; None where the pipeline does not show it.
    """

    frames: tuple[Image.Image, ...]
    request: Request
    seconds: float
    denoising_seconds: float
    step_seconds: tuple[float, ...] = ()
    note: str = ""
    latents: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def image(self) -> Image.Image:
        """The still picture, or the first frame."""
        return self.frames[0]


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
        synchronize(self.device)
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


def sample(pipe: Any, request: Request, progress: Progress | None) -> Picture:
    """Calls the pipeline as it is; the patch is the caller's business.

    Raises:
        ConfigError: the pipeline refuses its arguments.
        RunError: out of memory, or the pipeline fails or returns no picture.
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
        _check_refused_size(request, error)
        raise ConfigError(f"{type(pipe).__name__}: {first_line(error)}") from error
    except Exception as error:  # a third party's pipeline can fail in any way
        if out_of_memory(error):
            raise RunError(_memory_advice(request)) from error
        reason = f"{type(error).__name__}: {first_line(error)}"
        if request.image is None and image_name(pipe) is not None:
            reason += "; it can start from a picture: --image FILE"
        raise RunError(f"{type(pipe).__name__} failed with {reason}") from error
    finally:
        hook.remove()
    seconds = clock.now() - begin
    frames = _frames(pipe, result)
    steps = clock.step_seconds()
    denoising = sum(steps) if steps else seconds
    return Picture(frames, request, seconds, denoising, steps, _note(result), clock.latents)


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
        **_sizes(pipe, request),
        **_originals(pipe, request),
        **request.parameters,
    }
    if "callback_on_step_end" not in known:  # the older form, which some pipelines kept
        wanted["callback"] = lambda step, _, __: clock.after_step(None, step, None, {})
    return {name: value for name, value in wanted.items() if name in known and value is not None}


def _sizes(pipe: Any, request: Request) -> dict[str, Any]:
    """What a pipeline wants to know of size and length, and would else decide itself."""
    sizes: dict[str, Any] = {
        "max_area": math.prod(_size(request)),  # FLUX Kontext scales the size to this
        # PixArt would denoise at the nearest size of its table, and enlarge the picture
        "use_resolution_binning": False,
    }
    film = frames_name(pipe)
    if film is not None:
        sizes |= {film: request.frames, "output_type": "pil"}
    speed = fps_name(pipe)
    if speed is not None and request.fps is not None:
        whole = float(request.fps).is_integer()
        sizes[speed] = int(request.fps) if whole else request.fps
    return sizes


def _size(request: Request) -> tuple[int, int]:
    assert request.width is not None, "open_pipeline fills it in"
    assert request.height is not None, "likewise"
    return request.width, request.height


def _originals(pipe: Any, request: Request) -> dict[str, Image.Image]:
    """The pictures that go in; resized here where the pipeline takes their size for its own."""
    name = image_name(pipe)
    if name is None or request.image is None:
        return {}
    pictures = {name: open_original(request.image, request.image_sha256)}
    if request.mask is not None:
        pictures["mask_image"] = open_original(request.mask, request.mask_sha256, "L")
    if {"width", "height"} <= set(call_parameters(pipe)):
        return pictures
    size = _size(request)
    return {
        key: image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
        for key, image in pictures.items()
    }


def _frames(pipe: Any, result: Any) -> tuple[Image.Image, ...]:
    """RGB pictures from whatever the pipeline returned.

    Raises:
        RunError: it returned none.
    """
    frames: Any = getattr(result, "frames", None)
    if frames is None:
        images = getattr(result, "images", None)
        frames = [] if images is None else images[:1]
    elif len(frames):
        frames = frames[0]
    if len(frames) == 0:
        raise RunError(f"{type(pipe).__name__} returned no picture")
    return tuple(_as_image(frame).convert("RGB") for frame in frames)


def _as_image(frame: Any) -> Image.Image:
    """A picture, or floats [H, W, 3] in [0, 1]."""
    if isinstance(frame, Image.Image):
        return frame
    return Image.fromarray((numpy.asarray(frame) * 255).round().clip(0, 255).astype("uint8"))


def _note(result: Any) -> str:
    notes = []
    if any(getattr(result, "nsfw_content_detected", None) or [False]):
        notes.append("the model's safety checker blanked this picture")
    if getattr(result, "audio", None) is not None:
        notes.append("the model made sound, too, which is not kept")
    return "; ".join(notes)


def _check_refused_size(request: Request, error: ValueError) -> None:
    """Some pipelines know what sizes they need in their checks alone; those name no size that fits.

    Raises:
        ConfigError: it is about the size.
    """
    found = re.search(r"height.*width.*divisible by (\d+)", str(error))
    if found and request.width is not None and request.height is not None:
        check_multiple((request.width, request.height), int(found[1]))


def _memory_advice(request: Request) -> str:
    size = f"{request.width}x{request.height} as {request.dtype} on {request.device}"
    advice = ["a smaller --size"]
    if request.frames is not None:
        advice.append("fewer --frames")
    if request.dtype == "float32":
        advice.append("--dtype bfloat16")
    advice.append("a patch instead of --dense" if request.config is None else "a larger --factor")
    return f"out of memory at {size}; try {', '.join(advice)}"
