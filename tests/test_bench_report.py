"""What is made of measured cells: rows, tables, bars, exit codes. The cells are written by hand."""

from __future__ import annotations

import importlib.util
import json

import pytest
from typer.testing import CliRunner

from tokendown import BenchError, ConfigError
from tokendown.bench import plot, report
from tokendown.cli.app import app
from tokendown.cli.bench import failures


def cell(method, round_, seconds, **more):
    common = {
        "schema": 1, "target": "sd15", "what": "step", "width": 1024, "height": 1024, "batch": 1,
        "steps": None, "dtype": "float16", "device": "cuda", "hardware": "card", "threads": None,
        "compile": "no", "backend": "best", "blocks": None, "outcome": "measured", "run": "a",
        "attention": "flash", "kernel": "flash", "versions": {"torch": "2"}, "commit": "c",
        "flops": 300, "peak_gib": 1.0, "detail": "every key",
    }  # fmt: skip
    return {**common, "method": method, "round": round_, "seconds": seconds, **more}


CELLS = [
    cell("dense", 0, 4.0),
    cell("auto", 0, 1.0, flops=100, peak_gib=0.5),
    cell("dense", 1, 12.0),
    cell("auto", 1, 4.0, flops=100, peak_gib=0.75),
    cell("dense", 2, 6.0, run="b"),
    cell("auto", 2, 3.0, flops=100, run="b"),
    cell("paper", 0, None, outcome="skipped", why="changes nothing", detail="", flops=None),
]


def test_speed_ups_are_ratios_within_a_round():
    [group] = report.summarise(CELLS)
    dense, auto, paper = group.rows
    assert (dense.speedup, dense.seconds, dense.seconds_range) == (1.0, 6.0, (4.0, 12.0))
    assert (auto.speedup, auto.speedup_range) == (3.0, (2.0, 4.0))  # of 4, 3 and 2
    assert (auto.predicted, auto.peak_gib, auto.rounds) == (3.0, 1.0, 3)
    assert (paper.seconds, paper.speedup, paper.why) == (None, None, "changes nothing")
    assert group.notes == ["measured in 2 runs; ratios are of one run"]
    assert json.loads(json.dumps(group.to_dict()))["rows"][1]["speedup"] == 3.0


def test_seconds_of_two_runs_are_not_compared():
    [group] = report.summarise([*CELLS[:4], cell("auto", 0, 8.0, run="b")])
    assert group.rows[1].seconds == 4.0
    assert (group.rows[1].speedup, group.rows[1].speedup_range) == (3.5, (3.0, 4.0))
    assert "cells that have no dense of their run beside them, and no ratio: 1" in group.notes


def test_memory_of_a_graph_is_not_that_of_its_calls():
    [group] = report.summarise([{**each, "compile": "graph"} for each in CELLS])
    assert {row.peak_gib for row in group.rows} == {None}
    assert report.table(group)[1][-1] == ""


def test_tables():
    [group] = report.summarise(CELLS)
    rows = report.table(group)
    assert rows[1] == ("auto", "3 (1-4)", "3.00 (2.00-4.00)", "3.00", "1.00")
    assert rows[2] == ("paper", "", "", "", "")
    lines = report.markdown_table(group).splitlines()
    assert lines[3] == "| auto | 3 (1-4) | 3.00 (2.00-4.00) | 3.00 | 1.00 |"
    assert len(lines) == 4  # paper has no numbers
    assert "paper: changes nothing" in report.remarks(group)
    title = "sd15, 1024 x 1024, one step, batch 1; float16 on card; attention flash"
    assert group.title.startswith(title)


def test_groups_are_told_apart_and_commits_are_compared():
    mixed = [*CELLS[:2], cell("auto", 1, 2.0, commit="d"), cell("dense", 0, 5.0, width=2048)]
    first, second = report.summarise(mixed)
    assert (len(first.rows), len(second.rows)) == (2, 1)
    assert first.notes[-1] == "made by different versions or commits"
    assert first.rows[1].speedup == 4.0  # round 1 has no dense


# Plot


def test_bars_stand_side_by_side_by_size():
    large = [cell("dense", 0, 9.0, width=2048), cell("auto", 0, 3.0, width=2048)]
    [panel] = plot.layout(report.summarise([*large, *CELLS]))
    assert [(bar.x, bar.method, bar.speedup) for bar in panel.bars] == [
        (0.0, "dense", 1.0),
        (1.0, "auto", 3.0),
        (3.0, "dense", 1.0),
        (4.0, "auto", 3.0),
    ]
    assert panel.ticks == [(0.5, "1024 x 1024\nflash"), (3.5, "2048 x 1024\nflash")]
    assert (panel.bars[1].low, panel.bars[1].high, panel.bars[1].predicted) == (2.0, 4.0, 3.0)


def test_nothing_to_plot():
    with pytest.raises(BenchError, match="nothing to plot"):
        plot.layout(report.summarise([CELLS[0], CELLS[-1]]))


def test_a_picture_is_drawn_or_the_package_named(tmp_path):
    path = tmp_path / "new" / "bars.png"
    groups = report.summarise(CELLS)
    if importlib.util.find_spec("matplotlib"):
        plot.draw(groups, path)
        assert path.read_bytes().startswith(b"\x89PNG")
    else:
        with pytest.raises(BenchError, match=r"pip install 'tokendown\[bench\]'"):
            plot.draw(groups, path)
    with pytest.raises(ConfigError, match=r"\.png, \.pdf or \.svg"):
        plot.check_plot(tmp_path / "bars.bmp")


# The command


def test_a_failed_method_is_shown_with_its_reason_and_is_no_failure_of_the_command(tmp_path):
    path = tmp_path / "a.jsonl"
    failed = cell("auto", 0, None, outcome="failed", why="ValueError: bad kernel")
    path.write_text("".join(json.dumps(c) + "\n" for c in [CELLS[0], failed]))
    shown = CliRunner().invoke(app, ["bench", "--show", str(path)])
    assert shown.exit_code == 0
    assert "auto: failed: ValueError: bad kernel" in shown.stdout


def test_a_failed_method_is_a_failed_command(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    failed = cell("auto", 0, None, outcome="failed", why="ValueError: bad kernel")
    path.write_text(json.dumps(CELLS[0]) + "\n")

    def measure(jobs, file, *_):
        file.append(failed)
        return True

    monkeypatch.setattr("tokendown.cli.bench._measure", measure)
    words = ["bench", "--shape", "sd15", "--size", "1024", "--resume", str(path)]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 1
    assert "auto: failed: ValueError: bad kernel" in shown.stdout
    assert shown.stderr.splitlines()[-1].startswith("error: failed: auto at sd15 1024x1024")
    shown = CliRunner().invoke(app, [*words, "--json"])
    assert shown.exit_code == 1
    assert json.loads(shown.stdout)["failed"] == ["auto at sd15 1024x1024"]  # one document


def test_what_failed_is_told_from_what_came_to_an_end_elsewhere():
    def auto(outcome="measured", **changes):
        return {**cell("auto", 0, 1.0, outcome=outcome), **changes}

    assert failures([auto()]) == []
    assert failures([auto("failed"), auto()]) == []
    for changes in ({"height": 512}, {"compile": "graph"}, {"dtype": "x"}, {"batch": 9}):
        assert failures([auto("failed"), auto(**changes)]) == ["auto at sd15 1024x1024"]
