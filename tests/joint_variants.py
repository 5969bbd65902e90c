"""Further pipelines of the families in tests/joint_pipelines.py: from pictures, with ControlNets.

Pictures are begun from noise alone (``strength`` 1), so that every step is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers

import tiny
from joint_pipelines import (
    FILM,
    GUIDED,
    LARGER,
    NEGATIVE_POOLED,
    PADDING,
    QWEN,
    QWEN_PADDING,
    QWEN_TEXT,
    SIZE,
    SMALL,
    TEXT,
    TWO,
    WAN,
    Case,
    assemble,
    causal_vae,
    film_vae,
    flux2_vae,
    picture,
    schedule,
    transformer,
    vae,
)


def pictures(names: str, height: int, width: int) -> dict[str, Any]:
    """Noise for each argument; one to begin from is not mixed with the latents."""
    found = {name: picture(height, width, seed) for seed, name in enumerate(names.split())}
    return {**found, "strength": 1.0} if "image" in found else found


def film(name: str, height: int, width: int, frames: int) -> dict[str, Any]:
    """Of noise."""
    frame = [picture(height, width, seed) for seed in range(frames)]
    return {"height": height, "width": width, name: frame}


def flux(kind: str, names: str, net: bool = False, **options: Any) -> Case:
    parts = {"controlnet": transformer("flux_controlnet", 1, in_channels=16)} if net else {}
    model = transformer("flux", **{"in_channels": 16, **options})
    pipe = assemble(kind, model, vae=vae(), **parts)
    return Case("flux", pipe, SIZE, TWO, {**SMALL, **pictures(names, 24, 32)})


def chroma() -> Case:
    """Its mask is made of floats, and added to the logits as it is."""
    pipe = assemble("ChromaImg2ImgPipeline", transformer("chroma", in_channels=16), vae=vae())
    return Case("chroma", pipe, SIZE, {**GUIDED, **PADDING}, {**SMALL, **pictures("image", 24, 32)})


def sd3(kind: str, names: str = "", extra: int | None = None, **options: Any) -> Case:
    parts = {}
    if "ControlNet" in kind:
        parts["controlnet"] = transformer("sd3_controlnet", 1, extra_conditioning_channels=extra)
    pipe = assemble(kind, transformer("sd35"), vae=vae(), **parts)
    given = {**SMALL, **pictures(names, 24, 32), **options}
    return Case("sd35", pipe, SIZE, {**GUIDED, **NEGATIVE_POOLED}, given)


def qwen_image(kind: str, names: str) -> Case:
    channels, parts = {"in_channels": 16, "out_channels": 4}, {}
    if "ControlNet" in kind:
        parts["controlnet"] = transformer("qwen_image_controlnet", 1, **channels)
    model = transformer("qwen_image", **channels)
    pipe = assemble(kind, model, vae=causal_vae("AutoencoderKLQwenImage", 2), **parts)
    given = {**LARGER, **pictures(names, 48, 64)}
    return Case("qwen_image", pipe, SIZE, {**GUIDED, **QWEN_PADDING}, given)


def qwen_image_edit() -> Case:
    """The picture and what is made are scaled to a million pixels, 64 of them a token."""
    model = transformer("qwen_image", in_channels=16, out_channels=4)
    pipe = assemble(
        "QwenImageEditInpaintPipeline", model, vae=causal_vae("AutoencoderKLQwenImage", 5)
    )
    given = {**QWEN, **pictures("image mask_image", 6 * 64, 8 * 64)}
    return Case("qwen_image", pipe, ((1, 14, 18),) * 2, QWEN_TEXT, given, predicted=False)


def flux2() -> Case:
    """The picture, and a reference besides."""
    pipe = assemble(
        "Flux2KleinInpaintPipeline", transformer("flux2", in_channels=16), vae=flux2_vae()
    )
    given = {**pictures("image mask_image", 24, 32), "image_reference": picture(80, 64)}
    return Case("flux2", pipe, (*SIZE * 2, (1, 20, 16)), GUIDED, {**SMALL, **given})


def z_image(kind: str, names: str) -> Case:
    pipe = assemble(kind, transformer("z_image"), vae=vae())
    text = {"prompt_embeds": [TEXT[0]], "negative_prompt_embeds": [-TEXT[0]]}
    return Case("z_image", pipe, SIZE, text, {**SMALL, **pictures(names, 24, 32)})


def wan_films() -> Case:
    scheduler = diffusers.UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction"
    )
    pipe = assemble(
        "WanVideoToVideoPipeline", transformer("wan"), vae=causal_vae(), scheduler=scheduler
    )
    given = {**film("video", 48, 64, 5), "strength": 1.0}
    return Case("wan", pipe, FILM, GUIDED, given, predicted=False)


def wan_by_token(kind: str, **options: Any) -> Case:
    """Wan 2.2 5B: every token has a time of its own."""
    pipe = assemble(kind, transformer("wan"), vae=causal_vae(), expand_timesteps=True)
    return Case("wan", pipe, FILM, GUIDED, {**WAN, **options})


def cogvideox(kind: str, name: str, **options: Any) -> Case:
    pipe = assemble(
        kind, transformer("cogvideox", **options), vae=film_vae("AutoencoderKLCogVideoX"),
        **schedule(),
    )  # fmt: skip
    given = film(name, 96, 128, 9)
    if name == "video":
        given["strength"] = 1.0
    return Case("cogvideox", pipe, FILM, GUIDED, given, predicted=False)


def cogview4() -> Case:
    model = transformer("cogview4", in_channels=8, out_channels=4)
    pipe = assemble("CogView4ControlPipeline", model, vae=tiny.vae())
    given = {**LARGER, "control_image": picture(48, 64)}
    return Case("cogview4", pipe, ((1, 12, 16),), GUIDED, given)


def true_guidance() -> Case:
    case = flux("FluxPipeline", "")
    negative = {"negative_prompt_embeds": -TEXT, "negative_pooled_prompt_embeds": TEXT[:, 0]}
    case.tensors = {**TWO, **negative}
    case.options["true_cfg_scale"] = 2.0
    return case


BOTH = {"in_channels": 32, "out_channels": 16}  # noise, and a control picture beside it
VARIANTS: dict[str, Callable[[], Case]] = {
    "FluxPipeline, with true guidance": true_guidance,
    "FluxImg2ImgPipeline": lambda: flux("FluxImg2ImgPipeline", "image"),
    "FluxInpaintPipeline": lambda: flux("FluxInpaintPipeline", "image mask_image"),
    "FluxControlNetPipeline": lambda: flux("FluxControlNetPipeline", "control_image", net=True),
    "FluxControlNetImg2ImgPipeline": lambda: flux(
        "FluxControlNetImg2ImgPipeline", "image control_image", net=True
    ),
    "FluxControlNetInpaintPipeline": lambda: flux(
        "FluxControlNetInpaintPipeline", "image mask_image control_image", net=True
    ),
    "FluxControlImg2ImgPipeline": lambda: flux(
        "FluxControlImg2ImgPipeline", "image control_image", **BOTH
    ),
    "FluxControlInpaintPipeline": lambda: flux(
        "FluxControlInpaintPipeline", "image mask_image control_image", **BOTH
    ),
    "Flux2KleinInpaintPipeline": flux2,
    "ChromaImg2ImgPipeline": chroma,
    "StableDiffusion3Pipeline, with skipped layers": lambda: sd3(
        "StableDiffusion3Pipeline", skip_guidance_layers=[1],
        skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0,
    ),
    "StableDiffusion3Img2ImgPipeline": lambda: sd3("StableDiffusion3Img2ImgPipeline", "image"),
    "StableDiffusion3ControlNetPipeline": lambda: sd3(
        "StableDiffusion3ControlNetPipeline", "control_image", 0
    ),
    "StableDiffusion3ControlNetInpaintingPipeline": lambda: sd3(
        "StableDiffusion3ControlNetInpaintingPipeline", "control_image control_mask", 1
    ),
    "QwenImageImg2ImgPipeline": lambda: qwen_image("QwenImageImg2ImgPipeline", "image"),
    "QwenImageInpaintPipeline": lambda: qwen_image("QwenImageInpaintPipeline", "image mask_image"),
    "QwenImageControlNetPipeline": lambda: qwen_image(
        "QwenImageControlNetPipeline", "control_image"
    ),
    "QwenImageEditInpaintPipeline": qwen_image_edit,
    "ZImageImg2ImgPipeline": lambda: z_image("ZImageImg2ImgPipeline", "image"),
    "ZImageInpaintPipeline": lambda: z_image("ZImageInpaintPipeline", "image mask_image"),
    "CogView4ControlPipeline": cogview4,
    "WanVideoToVideoPipeline": wan_films,
    "WanPipeline, a time for every token": lambda: wan_by_token("WanPipeline"),
    "WanImageToVideoPipeline, a time for every token": lambda: wan_by_token(
        "WanImageToVideoPipeline", image=picture(48, 64)
    ),
    "CogVideoXVideoToVideoPipeline": lambda: cogvideox("CogVideoXVideoToVideoPipeline", "video"),
    "CogVideoXFunControlPipeline": lambda: cogvideox(
        "CogVideoXFunControlPipeline", "control_video", in_channels=8
    ),
}  # fmt: skip
