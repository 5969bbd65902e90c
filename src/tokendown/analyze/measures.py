"""Measures of one self-attention layer at one call, from its true inputs.

No matrix of all pairs of tokens is ever made: what needs attention weights looks at a sample of
queries, in chunks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..grid import Grid
from ..select import Selection, select

Candidate = tuple[int, int]
"""(factor, anchors)"""

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


@dataclass(frozen=True)
class Attended:
    """Dense attention of a sample of queries, and what fewer keys would change.

    Attributes:
        received: [N], the share of all attention that goes to each token; sums to 1.
        entropy: of the weights of one query and head, in nats, mean; log N at most.
        errors: squared error of the module's output over the squared output, for each candidate.
    """

    received: Tensor
    entropy: float
    errors: dict[Candidate, float]


def sample_queries(tokens: int, count: int) -> Tensor:
    """The same random tokens every time; a regular grid would coincide with the kept keys."""
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(tokens, generator=generator)[:count].sort().values


def attended(
    attention: Any,
    tokens: Tensor,
    scores: Tensor,
    grid: Grid,
    candidates: Iterable[Candidate],
    sample: Tensor,
) -> Attended:
    """Looks at a diffusers ``Attention`` through a sample of its queries.

    All candidates share the exponentials of the dense run, so each costs one small product.

    Args:
        attention: the module.
        tokens: its input, [B, N, C].
        scores: by which anchors are chosen, [B, N].
        grid: N = grid.tokens.
        candidates: (factor, anchors) pairs.
        sample: indices of the queries.
    """
    query, key, value = _project(attention, tokens, sample)
    batch, heads, _, _ = query.shape
    kept = {(f, a): select(scores, grid, f, anchors=a) for f, a in candidates}
    received = query.new_zeros(grid.tokens)
    entropy, size = 0.0, 0.0
    wrong = dict.fromkeys(kept, 0.0)
    for part in query.split(max(1, _CHUNK // (batch * heads * grid.tokens)), dim=2):
        logits = part @ key.transpose(-1, -2) * attention.scale
        logits = logits - logits.amax(-1, keepdim=True)
        weights = logits.exp()
        total = weights.sum(-1, keepdim=True)
        received += (weights / total).sum((0, 1, 2))
        entropy += float((total.log()[..., 0] - (weights * logits).sum(-1) / total[..., 0]).sum())
        dense = _output(attention, weights @ value / total)
        size += float(dense.square().sum())
        for candidate, selection in kept.items():
            output = _output(attention, _coarse(weights, value, selection))
            wrong[candidate] += float((output - dense).square().sum())
    rows = batch * heads * query.shape[2]
    errors = {candidate: error / max(size, 1e-30) for candidate, error in wrong.items()}
    return Attended(received / rows, entropy / rows, errors)


def _project(attention: Any, tokens: Tensor, sample: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of the sample, all keys and values, [B, heads, ., head_dim] in float32."""
    query, key, value = (
        projection(x).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for projection, x in (
            (attention.to_q, tokens[:, sample.to(tokens.device)]),
            (attention.to_k, tokens),
            (attention.to_v, tokens),
        )
    )
    if attention.norm_q is not None:
        query = attention.norm_q(query)
    if attention.norm_k is not None:
        key = attention.norm_k(key)
    return query.float(), key.float(), value.float()


def _coarse(weights: Tensor, value: Tensor, selection: Selection) -> Tensor:
    """The formula on exponentials that are there: sum of m w v over sum of m w."""
    many = selection.factor**2
    one = selection.grid.coarse(selection.factor).tokens
    kept = _take(weights, selection)
    kept[..., :one] *= many
    values = _take(value.transpose(-1, -2), selection).transpose(-1, -2)
    out: Tensor = (kept @ values) / kept.sum(-1, keepdim=True)
    return out


def _take(x: Tensor, selection: Selection) -> Tensor:
    """[B, heads, ., N] -> [B, heads, ., kept]: columns of the grid, then of the anchors."""
    columns = x.unflatten(-1, (selection.grid.height, selection.grid.width))
    grid: Tensor = columns[..., :: selection.factor, :: selection.factor].flatten(-2)
    if selection.anchors is None:
        return grid.clone()
    index: Tensor = selection.anchors[:, None, None].expand(*x.shape[:-1], -1)
    return torch.cat([grid, x.gather(-1, index)], dim=-1)


def _output(attention: Any, heads: Tensor) -> Tensor:
    """[B, heads, Q, head_dim] -> what the module would return, [B, Q, C]."""
    project = attention.to_out[0]
    joined = heads.transpose(1, 2).flatten(-2).to(attention.to_q.weight.dtype)
    out: Tensor = project(joined)
    return out.float()


# Sinks


def sink_measures(received: Tensor, scores: Tensor, grid: Grid) -> dict[str, float]:
    """Where most attention goes.

    Args:
        received: [N], shares.
        scores: [N], by which anchors are chosen.
        grid: N = grid.tokens.

    Returns:
        largest: share of one token times N; 1 is even.
        top_mass: share of the :data:`TOP` tokens that receive most.
        border: part of them within two tokens of the border.
        on_grid: part of them on the grid of factor 2, where a quarter of all tokens are.
        found: part of them that are among as many anchors or on that grid.
    """
    top = top_tokens(received)
    rows, columns = top // grid.width, top % grid.width
    inside = (
        (rows >= _BORDER)
        & (rows < grid.height - _BORDER)
        & (columns >= _BORDER)
        & (columns < grid.width - _BORDER)
    )
    on_grid = (rows % 2 == 0) & (columns % 2 == 0)
    anchors = select(scores, grid, 2, anchors=TOP).anchors
    found = on_grid if anchors is None else on_grid | torch.isin(top, anchors)
    return {
        "largest": float(received.max() * grid.tokens),
        "top_mass": float(received[top].sum()),
        "border": float((~inside).float().mean()),
        "on_grid": float(on_grid.float().mean()),
        "found": float(found.float().mean()),
    }


def top_tokens(received: Tensor) -> Tensor:
    """Indices of the tokens that receive most, at most :data:`TOP`."""
    return received.topk(min(TOP, len(received))).indices


def overlap(first: Tensor, second: Tensor) -> float:
    """Part of the first set of indices that is in the second."""
    return float(torch.isin(first, second).float().mean())
