"""Pictures in memory, laid over flat backgrounds whose colour the caption names."""

from __future__ import annotations

import io
import random
import tarfile
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .captions import COLOURS, PALETTE, Concept, caption, held_out, read_concepts
from .config import PIXELS
from .fetch import NAMES, PICTURES, fetch

SCALES = (0.75, 1.0)


@dataclass(frozen=True)
class Place:
    """How large a subject is and where: no caption says it, so that a model has to decide.

    Args:
        scale: of the picture, in (0, 1].
        down, right: share of the room that is left, in [0, 1].
    """

    scale: float
    down: float
    right: float

    @classmethod
    def draw(cls, rng: random.Random) -> Place:
        """Any place at which the subject is seen whole."""
        return cls(rng.uniform(*SCALES), rng.random(), rng.random())

    def put(self, rgba: Tensor, side: int) -> Tensor:
        """A square picture of bytes [4, h, h], resized and moved on a clear one [4, side, side].

        Colours are to be multiplied by alpha already: clear pixels must not tint the edges.
        """
        inner = round(self.scale * side)
        x = rgba.float() if rgba.is_cuda else rgba  # there is no kernel for bytes on a GPU
        x = functional.interpolate(
            x[None].contiguous(memory_format=torch.channels_last),  # ten times as fast
            (inner, inner),
            mode="bilinear",
            antialias=True,
        )[0]
        top, left = round(self.down * (side - inner)), round(self.right * (side - inner))
        out = x.new_zeros(4, side, side)
        out[:, top : top + inner, left : left + inner] = x
        return out


class Pictures:
    """The concepts of a run and their pictures, RGBA uint8 [n, 4, 256, 256]."""

    def __init__(self, subjects: tuple[str, ...]) -> None:
        self.concepts = read_names(subjects)
        with tarfile.open(PICTURES) as archive:
            self.files = [v.file for c in self.concepts for v in c.variants]
            self.rgba = torch.stack([_read(archive, f) for f in self.files])
        self.index = {file: i for i, file in enumerate(self.files)}

    def draw(self, rng: random.Random) -> tuple[int, str, str]:
        """(picture, colour, caption): concepts are equally likely, however many skin tones."""
        concept = rng.choice(self.concepts)
        colour = rng.choice([c for c in COLOURS if not held_out(concept, c)])
        return self.pick(concept, colour, rng)

    def pick(self, concept: Concept, colour: str, rng: random.Random) -> tuple[int, str, str]:
        """(picture, colour, caption) of one concept; half the time its first variant."""
        first = rng.random() < 0.5
        variant = concept.variants[0] if first else rng.choice(concept.variants)
        return self.index[variant.file], colour, caption(concept, variant, colour, rng)

    def pairs(self) -> list[tuple[int, str]]:
        """Every (picture, colour) that can be drawn."""
        return [
            (self.index[variant.file], colour)
            for concept in self.concepts
            for variant in concept.variants
            for colour in COLOURS
            if not held_out(concept, colour)
        ]

    def on(self, picture: int, colour: str) -> Tensor:
        """One picture over a named colour, [3, 256, 256] in [-1, 1]."""
        return over(self.rgba[picture], torch.tensor(PALETTE[colour]) / 255)

    def placed(self, picture: int, colour: str, place: Place, side: int) -> Tensor:
        """One picture at a place over a named colour, [3, side, side] in [-1, 1]."""
        rgba = self.rgba[picture]
        solid = rgba[:3].float() * rgba[3:] / 255
        x = place.put(torch.cat([solid.round().byte(), rgba[3:]]), side).float() / 255
        rgb = torch.tensor([PALETTE[colour]], device=x.device) / 255
        return lay_over(x[None], rgb)[0] * 2 - 1


def read_names(subjects: tuple[str, ...] = ()) -> list[Concept]:
    """The concepts that have a picture, all of them or those in some lists.

    Fetches the data when it is not there yet.
    """
    fetch()
    with tarfile.open(PICTURES) as archive:
        return read_concepts(NAMES, set(archive.getnames()), subjects)


def over(rgba: Tensor, rgb: Tensor) -> Tensor:
    """Alpha composite of [..., 4, h, w] uint8 over [..., 3] in [0, 1]; the result in [-1, 1]."""
    rgba = rgba.float() / 255
    colour, alpha = rgba[..., :3, :, :], rgba[..., 3:, :, :]
    return (colour * alpha + rgb[..., None, None] * (1 - alpha)) * 2 - 1


def lay_over(rgba: Tensor, rgb: Tensor) -> Tensor:
    """Pictures [n, 4, h, w] in [0, 1], colours times alpha, over [n, 3] in [0, 1]; [n, 3, h, w]."""
    return rgba[:, :3] + (1 - rgba[:, 3:]) * rgb[:, :, None, None]


def halve(image: Tensor) -> Tensor:
    """Half the size, by averaging squares of four pixels."""
    return functional.avg_pool2d(image, 2)


def _read(archive: tarfile.TarFile, name: str) -> Tensor:
    image = Image.open(io.BytesIO(archive.extractfile(name).read())).convert("RGBA")
    image = image.resize((PIXELS, PIXELS)) if image.size != (PIXELS, PIXELS) else image
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
