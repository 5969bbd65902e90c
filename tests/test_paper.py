"""Every script of paper/ runs, in its quick form, and writes nothing."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paper import builtin_table, ceilings, choices, levels, pairs, pictures, report, table1
from paper.terrain import Site

import tiny
from tokendown import TunedPlan, apply_patch, attend, summary
from tokendown.generate import open_pipeline
from tokendown.grid import Grid
from tokendown.models.loading import fingerprint
from tokendown.request import Request

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.parametrize(
    "script",
    [
        "sinks",
        "terrain_table",
        "once",
        "builtin_table",
        "levels",
        "jitter",
        "table1",
        "figure4",
        "caches",
        "ceilings",
    ],
)
def test_script(script):
    before = files()
    done = subprocess.run(
        [sys.executable, "-m", f"paper.{script}", "--quick"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
    assert files() == before


def test_methods_are_compared_picture_by_picture():
    """By hand: gains of 1, 3 and -1 dB have a mean of 1 and a standard error of 2 / sqrt(3)."""
    rows = [
        {"methods": {"dense": {}, "paper": {"psnr_db": 30, "mse": 1e-3},
                     "auto": {"psnr_db": 30 + gain, "mse": mse}}}
        for gain, mse in ((1, 1e-4), (3, 2e-4), (-1, 9e-4))
    ]  # fmt: skip
    methods = [
        {"name": name, "predicted_speedup": speedup}
        for name, speedup in (("dense", None), ("auto", 2.5), ("paper", 2.0))
    ]
    split = [{"rows": rows[:1], "methods": methods}, {"rows": rows[1:], "methods": methods}]
    assert pairs.table(split).splitlines()[2:] == [
        "| paper | 2.00 |  |  | 1.0e-03 | 1.0e-03 |",
        "| auto | 2.50 | 2 of 3 | 1.0 (1.2) | 2.0e-04 | 4.0e-04 |",
    ]


def test_the_log_shows_what_the_records_say():
    files = ("compare-512-20.json", "compare-512-20-more.json")
    records = [json.loads((ROOT / "paper" / "results" / name).read_text()) for name in files]
    assert pairs.table(records) in (ROOT / "paper" / "LOG.md").read_text()


def test_levels_are_those_of_the_model(tmp_path):
    """Also where self-attention is at the finest level alone."""
    unet = tiny.shallow_unet(mid_block_type="UNetMidBlock2D")
    pipe = tiny.sd_pipeline(tmp_path, unet=unet)
    found = levels.rows(pipe, Request(width=32, height=32, steps=1, guidance=1.0), ("a cat",))
    assert {row["downsampling"] for row in found} == {1}
    assert {row["layers"] for row in found} == {3}
    errors = {row["what"]: row["median"] for row in found}
    assert errors["switched off"] > errors["factor 2, nearest, 0 anchors"] > 0
    head, _, *lines = levels.table(found).splitlines()
    assert head.split("|")[1:-1] == [" self-attention ", " downsampling 1 "]
    assert len(lines) == len(errors)


@pytest.mark.parametrize("anchors", [0, 3])
def test_choices_are_what_attend_does(anchors):
    """Written out twice, in the library and for the tables."""
    grid = Grid(8, 12)
    q, k, v = torch.randn(3, 2, 4, grid.tokens, 8, generator=torch.Generator().manual_seed(0))
    for factor in choices.FACTORS[:3]:
        keys = choices.Keys(choices.Choice(factor, anchors=anchors))
        if anchors and factor == 3:
            continue  # the tables have whole cells only, and give every one of them the same log m
        out = keys(Site(0, grid, None, None), q, k, v)
        want = attend(q, k, v, grid, factor=factor, anchors=anchors)
        torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-5)


def test_an_anchor_on_the_grid_leaves_its_cell_to_the_shortest_token():
    grid, factor = Grid(5, 7), 2
    key = torch.randn(2, 3, grid.tokens, 4, generator=torch.Generator().manual_seed(0))
    lengths = key.norm(dim=-1)
    anchors = lengths.topk(9).indices
    before = choices.grid_index(grid, factor, (1, 0)).expand(2, 3, -1)
    found = choices.set_apart(before, anchors, key, grid, factor)
    cells = {}
    for token in range(grid.tokens):
        cells.setdefault((token // 7 // factor, token % 7 // factor), []).append(token)
    for b, h in itertools.product(range(2), range(3)):
        for old, new in zip(before[b, h].tolist(), found[b, h].tolist(), strict=True):
            [cell] = [tokens for tokens in cells.values() if old in tokens]
            shortest = min(cell, key=lambda token: float(lengths[b, h, token]))
            assert new == (shortest if old in anchors[b, h] else old)
    assert not torch.equal(before, found)


def test_choices_go_into_a_pipeline_and_out_again(tmp_path):
    pipe = tiny.sd_pipeline(tmp_path, unet=tiny.shallow_unet(mid_block_type="UNetMidBlock2D"))
    request = Request(width=40, height=32, steps=2, guidance=3.0)
    names = [name.removesuffix(".processor") for name in pipe.unet.attn_processors
             if ".attn1." in name]  # fmt: skip
    prompts = ("a cat", "a dog")
    unpatched = pictures.latents(pipe, request, prompts, at_once=True)
    keys = choices.Keys(choices.Choice(2))
    grid = Grid(*(side // pipe.vae_scale_factor for side in (request.height, request.width)))
    with builtin_table.chosen(pipe.unet, names, keys, grid):
        ours = pictures.latents(pipe, request, prompts, at_once=True)
    assert keys.step == request.steps - 1
    with apply_patch(pipe, factor={1: 2}, anchors=0, method="nearest"):
        theirs = pictures.latents(pipe, request, prompts, at_once=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert pictures.errors(ours, unpatched)[0] > 1e-6
    again = pictures.latents(pipe, request, prompts, at_once=True)
    assert all(map(torch.equal, again, unpatched))


def test_the_tuned_plan_of_the_record_dominates_the_papers_and_fits_the_model():
    record = json.loads((ROOT / "paper/results/tune-512.json").read_text())
    found = {entry["name"]: entry for entry in record["entries"]}
    assert found["tuned"]["error"] < found["paper"]["error"]
    assert found["tuned"]["speedup"] >= found["paper"]["speedup"]
    assert not set(record["held_out"]) & set(record["prompts"])
    pipe, _ = open_pipeline(Request(config=None, width=512, height=512))
    with apply_patch(pipe, TunedPlan.load(ROOT / "paper/results/plan-512.json")):
        predicted = summary(pipe, height=512, width=512).predicted_speedup
    assert predicted == pytest.approx(found["tuned"]["speedup"], rel=0.2)  # steps of the plan
    assert record["weights"] == fingerprint(pipe)


def test_table1_goes_on_where_it_stopped(tmp_path):
    pipe = tiny.sd_pipeline(tmp_path, unet=tiny.shallow_unet())
    native = Request(guidance=5.0, config=None, device="cpu", dtype="float32")
    words = [("a cat", 0), ("a dog", 0), ("a dog", 1)]

    def cells(known):
        return table1.measure(pipe, native, table1.Job(32, (2,), 2, 2), words, None, known)

    first = next(cells([]))  # and then it was killed
    known = json.loads(json.dumps([first]))
    known += cells(known)
    assert [(cell["prompt"], cell["seed"]) for cell in known] == words
    assert list(cells(known)) == []
    dense, *lines = table1.lines(known)
    assert dense["pictures"] == 3
    assert [(line["method"], line["ratio"], line["kept_tokens"]) for line in lines] == [
        ("ToMe", "0.75", 64), ("ToDo", "0.75", 64), ("tokendown", "0.75", 64),
    ]  # fmt: skip
    runs = [cell["numbers"][2]["mse"] for cell in known]
    assert len(set(runs)) == 3
    assert lines[1]["mse"]["median"] == pytest.approx(sorted(runs)[1], rel=1e-3)
    low, high = (lines[1]["mse"][name] for name in ("low", "high"))
    assert (low, high) == pytest.approx((min(runs), max(runs)), rel=1e-3)
    assert f"({low:.2e} to {high:.2e})" in table1.table([dense, *lines])


def test_numbers_of_other_weights_or_machines_are_not_mixed(tmp_path, capsys):
    shared = {"weights": "1", "environment": {"cpu": "a"}}
    record = {**shared, "cells": [{"size": 1}]}
    path = tmp_path / "table1.json"
    assert report.earlier(path, shared) == {}
    path.write_text(json.dumps(record))
    assert report.earlier(path, shared) == record
    assert capsys.readouterr().out == ""
    assert report.earlier(path, {**shared, "weights": "2"}) == {}
    assert report.earlier(path, {**shared, "environment": {"cpu": "b"}}) == {}
    assert capsys.readouterr().out.splitlines() == [
        f"{path} is begun anew: made with other weights",
        f"{path} is begun anew: made with other environment",
    ]


def files() -> dict[Path, int]:
    """What is there, and when it was changed."""
    kinds = (".json", ".md", ".png", ".svg")
    return {p: p.stat().st_mtime_ns for p in (ROOT / "paper").rglob("*") if p.suffix in kinds}


def test_what_a_script_makes_does_not_overwrite_what_the_pages_show(tmp_path):
    parser = argparse.ArgumentParser()
    report.add_device(parser)
    out = parser.parse_args([]).out
    assert report.RESULTS not in (ROOT / out / "any").parents
    assert parser.parse_args(["--out", str(tmp_path)]).out == tmp_path


def test_tables_are_those_of_their_records():
    """The pages show the Markdown files; these come from the JSON beside them."""

    def both(name):
        place = report.RESULTS / name
        text = place.with_suffix(".md").read_text().strip()
        return json.loads(place.with_suffix(".json").read_text()), text

    record, text = both("levels")
    assert levels.table(record["rows"]) == text
    record, text = both("ceilings")
    assert ceilings.table(record["rows"]) == text
    record, text = both("table1")
    assert table1.about(record) == text
    for name in ("builtin_table", "builtin_table-512", "builtin_table-1024", "terrain_table"):
        record, text = both(name)
        assert text.endswith(choices.table(record["errors"]))
