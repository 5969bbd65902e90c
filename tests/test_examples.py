"""Every script in examples/ runs as its docstring says, on a real pipeline of tiny size."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import joint_pipelines
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
ANY_PIPELINE = "from_embeddings.py"
ROW = re.compile(r"^\| (\w+Pipeline) \| \S+/\S+ \| `(.*)` \|$", re.MULTILINE)
DOCUMENTED = dict(ROW.findall((EXAMPLES.parent / "docs" / "families.md").read_text("utf-8")))


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
    "name", sorted({path.name for path in EXAMPLES.glob("*.py")} - {SEVERAL_GPUS, ANY_PIPELINE})
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


def stored(value: Any, folder: Path) -> Any:
    """As it stands in JSON: pictures are names of files."""
    if isinstance(value, list):
        return [stored(each, folder) for each in value]
    if not isinstance(value, Image.Image):
        return value
    name = str(folder / f"{len(list(folder.iterdir()))}.png")
    value.save(name)
    return name


@pytest.mark.parametrize("kind", DOCUMENTED)
def test_every_family_runs_from_embeddings(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The call of docs/families.md, with other values."""
    case = joint_pipelines.case(kind)
    assert set(json.loads(DOCUMENTED[kind])) <= set(case.options)
    options = {name: stored(value, tmp_path) for name, value in case.options.items()}
    tensors = {
        name: torch.stack(value) if isinstance(value, list) else value.clone()
        for name, value in case.tensors.items()
    }
    save_file(tensors, tmp_path / "text.safetensors")
    case.pipe.save_pretrained(tmp_path / "model")
    steps = 2 if kind == "MochiPipeline" else 1  # its schedule has two parts
    call = json.dumps({**options, "num_inference_steps": steps})
    out = tmp_path / "out.png"
    words = [str(tmp_path / "model"), str(tmp_path / "text.safetensors"), call, str(out)]
    monkeypatch.setattr(sys, "argv", [ANY_PIPELINE, *words])
    runpy.run_path(str(EXAMPLES / ANY_PIPELINE), run_name="__main__")
    assert "predicted speed-up" in capsys.readouterr().out
    with Image.open(out) as image:
        assert getattr(image, "n_frames", 1) > 1 or "num_frames" not in options
