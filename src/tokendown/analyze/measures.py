"""Measures of one self-attention layer at one call, from its true inputs.

No matrix of all pairs of tokens is ever made: what needs attention weights looks at a sample of
queries, in chunks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .._errors import RunError
from ..adapters.dispatch import merge
from ..config import CellMethod
from ..grid import Grid
from ..sequence import Box


class Candidate(NamedTuple):
    """What a layer may keep.

    Args:
        factor: linear, >= 1; 1 is dense.
        anchors: >= 0.
        method: "nearest" or "mean".
    """

    factor: int
    anchors: int = 0
    method: CellMethod = "nearest"

    def __str__(self) -> str:
        """2/32, or 2/32/mean."""
        text = f"{self.factor}/{self.anchors}"
        return text if self.method == "nearest" else f"{text}/{self.method}"


DENSE = Candidate(1)


def expect_finite(what: str, values: Iterable[float], dtype: torch.dtype) -> None:
    """Refuses what no average and no JSON file could hold.

    Args:
        what: was measured, begins the message.
        values: of it.
        dtype: of the model, the likely cause.

    Raises:
        RunError: one is not a finite number.
    """
    if not all(map(math.isfinite, values)):
        name = str(dtype).removeprefix("torch.")
        raise RunError(
            f"{what}: not a number, or infinite; as {name} the model may leave the range of its "
            "type; try --dtype bfloat16 or float32"
        )


# Attention weights held at a time; 64 MB in float32.
_CHUNK = 2**24
TOP = 32  # tokens that receive most attention: as many as there are anchors by default
_BORDER = 2  # tokens


# Similarity


def lowest_similarity(tokens: Tensor, grid: Grid) -> Tensor:
    """The lowest cosine similarity between any two tokens of each 3 x 3 neighbourhood.

    Two tokens of it are at most two rows and columns apart: one map of similarities for each of
    the 12 displacements, then the minimum over the pairs that lie within the neighbourhood.

    Args:
        tokens: [B, N, C].
        grid: N = grid.tokens.

    Returns:
        [B, N] in [-1, 1], for the neighbourhood around each token; those at the border are smaller,
        and one token alone counts 1.

    Source: arXiv:2402.13573, Figure 4.
    """
    height, width = grid.height, grid.width
    maps = functional.normalize(tokens.float(), dim=-1).unflatten(1, (height, width))
    lowest = maps.new_ones(maps.shape[:3])
    for down in range(min(3, height)):
        for right in range(max(-2, 1 - width), min(3, width)):
            if (down, right) <= (0, 0):
                continue  # the same pairs as with the opposite sign
            across, left = abs(right), max(0, -right)
            first = maps[:, : height - down, left : left + width - across]
            second = maps[:, down:, left + right : left + right + width - across]
            pairs = functional.pad((first * second).sum(-1), (1, 1, 1, 1), value=1.0)
            inside = -functional.max_pool2d(-pairs[:, None], (3 - down, 3 - across), stride=1)
            lowest = torch.minimum(lowest, inside[:, 0])
    flat: Tensor = lowest.flatten(1)
    return flat


# Attention


class Call(ABC):
    """One dense attention call, with a sample of its queries.

    Attributes:
        query: [B, heads, Q, d], of image tokens first.
        image_queries: how many of them are.
        key: [B, heads, N, d], N of the whole sequence.
        value: likewise.
        scale: of the logits.
        mask: boolean or additive, [B or 1, heads or 1, Q or 1, N], or None.
        image: the tokens of the grid among the N.
        text: text tokens among the N.
    """

    query: Tensor
    image_queries: int
    key: Tensor
    value: Tensor
    scale: float
    mask: Tensor | None = None
    image: slice
    text: tuple[slice, ...] = ()

    @abstractmethod
    def kept(self, candidate: Candidate) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values and mask that a candidate leaves; the mask has log m in it."""

    @abstractmethod
    def output(self, heads: Tensor) -> Tensor:
        """[B, heads, Q, d] -> all numbers that the module would return for these queries."""


