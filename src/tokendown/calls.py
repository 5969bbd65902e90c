"""What the call of a pipeline takes: nothing that was asked for is dropped in silence."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from ._errors import ConfigError
from .patch import find_denoisers
from .request import Request

IMAGE_NAMES = ("image", "control_image")

_FRAMES_NAMES = ("num_frames", "video_length")
# With one of these in its call a pipeline changes a picture that it is given.
_CHANGES_AN_IMAGE = {"strength", "mask_image", "image_guidance_scale", "noise_level"}
_OPTIONS = {
    "prompt": "the prompt", "negative_prompt": "--negative-prompt", "width": "--size",
    "height": "--size", "num_inference_steps": "--steps", "guidance_scale": "--guidance",
    "image": "--image", "control_image": "--image", "mask_image": "--mask", "generator": "--seed",
    "num_frames": "--frames", "video_length": "--frames", "fps": "--fps", "frame_rate": "--fps",
    "target_fps": "--fps",
}  # fmt: skip
_NOT_OURS = {"output_type", "return_dict", "num_images_per_prompt", "num_videos_per_prompt",
             "max_area", "num_images"}  # fmt: skip
_NO_VALUES = ("embeds", "latents", "callback", "_mask", "_kwargs", "tensor_inputs", "generator")


def call_parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """What the pipeline's call accepts."""
    return inspect.signature(pipe.__call__).parameters


def image_name(pipe: Any) -> str | None:
    """The argument for the picture that a pipeline starts from, or None."""
    return next((name for name in IMAGE_NAMES if name in call_parameters(pipe)), None)


def frames_name(pipe: Any) -> str | None:
    """The argument for the number of frames, or None where it makes still pictures."""
    return next((name for name in _FRAMES_NAMES if name in call_parameters(pipe)), None)


def check_pipeline(pipe: Any, request: Request) -> None:
    """Whether the pipeline takes what the request has, and has what the pipeline needs.

    Raises:
        ConfigError: it does not; the message names what it takes.
    """
    known = call_parameters(pipe)
    _check_inputs(pipe, request, known)
    given = {
        "prompt": request.prompt, "negative_prompt": request.negative_prompt,
        "guidance_scale": request.guidance, "num_inference_steps": request.steps,
        "mask_image": request.mask,
    }  # fmt: skip
    for name, value in given.items():
        if value not in (None, "") and name not in known:
            raise ConfigError(f"{_name(pipe)} takes no {name}; {_takes(known)}")
    if request.image is not None and image_name(pipe) is None:
        raise ConfigError(f"{_name(pipe)} takes no image; {_takes(known)}")
    film = frames_name(pipe) is not None
    if not film and (request.frames is not None or request.fps is not None):
        raise ConfigError(f"{_name(pipe)} makes still pictures: --frames and --fps have no use")
    for name, value in request.parameters.items():
        _check_parameter(pipe, known, name, value)
    _check_guidance(pipe, request, known)


def uses_guidance(pipe: Any) -> bool:
    """Whether ``guidance_scale`` does anything: diffusers ignores it in some distilled models."""
    known = call_parameters(pipe)
    if "guidance_scale" not in known:
        return False
    embedded = getattr(find_denoisers(pipe)[0].config, "guidance_embeds", None)
    return not ("true_cfg_scale" in known and embedded is False)


def hints(pipe: Any, request: Request) -> list[str]:
    """What the user may not expect of this pipeline."""
    scale = _setting(call_parameters(pipe), request, "true_cfg_scale")
    if isinstance(scale, (int, float)) and scale > 1 and not request.negative_prompt:
        return [
            f"without a negative prompt {_name(pipe)} uses no guidance (true_cfg_scale {scale:g} "
            'has no effect); --negative-prompt " " turns it on'
        ]
    return []


