"""Attention to kept keys that stand for several tokens each.

With m_j the number of original tokens that key j stands for, and d the head size,

    out_i = sum_j m_j exp(q_i . k_j / sqrt(d)) v_j / sum_j m_j exp(q_i . k_j / sqrt(d))

that is, log m_j is added to the logits. A grid alone has a constant m, which cancels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ._errors import GridError
from .config import CellMethod, expect, is_int
from .grid import Grid
from .multiplicity import weighed
from .select import expect_choice, select


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grid: Grid,
    *,
    factor: int = 2,
    anchors: int = 32,
    method: CellMethod = "nearest",
    exact: int = 0,
    scale: float | None = None,
) -> Tensor:
    """Attention of every query to a coarse grid of keys, some anchors, and the exact keys.

    The grid keys count ``factor`` squared each, anchors (the off-grid keys of largest norm, chosen
    per batch item and head) and exact keys count 1. ``factor=1`` is plain attention.

    A patched layer differs where a token of large norm is on the grid: there it is an anchor, and
    the shortest token of its cell stands for the cell.

    Args:
        query: [batch, heads, queries, head_dim].
        key: [batch, key_heads, grid.tokens + exact, head_dim]; heads is a multiple of key_heads.
        value: [batch, key_heads, grid.tokens + exact, head_dim].
        grid: (height, width) of the image tokens, which come first among the keys.
        factor: linear, >= 1.
        anchors: >= 0; fewer are kept where fewer keys are off the grid.
        method: "nearest" keeps the top-left key and value of a cell, "mean" averages the cell.
        exact: how many of the last keys are not on the grid (text, references), >= 0.
        scale: of the logits; None means 1 / sqrt(head_dim).

    Returns:
        [batch, heads, queries, head_dim]

    Raises:
        GridError: the keys are not grid.tokens + exact, or ``grid`` is no Grid.
        ConfigError: a number is out of its range, or the method none of these.

    Source: arXiv:2402.13573 (grid only); docs/how-it-works.md, "The one formula".
    """
    expect_choice(grid, factor, method)
    expect(is_int(anchors, 0), "a number of anchors >= 0", anchors)
    expect(is_int(exact, 0), "a number of exact keys >= 0", exact)
    for name, x in {"query": query, "key": key, "value": value}.items():
        expect(x.ndim == 4, f"{name} as [batch, heads, tokens, head_dim]", tuple(x.shape))
    if key.shape[-2] != grid.tokens + exact:
        raise GridError(
            f"expected {grid.tokens} keys for a {grid} grid and {exact} exact keys, "
            f"got {key.shape[-2]}"
        )
    image_key, exact_key = torch.split(key, [grid.tokens, exact], dim=-2)
    image_value, exact_value = torch.split(value, [grid.tokens, exact], dim=-2)
    scores = vector_norm(image_key) if anchors and factor > 1 else None
    kept = select(scores, grid, factor, anchors=anchors, method=method)
    return weighed(
        query,
        torch.cat([kept.take(image_key), exact_key], dim=-2),
        torch.cat([kept.take(image_value), exact_value], dim=-2),
        kept.runs(exact),
        scale=scale,
        enable_gqa=query.shape[-3] != key.shape[-3],
    )


def vector_norm(x: Tensor) -> Tensor:
    """Length of each vector, [..., N, C] -> [..., N], in float32 at least."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    lengths: Tensor = torch.linalg.vector_norm(x, dim=-1, dtype=dtype)
    return lengths


def fold_bias(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, *, scale: float, multiple: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    """Moves a bias on the keys into one more head channel, for kernels that refuse a mask.

    The query gets a 1 and the key gets bias / scale in the new channel, so that the scaled product
    gains exactly the bias. All three are padded with zeros to a multiple of ``multiple`` channels,
    as flash kernels want them; drop the added channels of the result. Pass ``scale`` on to the
    kernel: its own default would follow the padded size.

    Args:
        query: [..., queries, head_dim].
        key: [..., keys, head_dim].
        value: [..., keys, head_dim].
        bias: [keys], added to the scaled logits.
        scale: of the logits.
        multiple: of the padded head size.

    Returns:
        query, key and value with the padded head size.
    """
    size = query.shape[-1]
    pad = -(size + 1) % multiple
    folded_key = torch.cat(
        [key, (bias / scale).to(key.dtype).expand(key.shape[:-1]).unsqueeze(-1)], dim=-1
    )
    folded_query = functional.pad(query, (0, 1), value=1.0)
    return (
        functional.pad(folded_query, (0, pad)),
        functional.pad(folded_key, (0, pad)),
        functional.pad(value, (0, pad + 1)),
    )
