"""Every script in examples/ runs as its docstring says, on a real pipeline of tiny size."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

import tiny
import tiny_transformers

EXAMPLES = Path(__file__).parent.parent / "examples"
PICTURE = "picture.png"
ARGUMENTS = {
    "text_to_image.py": ["MODEL", "a lighthouse", "64", "32", PICTURE],
    "dense_or_not.py": ["MODEL", "a lighthouse", "64", "64"],
    "own_loop.py": ["MODEL"],
    "own_attention.py": [],
    "joint_transformer.py": ["TRANSFORMER", "128", "96"],
}
SEVERAL_GPUS = "context_parallel.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny.sd_pipeline(folder / "tokenizer").save_pretrained(folder / "pipeline")
    return str(folder / "pipeline")


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("transformer")
    tiny_transformers.flux().save_pretrained(folder)
    return str(folder)


def test_several_gpus_need_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(sys, "argv", [SEVERAL_GPUS])
    with pytest.raises(SystemExit, match="expected to be started by torchrun"):
        runpy.run_path(str(EXAMPLES / SEVERAL_GPUS), run_name="__main__")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "99")
    monkeypatch.setattr(sys, "argv", [SEVERAL_GPUS, "model", "a cat", "64", "64", PICTURE])
    with pytest.raises(SystemExit, match="expected a GPU for each of 99 ranks"):
        runpy.run_path(str(EXAMPLES / SEVERAL_GPUS), run_name="__main__")


@pytest.mark.parametrize(
    "name", sorted({path.name for path in EXAMPLES.glob("*.py")} - {SEVERAL_GPUS})
)
def test_example_runs(
    name: str,
    model: str,
    transformer: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"MODEL": model, "TRANSFORMER": transformer, PICTURE: str(tmp_path / PICTURE)}
    monkeypatch.setattr(sys, "argv", [name, *(places.get(a, a) for a in ARGUMENTS[name])])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert capsys.readouterr().out.strip()
    if PICTURE in ARGUMENTS[name]:
        assert (tmp_path / PICTURE).stat().st_size > 0
