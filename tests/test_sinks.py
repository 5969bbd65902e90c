"""Attention sinks of a trained network: a grid that misses them destroys the output.

Reproduces the first table of paper/LOG.md on the network of ``paper/terrain.py``;
``paper/sinks.py`` measures more of it.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from paper import terrain
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tokendown.attention import attend
from tokendown.grid import Grid
from tokendown.select import select

pytestmark = pytest.mark.weights
COARSENED = Grid(32, 32)  # the layers that `factor` applies to; the smaller ones stay dense


@pytest.fixture(scope="module")
def error_of():
    """(factor, anchors) -> relative error of five-step samples against dense attention."""
    net = terrain.load()
    wanted = terrain.sample(net)

    @cache
    def error(factor: int, anchors: int, attend=attend) -> float:
        def attention(site, query, key, value):
            if site.grid != COARSENED:
                return terrain.dense(site, query, key, value)
            return attend(query, key, value, site.grid, factor=factor, anchors=anchors)

        return terrain.relative_error(terrain.sample(net, attention), wanted)

    return error


def attend_without_multiplicities(query, key, value, grid, *, factor, anchors) -> Tensor:
    """As if every kept key stood for one token."""
    scores = torch.linalg.vector_norm(key, dim=-1)
    kept = select(scores, grid, factor, anchors=anchors)
    return scaled_dot_product_attention(query, kept.take(key), kept.take(value))


def test_a_grid_alone_destroys_the_output(error_of):
    assert error_of(4, 0) > 0.5


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_grid_with_anchors_keeps_it(error_of, factor):
    assert error_of(factor, 32) < 1e-3


def test_multiplicities_matter(error_of):
    assert error_of(4, 32, attend_without_multiplicities) > 10 * error_of(4, 32)
