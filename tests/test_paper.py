"""Every script of paper/ runs, in its quick form, and writes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paper import levels

import tiny
from tokendown.request import Request

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.parametrize("script", ["sinks", "terrain_table", "levels", "table1", "figure4"])
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


def test_levels_are_those_of_the_model(tmp_path):
    """Also where self-attention is at the finest level alone."""
    unet = tiny.shallow_unet(mid_block_type="UNetMidBlock2D")
    pipe = tiny.sd_pipeline(tmp_path, unet=unet)
    found = levels.rows(pipe, Request(width=32, height=32, steps=1, guidance=1.0), ("a cat",))
    assert {row["downsampling"] for row in found} == {1}
    assert {row["layers"] for row in found} == {3}
    errors = {row["what"]: row["median"] for row in found}
    assert errors["switched off"] > errors["factor 2, 0 anchors"] > 0
    head, _, *lines = levels.table(found).splitlines()
    assert head.split("|")[1:-1] == [" self-attention ", " downsampling 1 "]
    assert len(lines) == len(errors)


def files() -> dict[Path, int]:
    """What is there, and when it was changed."""
    kinds = (".json", ".md", ".png", ".svg")
    return {p: p.stat().st_mtime_ns for p in (ROOT / "paper").rglob("*") if p.suffix in kinds}