def _check_inputs(pipe: Any, request: Request, known: Mapping[str, inspect.Parameter]) -> None:
    """Whether everything is there that the call cannot do without."""
    changes = _CHANGES_AN_IMAGE & set(known)
    if "video" in known and changes:
        raise ConfigError(f"{_name(pipe)} changes a film, and generate gives it none")
    if "control_image" in known and "image" in known and (changes or _needed(known["image"])):
        raise ConfigError(f"{_name(pipe)} takes image and control_image, and generate gives one")
    image = image_name(pipe)
    if image is not None and request.image is None and (
        changes or image == "control_image" or _needed(known[image]) or hasattr(pipe, "controlnet")
    ):  # fmt: skip
        raise ConfigError(f"{_name(pipe)} needs a picture to start from: give --image FILE")
    if "mask_image" in known and request.mask is None:
        raise ConfigError(f"{_name(pipe)} needs --mask FILE, white where the image may change")
    given = {"prompt", *IMAGE_NAMES, "mask_image", *request.parameters}
    missing = [name for name, each in known.items() if _needed(each) and name not in given]
    if missing:
        raise ConfigError(
            f"{_name(pipe)} also needs {', '.join(missing)}; a value in JSON can be given with "
            f"--set {missing[0]}=VALUE"
        )


def _check_parameter(
    pipe: Any, known: Mapping[str, inspect.Parameter], name: str, value: Any
) -> None:
    if name in _OPTIONS:
        raise ConfigError(f"--set {name}: that is {_OPTIONS[name]}")
    if name not in known or _is_star(known[name]) or not _settable(name):
        raise ConfigError(f"{_name(pipe)} takes no {name}; {_takes(known)}")
    default = known[name].default
    number = (int, float)
    kind: Any = next((kind for kind in (bool, number, str) if isinstance(default, kind)), object)
    if isinstance(value, bool) and kind is number:
        kind = ()
    if not isinstance(value, kind):
        raise ConfigError(f"--set {name}: expected a value such as {default!r}, got {value!r}")


def _check_guidance(pipe: Any, request: Request, known: Mapping[str, inspect.Parameter]) -> None:
    if request.guidance is not None and not uses_guidance(pipe):
        raise ConfigError(
            f"{_name(pipe)} ignores guidance_scale with this model; use --set true_cfg_scale=... "
            "and a negative prompt"
        )
    true_cfg = "true_cfg_scale" in known
    scale = (
        _setting(known, request, "true_cfg_scale") if true_cfg
        else request.guidance if request.guidance is not None
        else getattr(known.get("guidance_scale"), "default", None)
    )  # fmt: skip
    if not isinstance(scale, (int, float)):
        return
    advice = "--set true_cfg_scale=4" if true_cfg else "--guidance 5"
    if request.negative_prompt and scale <= 1:
        raise ConfigError(
            f"a negative prompt has no effect where {_name(pipe)} guides by {scale:g}; try {advice}"
        )
    if true_cfg and request.parameters.get("true_cfg_scale", 1) > 1 and not request.negative_prompt:
        raise ConfigError(
            'true_cfg_scale has no effect without a negative prompt: give --negative-prompt " "'
        )


def _setting(known: Mapping[str, inspect.Parameter], request: Request, name: str) -> Any:
    """The value that the call will have; None where it takes no such argument."""
    return request.parameters.get(name, getattr(known.get(name), "default", None))


def _needed(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and not _is_star(parameter)


def _is_star(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)


def _settable(name: str) -> bool:
    return name not in _NOT_OURS and not name.startswith("_") and not any(
        part in name for part in _NO_VALUES
    )  # fmt: skip


def _takes(known: Mapping[str, inspect.Parameter]) -> str:
    names = [
        name
        for name, each in known.items()
        if (_settable(name) and not _is_star(each)) or name == "mask_image"
    ]
    return f"it takes {', '.join(names) or 'nothing'}"


def _name(pipe: Any) -> str:
    return type(pipe).__name__
