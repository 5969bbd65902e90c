"""Scripts of benchmarks/ that no command calls: they run, and what they measure is right."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    def script(name: str, *options: str) -> None:
        monkeypatch.setattr("sys.argv", [name, *options])
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")

    return script


def test_joint_layers(run: Any, tmp_path: Path) -> None:
    """The script itself fails where the patched layer is not the ideal under a mask."""
    out = tmp_path / "record.json"
    run("joint_layers.py", "--quick", "--shape", "wan-1.3b", "--out", str(out))
    (record,) = json.loads(out.read_text("utf-8"))["records"]
    assert record["tokens"] == 3 * 8 * 8
    assert record["kept"] == 3 * 4 * 4 + 32
    assert list(record["rows"]) == ["ideal", "patched", "patched, head channel"]


def test_attention_cpu(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run("attention_cpu.py", "--queries", "256", "--rounds", "1", "--budget", "64")
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    errors = {
        name: row["error"]
        for name, row in rows.items()
        if row["error"] is not None and "another result" not in name
    }
    assert len(errors) == 8
    assert max(errors.values()) < 1e-5


def test_attention_cuda_on_a_cpu(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    tiny = ["--device", "cpu", "--small", "--no-flex", "--rounds", "1", "--dtype", "float32"]
    run("attention_cuda.py", *tiny, "--out", str(out))
    assert "mask, default" in out.read_text("utf-8")
