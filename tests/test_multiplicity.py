"""Kept keys that count several times: two calls merged by their log-sum-exp, against a softmax."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
import tiny_transformers
from tokendown import Grid, apply_patch, attend, multiplicity
from tokendown.multiplicity import bias_of, merged, weighed

RUNS = st.lists(st.tuples(st.integers(0, 5), st.sampled_from((1, 9))), min_size=2, max_size=5)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(queries, keys):
    return (noise(2, 3, n, 8, seed=seed) for seed, n in enumerate((queries, keys, keys)))


def told(query, key, value, scale):
    """A kernel that tells its log-sum-exp, written out."""
    logits = query @ key.transpose(-1, -2) * scale
    return logits.softmax(-1) @ value, logits.logsumexp(-1)


def wanted(query, key, value, runs, scale):
    weights = torch.cat([torch.full((count,), float(m)) for count, m in runs]).to(query)
    shares = weights * (query @ key.transpose(-1, -2) * scale).exp()
    return shares / shares.sum(-1, keepdim=True) @ value


@given(RUNS.filter(lambda runs: len({m for count, m in runs if count}) == 2), st.floats(0.1, 1.5))
def test_two_calls_are_one_weighed_attention(runs, scale):
    keys = sum(count for count, _ in runs)
    query, key, value = (x.double() for x in inputs(7, keys))
    want = wanted(query, key, value, runs, scale)
    got = merged(query, key, value, tuple(runs), told, scale=scale)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        weighed(query, key, value, tuple(runs), scale=scale), want, rtol=0, atol=1e-10
    )


def test_runs_without_keys_and_equal_ones_need_no_bias():
    assert bias_of(((4, 9), (0, 1)), noise(1)) is None
    assert bias_of(((4, 1), (3, 1)), noise(1)) is None
    assert bias_of((), noise(1)) is None


@pytest.fixture
def two_calls(monkeypatch):
    """As if PyTorch's CPU kernels were slow with a bias; counts the calls."""
    calls = []

    def kernel(*inputs):
        calls.append(inputs[0].shape)
        return told(*inputs)

    monkeypatch.setattr(multiplicity, "kernel_for", lambda *_: kernel)
    monkeypatch.setattr(multiplicity, "_WORTH_MERGING", 0)
    return calls


@pytest.mark.parametrize("exact", [0, 5])
def test_attend_in_two_calls(two_calls, monkeypatch, exact):
    query, key, value = inputs(35, 35 + exact)
    got = attend(query, key, value, Grid(5, 7), factor=2, anchors=4, exact=exact)
    assert len(two_calls) == 2
    monkeypatch.undo()
    want = attend(query, key, value, Grid(5, 7), factor=2, anchors=4, exact=exact)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_few_logits_are_not_worth_it(two_calls, monkeypatch):
    monkeypatch.setattr(multiplicity, "_WORTH_MERGING", 2 * 3 * 35 * (12 + 4) + 1)
    query = noise(2, 3, 35, 8)
    attend(query, query, query, Grid(5, 7), factor=2, anchors=4)
    assert not two_calls


@pytest.mark.parametrize("kind", ["flux", "sd35", "wan"])
def test_transformers_in_two_calls(kind, two_calls, monkeypatch):
    model = getattr(tiny_transformers, kind)()
    call = tiny_transformers.inputs(kind, model, 8, 6)
    with torch.no_grad(), apply_patch(model, factor=2, anchors=3):
        got = tiny.flatten(model(**call))
        assert len(two_calls) >= 2
        monkeypatch.undo()
        want = tiny.flatten(model(**call))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
