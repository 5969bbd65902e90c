"""Sizes and lengths that suit a pipeline: what it says of itself, not a table of models."""

from __future__ import annotations

import math
from typing import Any

from ._errors import ConfigError
from .calls import IMAGE_NAMES, call_parameters, frames_name
from .originals import open_original
from .patch import find_denoisers
from .request import Request
from .scales import spatial_scale, temporal_scale

_FPS_NAMES = ("fps", "frame_rate", "target_fps")
# Frames a second of the training films, where the pipeline has no argument for them. Source: model
# cards. The others were trained at 8 (AnimateDiff, CogVideoX) or do not say.
_FPS = {"Wan": 16, "HunyuanVideo": 24, "SkyReels": 24, "Mochi": 30, "Allegro": 15}
_FPS_ELSE = 8
_OF_ONE_AREA = ("HiDreamImagePipeline",)  # whatever size is asked for


def fitting_size(pipe: Any, request: Request) -> tuple[int, int]:
    """(width, height) in pixels: the request's, or the model's own.

    With an image and no size it has the shape of the image: as large as the image where the
    pipeline takes no size, else of about as many pixels as the model's native size.

    Raises:
        ConfigError: no multiple of what the model needs, or there is no native size.
        LoadError: the image cannot be read.
    """
    native = native_size(pipe)
    free = {"width", "height"} <= set(call_parameters(pipe))
    takes_image = any(name in call_parameters(pipe) for name in IMAGE_NAMES)
    if request.width is None or request.height is None:
        if request.image is not None:
            return _shape_of_image(pipe, request, native if free else None)
        if native is None:
            raise ConfigError(f"{type(pipe).__name__} has no native size; give --size")
        return native
    size = request.width, request.height
    if not free and not takes_image and native is not None and size != native:
        raise ConfigError(
            f"{size[0]}x{size[1]}: {type(pipe).__name__} takes no size, it makes "
            f"{native[0]}x{native[1]}"
        )
    check_multiple(size, side_multiple(pipe))
    if type(pipe).__name__ in _OF_ONE_AREA and native is not None:
        _check_area(pipe, size, native)
    return size


def _check_area(pipe: Any, size: tuple[int, int], native: tuple[int, int]) -> None:
    """Whether the pipeline leaves a size as it is.

    Raises:
        ConfigError: it makes another one; names that.
    """
    multiple = side_multiple(pipe)
    factor = math.sqrt(native[0] * native[1] / (size[0] * size[1]))
    made = [int(side * factor // multiple) * multiple for side in size]
    if made != list(size):
        raise ConfigError(
            f"{size[0]}x{size[1]}: {type(pipe).__name__} makes pictures of about as many pixels as "
            f"{native[0]}x{native[1]} has, of this shape {made[0]}x{made[1]}"
        )


def check_multiple(size: tuple[int, int], multiple: int) -> None:
    """Raises:
    ConfigError: a side is no multiple; names the nearest size that is.
    """
    if all(side >= 1 and side % multiple == 0 for side in size):
        return
    near = [max(1, round(side / multiple)) * multiple for side in size]
    raise ConfigError(
        f"{size[0]}x{size[1]}: this model needs sides that are multiples of {multiple}, "
        f"such as {near[0]}x{near[1]}"
    )


def native_size(pipe: Any) -> tuple[int, int] | None:
    """(width, height) in pixels: the default of the call, else what the model was trained at."""
    known = call_parameters(pipe)
    width, height = (getattr(known.get(name), "default", None) for name in ("width", "height"))
    if isinstance(width, int) and isinstance(height, int):
        return width, height
    scale, config = spatial_scale(pipe), _config(pipe)
    native = getattr(config, "sample_size", None) or getattr(pipe, "default_sample_size", None)
    if native:
        rows, columns = (native, native) if isinstance(native, int) else native
        return columns * scale, rows * scale
    if getattr(config, "sample_width", None):  # CogVideoX
        return config.sample_width * scale, config.sample_height * scale
    if getattr(pipe, "default_width", None):  # Mochi
        return pipe.default_width, pipe.default_height
    return None


def side_multiple(pipe: Any) -> int:
    """Of which the sides must be multiples, in pixels."""
    patch = getattr(_config(pipe), "patch_size", None) or 1
    needs = [spatial_scale(pipe) * (patch if isinstance(patch, int) else patch[-1])]
    for name in ("image_processor", "video_processor"):
        processor = getattr(pipe, name, None)
        if processor is not None:  # counts the 2 x 2 packing of FLUX, which is in no other place
            needs.append(int(processor.config.get("vae_scale_factor", 1)))
    if hasattr(pipe, "unet"):  # diffusers' pipelines with a U-Net insist on this
        needs.append(8)
    return math.lcm(*needs)


def fitting_frames(pipe: Any, request: Request) -> int | None:
    """The number of frames: the request's or the pipeline's own; None where nothing tells.

    Raises:
        ConfigError: the VAE cannot decode that many, or it is more than the model has places for.
    """
    name = frames_name(pipe)
    if name is None:
        return None
    config = _config(pipe)
    native: int | None = call_parameters(pipe)[name].default
    if not isinstance(native, int):
        native = getattr(config, "num_frames", None) or getattr(config, "sample_frames", None)
    frames, step = request.frames, temporal_scale(pipe)
    if frames is None:
        return native
    rest = (native or 1) % step  # 1 for a causal VAE
    if frames % step != rest:
        near = max(0, round((frames - rest) / step)) * step + rest
        raise ConfigError(
            f"{frames} frames: this model makes {step}k{f' + {rest}' if rest else ''} frames, "
            f"such as {near or step}"
        )
    most = getattr(config, "motion_max_seq_length", None)
    if most is not None and frames > most:
        raise ConfigError(f"{frames} frames: this motion model was trained for at most {most}")
    return frames


def fitting_fps(pipe: Any, request: Request) -> float | None:
    """Frames a second: the request's, or those of the model; None for still pictures."""
    if frames_name(pipe) is None or request.fps is not None:
        return request.fps
    known = call_parameters(pipe)
    for name in _FPS_NAMES:
        if isinstance(getattr(known.get(name), "default", None), (int, float)):
            return float(known[name].default)
    kind = type(pipe).__name__
    return float(next((fps for name, fps in _FPS.items() if kind.startswith(name)), _FPS_ELSE))


def fps_name(pipe: Any) -> str | None:
    """The argument that tells the model how fast its film will be played, or None."""
    return next((name for name in _FPS_NAMES if name in call_parameters(pipe)), None)


def _shape_of_image(pipe: Any, request: Request, native: tuple[int, int] | None) -> tuple[int, int]:
    assert request.image is not None, "the caller asked"
    width, height = open_original(request.image, request.image_sha256).size
    factor = 1.0 if native is None else math.sqrt(native[0] * native[1] / (width * height))
    multiple = side_multiple(pipe)
    sides = [max(1, round(side * factor / multiple)) * multiple for side in (width, height)]
    return sides[0], sides[1]


def _config(pipe: Any) -> Any:
    return find_denoisers(pipe)[0].config
