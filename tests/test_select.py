"""Selection and attention on plain tensors against loops and explicit softmax."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
from tokendown import ConfigError, Grid, GridError, attend, select_tokens
from tokendown.attention import fold_bias, vector_norm
from tokendown.multiplicity import bias_of
from tokendown.select import Selection, kept_tokens, select

sides = st.integers(1, 13)
factors = st.integers(1, 6)
F64 = torch.float64


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Grid


@given(sides, sides, factors)
def test_a_partial_cell_keeps_a_token(height, width, factor):
    coarse = Grid(height, width).coarse(factor)
    assert coarse.height == len(range(0, height, factor))
    assert coarse.width == len(range(0, width, factor))
    assert coarse.tokens == int(reference.kept_keys(height, width, factor).sum())


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 5000))
def test_factor_for_is_the_smallest_that_fits(height, width, budget):
    grid = Grid(height, width)
    factor = grid.factor_for(budget)
    assert grid.coarse(factor).tokens <= budget
    assert factor == 1 or grid.coarse(factor - 1).tokens > budget


@pytest.mark.parametrize("size", [(0, 4), (4, 0), (-1, 4)])
def test_a_grid_has_sides(size):
    with pytest.raises(GridError, match=f"got {size[0]} x {size[1]}"):
        Grid(*size)


# Tokens


@given(sides, sides, factors)
def test_nearest_keeps_the_top_left_token(height, width, factor):
    x = noise(2, height * width, 3)
    got = select_tokens(x, Grid(height, width), factor)
    assert torch.equal(got, x[:, reference.kept_keys(height, width, factor)])


@given(sides, sides, factors)
def test_mean_averages_the_tokens_that_exist(height, width, factor):
    x = noise(2, height * width, 3)
    got = select_tokens(x, Grid(height, width), factor, "mean")
    torch.testing.assert_close(got, reference.cell_means(x, height, width, factor))


@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (2, 1, 4)])
@pytest.mark.parametrize("method", ["nearest", "mean"])
def test_leading_dimensions_are_free(lead, method):
    x = noise(*lead, 35, 3)
    got = select_tokens(x, Grid(5, 7), 2, method)
    want = select_tokens(x.reshape(-1, 35, 3), Grid(5, 7), 2, method)
    torch.testing.assert_close(got, want.view(*lead, 12, 3))


def test_factor_one_returns_the_tokens_themselves():
    x = noise(1, 35, 3)
    assert select_tokens(x, Grid(5, 7), 1) is x


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", ["nearest", "mean"])
def test_dtype_stays(dtype, method):
    assert select_tokens(noise(1, 35, 3, dtype=dtype), Grid(5, 7), 2, method).dtype == dtype


def test_a_wrong_number_of_tokens_is_an_error_with_both_numbers():
    with pytest.raises(GridError, match="expected 35 tokens for a 5x7 grid, got 36"):
        select_tokens(noise(1, 36, 3), Grid(5, 7), 2)


# Anchors


@given(sides, sides, st.integers(2, 6), st.integers(0, 40))
def test_anchors_are_the_longest_tokens_off_the_grid(height, width, factor, count):
    grid = Grid(height, width)
    scores = noise(2, grid.tokens).abs()
    kept = select(scores, grid, factor, anchors=count)
    x = torch.arange(grid.tokens, dtype=F64).expand(2, -1).unsqueeze(-1)
    bias = reference.log_multiplicities(scores, height, width, factor, count)
    for got, want in zip(kept.take(x), bias, strict=True):
        indices = got.flatten().long().tolist()
        assert len(indices) == len(set(indices))  # nothing is counted twice
        assert sorted(indices) == want.isfinite().nonzero().flatten().tolist()
    assert kept.take(x).shape[1] == kept_tokens(grid, factor, count)


@given(sides, sides, st.integers(2, 6), st.integers(0, 40))
def test_anchors_beside_averages_may_be_any_token(height, width, factor, count):
    grid = Grid(height, width)
    scores = noise(2, grid.tokens).abs()
    kept = select(scores, grid, factor, anchors=count, method="mean")
    want = scores.topk(min(count, grid.tokens)).values.sort(-1).values
    if want.shape[-1]:
        assert torch.equal(scores.gather(-1, kept.anchors).sort(-1).values, want)
    else:
        assert kept.anchors is None
    assert kept.take(noise(2, grid.tokens, 3)).shape[1] == kept_tokens(grid, factor, count, "mean")


def test_choosing_anchors_leaves_the_scores_alone():
    scores = noise(2, 35)
    before = scores.clone()
    select(scores, Grid(5, 7), 2, anchors=4)
    assert torch.equal(scores, before)


def test_factor_one_keeps_everything_once():
    kept = select(noise(1, 35), Grid(5, 7), 1, anchors=8)
    x = noise(1, 35, 3)
    assert torch.equal(kept.take(x), x)
    assert bias_of(kept.runs(), x) is None
    assert kept_tokens(Grid(5, 7), 1, 8) == 35


@pytest.mark.parametrize("exact", [0, 3])
def test_bias_is_log_m(exact):
    kept = select(noise(2, 35), Grid(5, 7), 3, anchors=4)
    want = [math.log(9)] * 6 + [0.0] * (4 + exact)
    assert bias_of(kept.runs(exact), noise(1)).tolist() == pytest.approx(want)


def test_a_constant_multiplicity_needs_no_bias():
    assert bias_of(Selection(Grid(5, 7), 3).runs(), noise(1)) is None
    assert bias_of(Selection(Grid(5, 7), 3).runs(exact=2), noise(1)) is not None


# Masks


@given(sides, sides, factors, st.integers(0, 9), st.sampled_from([(2,), (2, 1), (2, 3, 4), (1, 1)]))
def test_masks_follow_their_keys(height, width, factor, count, lead):
    grid = Grid(height, width)
    kept = select(noise(2, grid.tokens), grid, factor, anchors=count)
    mask = noise(*lead, grid.tokens, seed=1)
    got = kept.take_mask(mask)
    rows = kept.take(mask.reshape(lead[0], -1, grid.tokens).mT.expand(2, -1, -1)).mT
    batch = got.shape[0]  # a mask of batch 1 stays so where no anchors depend on the item
    assert torch.equal(got, rows[:batch].reshape(batch, *lead[1:], -1))


def test_masks_cannot_follow_averages():
    with pytest.raises(GridError, match="use method='nearest'"):
        Selection(Grid(5, 7), 2, "mean").take_mask(noise(1, 35))


# Attention


def heads(grid: Grid, exact: int = 0, key_heads: int = 2, dtype: torch.dtype = F64):
    """Query, key and value of 4 heads with sharp logits."""
    query = noise(2, 4, 9, 8, seed=1, dtype=dtype) * 2
    key = noise(2, key_heads, grid.tokens + exact, 8, seed=2, dtype=dtype) * 2
    return query, key, noise(2, key_heads, grid.tokens + exact, 5, seed=3, dtype=dtype)


def explicit(query, key, value, grid, factor, anchors, exact=0, scale=None):
    """Loops over batch items and heads, and the formula as it is written."""
    out = torch.empty(*query.shape[:3], value.shape[-1], dtype=F64)
    group = query.shape[1] // key.shape[1]
    scale = scale or query.shape[-1] ** -0.5
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            q, k, v = (x.to(F64) for x in (query[b, h], key[b, h // group], value[b, h // group]))
            norms = k[: grid.tokens].pow(2).sum(-1).sqrt()[None]
            size = (grid.height, grid.width)
            logs = reference.log_multiplicities(norms, *size, factor, anchors)[0]
            m = torch.cat([logs.exp(), torch.ones(exact, dtype=F64)])
            weights = m * (q @ k.T * scale).exp()
            out[b, h] = weights @ v / weights.sum(-1, keepdim=True)
    return out


@given(sides, sides, factors, st.integers(0, 20), st.integers(0, 4), st.sampled_from([1, 2, 4]))
def test_attend_is_the_formula(height, width, factor, anchors, exact, key_heads):
    grid = Grid(height, width)
    query, key, value = heads(grid, exact, key_heads)
    got = attend(query, key, value, grid, factor=factor, anchors=anchors, exact=exact)
    want = explicit(query, key, value, grid, factor, anchors, exact)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_attend_with_a_scale():
    grid = Grid(5, 7)
    query, key, value = heads(grid)
    got = attend(query, key, value, grid, anchors=3, scale=0.1)
    want = explicit(query, key, value, grid, 2, 3, scale=0.1)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@given(sides, sides, factors)
def test_grid_only_attend_is_dense_attention_with_dropped_keys_masked(height, width, factor):
    grid = Grid(height, width)
    query, key, value = heads(grid, key_heads=4, dtype=torch.float32)
    got = attend(query, key, value, grid, factor=factor, anchors=0)
    keep = reference.kept_keys(height, width, factor)
    want = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=keep[None])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_a_grid_of_duplicates_is_lossless():
    """Where all tokens of a cell are equal, log m restores the weight of text exactly."""
    grid = Grid(6, 8)
    query, key, value = heads(grid, exact=3, key_heads=4)
    rows, columns = torch.arange(6) // 2 * 2, torch.arange(8) // 2 * 2
    source = torch.cat([(rows[:, None] * 8 + columns).flatten(), torch.arange(48, 51)])
    key, value = key[:, :, source], value[:, :, source]
    dense = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    got = attend(query, key, value, grid, factor=2, anchors=0, exact=3)
    torch.testing.assert_close(got, dense, rtol=0, atol=1e-12)


def test_keeping_every_anchor_still_weighs_the_grid():
    """All tokens are kept, yet a grid token counts factor squared: not dense attention."""
    grid = Grid(4, 4)
    query, key, value = heads(grid, key_heads=4)
    got = attend(query, key, value, grid, factor=2, anchors=100)
    want = explicit(query, key, value, grid, 2, 100)
    dense = attend(query, key, value, grid, factor=1)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    assert (got - dense).abs().max() > 1e-3


def test_averages_with_anchors():
    grid = Grid(5, 7)
    query, key, value = heads(grid, exact=2, key_heads=4)
    got = attend(query, key, value, grid, factor=2, anchors=3, method="mean", exact=2)
    flat_key, flat_value = key.flatten(0, 1), value.flatten(0, 1)
    top = flat_key[:, :35].norm(dim=-1).topk(3).indices
    parts = []
    for x in (flat_key, flat_value):
        anchors = x.gather(1, top[..., None].expand(-1, -1, x.shape[-1]))
        parts.append(torch.cat([reference.cell_means(x[:, :35], 5, 7, 2), anchors, x[:, 35:]], 1))
    bias = torch.tensor([math.log(4)] * 12 + [0.0] * 5, dtype=F64)
    want = reference.softmax_attention(query.flatten(0, 1), *parts, bias).view_as(got)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_attend_is_as_exact_as_plain_attention(dtype):
    grid = Grid(9, 7)
    query, key, value = (x.to(dtype) for x in heads(grid, key_heads=4))
    plain = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    q, k, v = (x.double() for x in (query, key, value))
    bound = (plain - torch.nn.functional.scaled_dot_product_attention(q, k, v)).abs().max()
    got = attend(query, key, value, grid, factor=2, anchors=5)
    want = explicit(query, key, value, grid, 2, 5)
    assert got.dtype == dtype
    assert (got - want).abs().max() <= 3 * bound


def test_attend_expects_grid_and_exact_keys():
    grid = Grid(5, 7)
    query, key, value = heads(grid, exact=1)
    with pytest.raises(GridError, match="expected 35 keys for a 5x7 grid and 0 exact keys, got 36"):
        attend(query, key, value, grid)


# A bias without a mask


@pytest.mark.parametrize("size", [7, 8, 40])
def test_fold_bias_is_the_bias(size):
    query, key, value = (noise(2, 3, n, size, seed=n) for n in (5, 11, 11))
    bias, scale = noise(11, seed=9), size**-0.5
    want = reference.softmax_attention(query, key, value, bias)
    folded = fold_bias(query, key, value, bias, scale=scale)
    assert all(x.shape[-1] % 8 == 0 for x in folded)
    got = torch.nn.functional.scaled_dot_product_attention(*folded, scale=scale)
    torch.testing.assert_close(got[..., :size], want, rtol=0, atol=1e-12)
    assert not got[..., size:].any()


def test_norms_of_half_precision_do_not_overflow():
    x = torch.full((1, 2, 1000), 60000.0, dtype=torch.float16)
    assert vector_norm(x).isfinite().all()


X = torch.zeros(1, 2, 35, 8)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"factor": 0}, ConfigError, "factor >= 1"),
        ({"factor": 2.0}, ConfigError, "factor >= 1"),
        ({"method": "jitter"}, ConfigError, "'nearest' or 'mean'"),
        ({"grid": (5, 7)}, GridError, r"Grid\(height, width\), got \(5, 7\)"),
        ({"grid": Grid(5, 8)}, GridError, "40"),
        ({"anchors": -1}, ConfigError, "anchors >= 0"),
        ({"exact": -1}, ConfigError, "exact keys >= 0"),
        ({"value": X[0]}, ConfigError, r"value as \[batch, heads, tokens, head_dim\]"),
    ],
)
def test_arguments_that_cannot_be_right(options, error, said):
    given = {"query": X, "key": X, "value": X, "grid": Grid(5, 7), **options}
    with pytest.raises(error, match=said):
        attend(**given)
    if set(options) <= {"factor", "method", "grid"}:
        with pytest.raises(error, match=said):
            select_tokens(X, **{"grid": Grid(5, 7), "factor": 2, **options})


@pytest.mark.parametrize("side", [0, -1, 2.5, "3"])
def test_sides_that_cannot_be_right(side):
    with pytest.raises(GridError, match="sides of at least 1 token"):
        Grid(3, side)
