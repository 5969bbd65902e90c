"""What the scripts that draw share: a model, pictures of fixed prompts, how far they are off."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from paper.report import exact
from paper.terrain import relative_error
from torch import Tensor

from tokendown import generate as gen

PROMPTS = (
    "red apple on a blue background",
    "dog face on a green background",
    "pizza on a white background",
    "rocket on a purple background",
    "sunflower on a teal background",
    "red heart on a yellow background",
    "hamburger on a black background",
    "airplane on a pink background",
)


def open_model(a: argparse.Namespace) -> tuple[Any, gen.Request]:
    """The pipeline of ``--model``, exact and silent, and the request with its own size and steps.

    Args:
        a: model, device, steps and perhaps size (pixels, square); None is the model's own.
    """
    exact()
    size = getattr(a, "size", None)
    pipe, request = gen.open_pipeline(
        gen.Request(
            model=a.model, width=size, height=size, steps=a.steps, config=None,
            device=a.device, dtype="float32",
        )
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe, request


def latents(
    pipe: Any, request: gen.Request, prompts: Sequence[str], *, at_once: bool = False
) -> list[Tensor]:
    """Final latents of one picture a prompt; its number is the seed.

    ``at_once`` is in one batch, which is faster, and not the same to the last bit.
    """
    numbered = list(enumerate(prompts))
    found: list[Tensor] = []
    for batch in [numbered] if at_once else [[each] for each in numbered]:
        out = pipe(
            [prompt for _, prompt in batch],
            num_inference_steps=request.steps, guidance_scale=request.guidance,
            width=request.width, height=request.height, output_type="latent",
            generator=[torch.Generator().manual_seed(seed) for seed, _ in batch],
        )  # fmt: skip
        found += out.images
    return found


def errors(got: list[Tensor], dense: list[Tensor]) -> list[float]:
    """Of the latents of each picture, see :func:`paper.terrain.relative_error`."""
    return [relative_error(a, b) for a, b in zip(got, dense, strict=True)]
