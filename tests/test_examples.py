"""Every script in examples/ runs as its docstring says, on a real pipeline of tiny size."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

import tiny

EXAMPLES = Path(__file__).parent.parent / "examples"
PICTURE = "picture.png"
ARGUMENTS = {
    "text_to_image.py": ["MODEL", "a lighthouse", "64", "32", PICTURE],
    "dense_or_not.py": ["MODEL", "a lighthouse", "64", "64"],
    "own_loop.py": ["MODEL"],
    "own_attention.py": [],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny.sd_pipeline(folder / "tokenizer").save_pretrained(folder / "pipeline")
    return str(folder / "pipeline")


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_example_runs(
    name: str,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"MODEL": model, PICTURE: str(tmp_path / PICTURE)}
    monkeypatch.setattr(sys, "argv", [name, *(places.get(a, a) for a in ARGUMENTS[name])])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert capsys.readouterr().out.strip()
    if PICTURE in ARGUMENTS[name]:
        assert (tmp_path / PICTURE).stat().st_size > 0
