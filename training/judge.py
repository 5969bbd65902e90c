"""What was asked for and what was drawn: subject, background, and how much of it is memory.

* **subject**: what ``classifier.py`` says, which was trained apart from the model.
* **background**: the palette colour nearest to the corners.
* **distance** to the nearest training picture over the asked-for background, root mean square at
  32 x 32, both cut to the square around their subject, for the place is free: how much is memory.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor
from torch.nn import functional

from .captions import COLOURS, PALETTE, Concept, held_out
from .classifier import SIDE, Classifier, shrink
from .data import Pictures, lay_over

# The first was in training, the second was not.
PHRASINGS = {
    "seen phrasing": "{noun} on a {colour} background",
    "unseen phrasing": "{colour} background, a {noun}",
}

Question = tuple[Concept, str, str, str]
"""Concept, colour, phrasing (a key of PHRASINGS), prompt."""


def questions(concepts: list[Concept], count: int, seed: int) -> list[Question]:
    """Every concept about equally often, in both phrasings by turns, over a colour that it was
    never trained on where there is one.
    """
    rng = random.Random(seed)
    chosen = [
        c for _ in range(count // len(concepts) + 1) for c in rng.sample(concepts, len(concepts))
    ]
    asked = []
    for number, concept in enumerate(chosen[:count]):
        unseen = [colour for colour in COLOURS if held_out(concept, colour)]
        colour = rng.choice(unseen or COLOURS)
        phrasing = list(PHRASINGS)[number % 2]
        prompt = PHRASINGS[phrasing].format(noun=concept.nouns[0], colour=colour)
        asked.append((concept, colour, phrasing, prompt))
    return asked


def background(pixels: Tensor) -> list[str]:
    """Name of the palette colour nearest to the median of the four corners (16 x 16 each)."""
    corners = [pixels[..., y, x] for y in (slice(16), slice(-16, None))
               for x in (slice(16), slice(-16, None))]  # fmt: skip
    rgb = torch.cat([c.flatten(2) for c in corners], dim=2).float().median(dim=2).values
    table = torch.tensor(list(PALETTE.values())).float()
    return [COLOURS[i] for i in torch.cdist(rgb, table).argmin(dim=1)]


def distances(pixels: Tensor, pictures: Pictures, colours: list[str]) -> Tensor:
    """From each picture to every training picture over its colour, [n, training pictures]."""
    train = _subjects(pictures)
    rows = []
    for image, colour in zip(pixels.float() / 255, colours, strict=True):
        rgb = torch.tensor(PALETTE[colour]) / 255
        apart = (image - rgb[:, None, None]).abs().amax(0) > 0.15
        over_colour = lay_over(train, rgb.expand(len(train), 3))
        rows.append((over_colour - _cut(image, apart)).square().mean(dim=(1, 2, 3)).sqrt())
    return torch.stack(rows)


def _subjects(pictures: Pictures) -> Tensor:
    """The training pictures, cut, [training pictures, 4, 32, 32]."""
    return torch.stack([_cut(x, x[3] > 0.05) for x in shrink(pictures.rgba, SIDE)])


def _cut(x: Tensor, subject: Tensor) -> Tensor:
    """[c, h, w] -> [c, 32, 32]: the square around what is true in [h, w], without specks."""
    spans = []
    for dim, size in ((1, x.shape[1]), (0, x.shape[2])):
        inside = (subject.float().mean(dim) > 0.02).nonzero()
        spans.append((inside.min().item(), inside.max().item() + 1) if len(inside) else (0, size))
    side = max(end - begin for begin, end in spans)
    parts = []
    for (begin, end), size in zip(spans, x.shape[1:], strict=True):
        first = min(max(0, (begin + end - side) // 2), size - side)
        parts.append(slice(first, first + side))
    return functional.interpolate(
        x[None, :, parts[0], parts[1]], (32, 32), mode="bilinear", antialias=True
    )[0]


def judge(
    pixels: Tensor, asked: list[Question], pictures: Pictures, classifier: Classifier
) -> dict:
    """Shares of pictures that are what was asked for, and how near they are to training ones."""
    colours = [colour for _, colour, *_ in asked]
    concepts = pictures.concepts
    named = [[concepts[i] for i in row] for row in classifier.ranking(pixels)[:, :5].tolist()]
    marks: dict[str, list[bool]] = {
        "background": [a == b for a, b in zip(background(pixels), colours, strict=True)],
        "subject": [names[0] == q[0] for names, q in zip(named, asked, strict=True)],
        "subject_in_top_5": [q[0] in names for names, q in zip(named, asked, strict=True)],
        "category": [n[0].category == q[0].category for n, q in zip(named, asked, strict=True)],
    }
    marks["subject_and_background"] = [
        a and b for a, b in zip(marks["subject"], marks["background"], strict=True)
    ]
    shares = {name: _share(values) for name, values in marks.items()}
    for phrasing in PHRASINGS:
        some = [m for m, q in zip(marks["subject"], asked, strict=True) if q[2] == phrasing]
        shares[f"subject_{phrasing.replace(' ', '_')}"] = _share(some)
    unseen = [
        mark
        for mark, q in zip(marks["subject_and_background"], asked, strict=True)
        if held_out(q[0], q[1])
    ]
    shares |= {
        "pairs_never_trained_on": len(unseen),
        "subject_and_background_of_these": _share(unseen),
    }
    found = distances(pixels, pictures, colours)
    owner = [concept for concept in concepts for _ in concept.variants]
    own = [
        row[[c == q[0] for c in owner]].min().item() for row, q in zip(found, asked, strict=True)
    ]
    return shares | {
        "distance_to_nearest_training_picture": spread(found.min(dim=1).values.tolist()),
        "distance_to_training_picture_of_the_subject": spread(own),
    }


def between_training_pictures(pictures: Pictures) -> dict:
    """The same distance from each training picture to the nearest other one, as a yardstick."""
    gray = torch.full((len(pictures.rgba), 3), 0.55)
    flat = lay_over(_subjects(pictures), gray).flatten(1)
    distance = torch.cdist(flat, flat) / flat.shape[1] ** 0.5
    return spread(distance.fill_diagonal_(9).min(dim=1).values.tolist())


def _share(marks: list[bool]) -> float | None:
    return round(sum(marks) / len(marks), 3) if marks else None


def spread(values: list[float]) -> dict[str, float]:
    tenth, half, most = torch.tensor(values).quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    return {"p10": round(tenth, 4), "median": round(half, 4), "p90": round(most, 4)}
