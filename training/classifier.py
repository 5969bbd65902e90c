"""A small classifier that names the subject of a picture; it judges, and does not ship.

It learns from the same pictures as the model, but apart from it, and never as they are: turned,
moved, resized, with other light, blurred, noisy, partly covered, on any background. One or two
minutes on two cores; kept in ``.cache/training/<config>/classifier``.
"""

from __future__ import annotations

import math
import time
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from .captions import PALETTE
from .config import Config
from .data import Pictures, lay_over
from .state import load, save

SIDE = 64  # pixels; pictures are averaged down to it
STEPS_A_CONCEPT = 11
BATCH = 64
VERSION = 2  # of the recipe; another one is trained anew


class Classifier(nn.Module):
    """[n, 3, 64, 64] in [0, 1] to logits over concepts [n, concepts]."""

    def __init__(self, concepts: int) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 192)
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in pairwise(widths)
            )
        )
        self.head = nn.Linear(widths[-1], concepts)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(2 * x - 1).mean(dim=(2, 3)))

    @torch.no_grad()
    def ranking(self, pixels: Tensor) -> Tensor:
        """Concepts by falling logit, [n, concepts], for pixels uint8 [n, 3, h, w]."""
        small = functional.adaptive_avg_pool2d(pixels.float() / 255, SIDE)
        return self(small).argsort(dim=1, descending=True)


def shrink(rgba: Tensor, side: int) -> Tensor:
    """RGBA uint8 [n, 4, h, w] to [n, 4, side, side] in [0, 1], colours times alpha."""
    small = []
    for some in rgba.split(64):
        x = some.float() / 255
        x = torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], dim=1)
        small.append(functional.adaptive_avg_pool2d(x, side))
    return torch.cat(small)


def augment(small: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures [n, 3, h, w] in [0, 1] from [n, 4, h, w]; no two alike."""
    n = len(small)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    angle, scale = between(-0.35, 0.35), between(0.8, 1.4)  # radians; above 1 is smaller
    mirror = torch.where(between(0, 1) < 0.5, -1.0, 1.0)
    turned = torch.stack(
        [
            torch.stack([mirror * scale * angle.cos(), -scale * angle.sin()], dim=1),
            torch.stack([mirror * scale * angle.sin(), scale * angle.cos()], dim=1),
        ],
        dim=1,
    )
    moved = torch.cat([turned, between(-0.2, 0.2, 2, 1)], dim=2)
    places = functional.affine_grid(moved, list(small.shape), align_corners=False)
    small = functional.grid_sample(small, places, align_corners=False)
    palette = torch.tensor(list(PALETTE.values())) / 255
    named = palette[torch.randint(len(palette), (n,), generator=generator)]
    rgb = torch.where(between(0, 1, 1) < 0.7, named, between(0, 1, 3))
    x = lay_over(small, rgb)
    x = (x - 0.5) * between(0.75, 1.25, 1, 1, 1) + 0.5 + between(-0.12, 0.12, 3, 1, 1)
    coarse = functional.interpolate(functional.avg_pool2d(x, 2), scale_factor=2.0, mode="bilinear")
    x = x + between(0, 1, 1, 1, 1).round() * (coarse - x)
    x = x + between(0, 0.12, 1, 1, 1) * torch.randn(x.shape, generator=generator)
    return _cover(x, between(0, 1, 4)).clamp(0, 1)


def _cover(x: Tensor, where: Tensor) -> Tensor:
    """A gray rectangle of at most 40 % of each side over every picture."""
    height, width = x.shape[-2:]
    rows, columns = torch.arange(height)[:, None] / height, torch.arange(width) / width
    top, left, tall, wide = (where[:, i, None, None] for i in range(4))
    inside = (rows >= top) & (rows < top + 0.4 * tall)
    inside = inside & (columns >= left) & (columns < left + 0.4 * wide)
    return torch.where(inside[:, None], torch.full_like(x, 0.5), x)


def trained(config: Config, pictures: Pictures) -> tuple[Classifier, dict]:
    """The classifier of a run, from the cache or trained now, and how well it does."""
    names = [concept.nouns[0] for concept in pictures.concepts]
    folder = config.folder / "classifier"
    tensors, meta = load(folder)
    model = Classifier(len(names))
    if meta.get("names") == names and meta.get("version") == VERSION:
        model.load_state_dict(tensors)
        return model.eval(), meta["measured"]
    measured = train(model, pictures, STEPS_A_CONCEPT * len(names))
    save(folder, model.state_dict(), {"names": names, "version": VERSION, "measured": measured})
    return model, measured


def train(model: Classifier, pictures: Pictures, steps: int) -> dict:
    """Trains in place, and says how many pictures it then names rightly."""
    began = time.time()
    owner = torch.tensor([i for i, c in enumerate(pictures.concepts) for _ in c.variants])
    small, generator = shrink(pictures.rgba, SIDE), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=1e-2)
    torch.manual_seed(0)
    model.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = (
                4e-3 * min(1, (step + 1) / 30) * (1 + math.cos(math.pi * step / steps)) / 2
            )
        chosen = torch.randint(len(owner), (BATCH,), generator=generator)
        logits = model(augment(small[chosen], generator))
        loss = functional.cross_entropy(logits, owner[chosen], label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    with torch.no_grad():
        plain = lay_over(small, torch.full((len(small), 3), 0.6))
        spoilt = augment(small.repeat(4, 1, 1, 1), generator)
        right = [(model(x).argmax(1) == y).float().mean().item()
                 for x, y in ((plain, owner), (spoilt, owner.repeat(4)))]  # fmt: skip
    return {
        "right_on_training_pictures": round(right[0], 3),
        "right_on_new_distortions_of_them": round(right[1], 3),
        "seconds": round(time.time() - began, 1),
    }
