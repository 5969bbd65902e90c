"""The table makers of ``paper/``: what they compare is what they say, at sizes without weights."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from paper import report, sinks, table1, terrain_table
from paper.terrain import Site, dense
from paper.terrain_table import Choice, Keys, grid_index, phases
from torch.nn.functional import scaled_dot_product_attention

from tokendown.attention import attend
from tokendown.generate import Request, open_pipeline
from tokendown.grid import Grid
from tokendown.models import builtin

GRID = Grid(5, 7)  # odd, not square
HEADS = 2


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(terrain_table, "TOKENS", GRID.tokens)


def call(choice, grid=GRID, step=0, tokens=None):
    """(output, query, key, value) of one layer on random tokens."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(2, grid.tokens, 8, generator=generator) if tokens is None else tokens
    query, key, value = (
        (tokens @ torch.randn(8, 8, generator=generator)).unflatten(2, (HEADS, 4)).transpose(1, 2)
        for _ in range(3)
    )
    keys = Keys(choice)
    keys.on_step(step)
    return keys(Site(0, grid, tokens, tokens), query, key, value), query, key, value


def masked(query, key, value, kept):
    """Dense attention in which the other keys are masked; kept is [heads, N]."""
    return scaled_dot_product_attention(query, key, value, attn_mask=kept[:, None])


def by_hand(factor, row, column):
    """The same rule in words: one token a cell, and the last one where a cell ends before it."""
    keep = torch.zeros(GRID.height, GRID.width, dtype=torch.bool)
    for top in range(0, GRID.height, factor):
        for left in range(0, GRID.width, factor):
            keep[min(top + row, GRID.height - 1), min(left + column, GRID.width - 1)] = True
    return keep.flatten()


@pytest.mark.parametrize("factor", [2, 3])
def test_a_phase_is_dense_attention_with_the_other_keys_masked(factor):
    for phase in phases(factor, 99):
        found, *qkv = call(Choice(factor, phase=phase))
        want = masked(*qkv, by_hand(factor, *phase).expand(HEADS, -1))
        torch.testing.assert_close(found, want)


def test_phases_differ_by_head_and_by_step():
    found, *qkv = call(Choice(2, "per head"))
    kept = torch.stack([by_hand(2, 0, 0), by_hand(2, 1, 1)])
    torch.testing.assert_close(found, masked(*qkv, kept))
    choice = Choice(2, "per step")
    order = Keys(choice).order
    assert sorted(order) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for step in range(5):
        found, *qkv = call(choice, step=step)
        want = masked(*qkv, by_hand(2, *order[step % 4]).expand(HEADS, -1))
        torch.testing.assert_close(found, want)


@pytest.mark.parametrize("keys", ["phase", "mean"])
@pytest.mark.parametrize("factor", [2, 3])
def test_anchors_with_log_m_are_what_the_library_does(keys, factor):
    found, *qkv = call(Choice(factor, keys, anchors=4))
    method = "mean" if keys == "mean" else "nearest"
    want = attend(*qkv, GRID, factor=factor, anchors=4, method=method)
    torch.testing.assert_close(found, want)
    without, *_ = call(Choice(factor, keys, anchors=4, bias=False))
    assert not torch.allclose(found, without, atol=1e-3)


@pytest.mark.parametrize("keys", ["merge", "merge top-left"])
def test_merging_equal_tokens_changes_nothing(keys, monkeypatch):
    """Cells of equal tokens merge into themselves, which is dense attention among the cells."""
    generator = torch.Generator().manual_seed(2)
    cells = torch.randn(1, 2, 3, 8, generator=generator)
    tokens = cells.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
    grid = Grid(4, 6)
    monkeypatch.setattr(terrain_table, "TOKENS", grid.tokens)
    found, *qkv = call(Choice(2, keys), grid, tokens=tokens)
    torch.testing.assert_close(found, scaled_dot_product_attention(*qkv))
    found, *qkv = call(
        Choice(2, keys), grid, tokens=tokens + torch.randn(1, 24, 8, generator=generator)
    )
    assert not torch.allclose(found, scaled_dot_product_attention(*qkv), atol=1e-2)
    outputs = found.transpose(1, 2).flatten(2)[0]
    assert len(torch.unique(outputs.mul(1e4).round(), dim=0)) <= 6  # as many as are kept


def test_other_grids_stay_dense():
    grid = Grid(3, 3)
    found, *qkv = call(Choice(2), grid)
    assert torch.equal(found, dense(None, *qkv))


def test_phases_are_spread_over_the_cell():
    assert phases(2, 4) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(phases(8, 16)) == len(set(phases(8, 16))) == 16
    assert phases(8, 2) == [(0, 0), (7, 7)]
    assert all(len(grid_index(GRID, 3, phase)) == 6 for phase in phases(3, 9))


def test_a_row_joins_its_choices_and_seeds():
    records = [
        {"row": "a", "factor": 2, "runs": [0.1, 0.3]},
        {"row": "a", "factor": 2, "runs": [0.2, 0.9]},
        {"row": "a", "factor": 4, "runs": [1.0]},
    ]
    text = terrain_table.table(records)
    assert "| a | 0.25 (0.1 to 0.9) | 1 (1 to 1) |" in text
    assert sinks.spread is report.spread


def test_factors_can_be_measured_one_at_a_time(tmp_path):
    path, settings = tmp_path / "r.json", {"seeds": 3}
    assert terrain_table.others(path, settings, [2]) == []
    records = [{"factor": 2}, {"factor": 4}]
    report.write(path, {"settings": settings, "errors": records}, "")
    assert terrain_table.others(path, settings, [2]) == [{"factor": 4}]
    assert terrain_table.others(path, {"seeds": 1}, [2]) == []


# Table 1


@pytest.fixture(scope="module")
def stand_in():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtin, "trained_folder", lambda: None)
        yield open_pipeline(Request("a dog", steps=1, config=None))


def test_sizes_at_which_a_ratio_leaves_the_same_number_of_tokens(stand_in):
    assert table1.sizes_that_keep(*stand_in, 4096) == [(512, 2), (768, 3), (1024, 4)]
    assert table1.sizes_that_keep(*stand_in, 1024) == [(256, 2), (384, 3), (512, 4)]


def test_table_1_has_every_method_at_every_ratio(stand_in):
    pipe, request = stand_in
    request = replace(request, width=96, height=64)
    found = table1.at_size(pipe, [request], [2, 3], None)
    lines = found["lines"]
    assert [(line["method"], line["kept_tokens"]) for line in lines] == [
        ("dense", 16 * 24), ("ToMe", 8 * 12), ("ToDo", 8 * 12), ("tokendown", 8 * 12),
        ("ToMe", 6 * 8), ("ToDo", 6 * 8), ("tokendown", 6 * 8),
    ]  # fmt: skip
    assert all(line["mse"] > 0 for line in lines[1:])
    assert len({line["mse"] for line in lines[1:]}) == 6
    text = table1.table(lines)
    assert text.count("\n") == 1 + len(lines)
    assert "LPIPS" not in text  # no weights, no column
    assert f"{lines[1]['mse']:.2e}" in text
    assert found["pictures"]["methods"][2]["config"]["anchors"] == 0
    assert math.isclose(found["pictures"]["methods"][1]["tomesd"]["ratio"], 0.75)


def test_a_record_and_its_table_are_written_together(tmp_path):
    table = report.markdown(["a", "b"], [["1", "2"]])
    report.write(tmp_path / "x" / "r.json", {"a": 1}, table)
    assert (tmp_path / "x" / "r.md").read_text() == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["r.json", "r.md"]
