"""The commands of docs/quality.md, on models of the same format at tiny size."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from tests.test_cli import run

PAGE = Path(__file__).parent.parent / "docs" / "quality.md"
# Published model to a builder in tests/tiny_pipelines.py, and its size.
MODELS = {
    "black-forest-labs/FLUX.1-dev": ("flux", "32x32"),
    "stabilityai/stable-diffusion-3.5-medium": ("sd3", "32x32"),
    "PixArt-alpha/PixArt-Sigma-XL-2-2K-MS": ("pixart", "32x32"),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": ("wan", "128x128"),
}
SMALLER = {"--steps": "4", "--dtype": "float32", "--count": "1", "--frames": "5"}


def commands() -> list[list[str]]:
    """Of the shell block, with its variables filled in."""
    [block] = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = block.replace("\\\n", " ").splitlines()
    variables = dict(re.findall(r'^(\w+)="(.*)"$', "\n".join(lines), re.MULTILINE))
    found = [line for line in lines if line.startswith("tokendown ")]
    return [
        shlex.split(re.sub(r"\$(\w+)", lambda match: variables[match[1]], line)) for line in found
    ]


COMMANDS = commands()


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[3])
def test_a_published_command_runs(words, saved, tmp_path):
    name, size = MODELS[words[3]]
    (tmp_path / "prompts.txt").write_text("a cat\n", encoding="utf-8")
    options = list(zip(words[2::2], words[3::2], strict=True))
    assert all(option.startswith("--") for option, _ in options)
    changes = SMALLER | {"--model": saved(name), "--size": size, "--out": tmp_path / "out"}
    changes["--prompts"] = tmp_path / "prompts.txt"
    here = [(name, changes.get(name, value)) for name, value in options if name != "--lpips"]
    said, _ = run("compare", *[word for pair in here for word in pair], "--json")
    record = json.loads(said)
    methods = [value for option, value in options if option == "--method"]
    assert [method["name"] for method in record["methods"]] == ["dense", *methods]
    errors = {method["name"]: method["means"]["mse"] for method in record["methods"]}
    assert errors.pop("dense") == 0
    assert all(error > 0 for name, error in errors.items() if name != "factor=4,anchors=256")
    assert errors["factor=2,multiplicity=0"] != errors["factor=2"]
    assert (errors["factor=2,anchors=0,multiplicity=0"] != errors["factor=2,anchors=0"]) == (
        name in ("flux", "sd3")
    )
    assert len(set(errors.values())) >= len(errors) - 2
    assert all(Path(path).exists() for path in record["paths"])


def test_all_four_families_are_there():
    assert [words[3] for words in COMMANDS] == list(MODELS)
