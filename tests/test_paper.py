"""Every script of paper/ runs, in its quick form, and writes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.parametrize(
    "script", ["sinks", "terrain_table", "levels", "table1", "figure4", "caches"]
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


def files() -> dict[Path, int]:
    """What is there, and when it was changed."""
    kinds = (".json", ".md", ".png", ".svg")
    return {p: p.stat().st_mtime_ns for p in (ROOT / "paper").rglob("*") if p.suffix in kinds}