@dataclass(frozen=True)
class Attended:
    """Dense attention of a sample of queries, and what fewer keys would change.

    Attributes:
        received: [N], the share of all attention of image tokens that goes to each token of the
            grid; sums to 1 where there are no others.
        text: likewise, to all text tokens together.
        entropy: of the weights of one query and head, in nats, mean; log of all keys at most.
        errors: squared error of the module's output over the squared output, for each candidate.
    """

    received: Tensor
    text: float
    entropy: float
    errors: dict[Candidate, float]


def sample_queries(tokens: int, count: int) -> Tensor:
    """The same random tokens every time; a regular grid would coincide with the kept keys."""
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(tokens, generator=generator)[:count].sort().values


def attended(call: Call, candidates: Iterable[Candidate]) -> Attended:
    """Looks at the attention of a sample of queries, and again with the keys of each candidate."""
    batch, heads, _, _ = call.query.shape
    keys = call.key.shape[2]
    mass, entropy = call.query.new_zeros(keys), 0.0
    step = max(1, _CHUNK // (batch * heads * keys))
    for begin in range(0, call.image_queries, step):
        rows = slice(begin, min(begin + step, call.image_queries))
        logits = call.query[:, :, rows] @ call.key.transpose(-1, -2) * call.scale
        if call.mask is not None:
            mask = call.mask if call.mask.shape[2] == 1 else call.mask[:, :, rows]
            logits = merge(mask, logits)
        weights = logits.softmax(-1)
        mass += weights.sum((0, 1, 2))
        entropy += float(torch.special.entr(weights).sum())
    rows_seen = batch * heads * call.image_queries
    mass = mass / rows_seen

    def output(key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return call.output(
            functional.scaled_dot_product_attention(call.query, key, value, mask, scale=call.scale)
        )

    dense = output(call.key, call.value, call.mask)
    size = max(float(dense.square().sum()), 1e-30)
    errors = {
        candidate: float((output(*call.kept(candidate)) - dense).square().sum()) / size
        for candidate in candidates
    }
    text = sum(float(mass[part].sum()) for part in call.text)
    return Attended(mass[call.image], text, entropy / rows_seen, errors)


# Sinks


def sink_measures(received: Tensor, scores: Tensor, box: Box) -> dict[str, float]:
    """Where most attention goes.

    Args:
        received: [N], shares.
        scores: [N], by which anchors are chosen.
        box: N = box.tokens.

    Returns:
        largest: share of one token times N; 1 is even.
        top_mass: share of the :data:`TOP` tokens that receive most.
        border: part of them within two tokens of the border.
        on_grid: part of them on the grid of factor 2, where a quarter of all tokens are.
        found: part of them that are among as many anchors or on that grid.
    """
    top = top_tokens(received)
    rows, columns = top // box.width % box.height, top % box.width
    inside = (
        (rows >= _BORDER)
        & (rows < box.height - _BORDER)
        & (columns >= _BORDER)
        & (columns < box.width - _BORDER)
    )
    on_grid = (rows % 2 == 0) & (columns % 2 == 0)
    found = on_grid | torch.isin(top, top_tokens(scores))
    return {
        "largest": float(received.max() * box.tokens),
        "top_mass": float(received[top].sum()),
        "border": float((~inside).float().mean()),
        "on_grid": float(on_grid.float().mean()),
        "found": float(found.float().mean()),
    }


def top_tokens(received: Tensor) -> Tensor:
    """Indices of the largest, at most :data:`TOP`: of the tokens that receive most."""
    return received.topk(min(TOP, len(received))).indices


def overlap(first: Tensor, second: Tensor) -> float:
    """Part of the first set of indices that is in the second."""
    return float(torch.isin(first, second).float().mean())
