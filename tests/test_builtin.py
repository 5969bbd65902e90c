"""The model that ships: what it is held to, and that every command takes it when none is named."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

from test_cli import pixels, run
from tokendown import TunedPlan, apply_patch, pictures, summary
from tokendown.bench.methods import without_attention
from tokendown.models import builtin

FOLDER = builtin.FOLDER
PROMPT = "red apple on a blue background"


@pytest.fixture(scope="module")
def pipe():
    """As a stranger would load it."""
    pipe = StableDiffusionPipeline.from_pretrained(FOLDER)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, steps=6, **options):
    generator = torch.Generator().manual_seed(3)
    out = pipe(PROMPT, num_inference_steps=steps, generator=generator, output_type="pt", **options)
    return out.images[0]


def test_files():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 48_000_000
    assert {path.suffix for path in files} == {".json", ".md", ".safetensors", ".txt"}
    for path in FOLDER.rglob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            kinds = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
        assert kinds <= {"F16", "I64"}, path


def test_text_weights_have_the_names_of_every_transformers():
    """Releases before 5 know them below ``text_model`` only, and start others at random."""
    with safe_open(FOLDER / "text_encoder" / "model.safetensors", "pt") as weights:
        assert all(name.startswith("text_model.") for name in weights.keys())  # noqa: SIM118


def test_self_attention_sees_as_many_tokens_as_that_of_stable_diffusion(pipe):
    for size, tokens in ((256, 4096), (512, 16_384), (1024, 65_536)):
        found = summary(pipe, height=size, width=size)
        assert {layer.keys_before for layer in found.layers} == {tokens}


def test_it_draws_what_was_asked_for(pipe):
    """A red thing in the middle, blue all around: noise and a mean colour have neither."""
    image = draw(pipe)
    corners = torch.stack([image[:, y, x] for y in (2, -3) for x in (2, -3)])
    middle = image[:, 96:160, 96:160].mean(dim=(1, 2))
    assert (corners[:, 2] > corners[:, 0] + 0.3).all()
    assert middle[0] > middle[2] + 0.3


def test_top_self_attention_matters_and_a_patch_takes_little_of_it(pipe):
    dense = draw(pipe, guidance_scale=builtin.GUIDANCE)
    names = [layer.name for layer in summary(pipe).layers]
    with without_attention(pipe.unet, names):
        off = draw(pipe, guidance_scale=builtin.GUIDANCE)
    with apply_patch(pipe):
        auto = draw(pipe, guidance_scale=builtin.GUIDANCE)
    ruined, changed = ((other - dense).square().mean() for other in (off, auto))
    assert ruined > 0.01
    assert 0 < changed < ruined / 10
    assert torch.equal(draw(pipe, guidance_scale=builtin.GUIDANCE), dense)


def test_commands_take_it_when_no_model_is_named(tmp_path):
    words = ("--steps", 1, "--size", "128x128", "--out")
    run("generate", PROMPT, "--factor", 2, "--compare", *words, tmp_path / "generate")
    [sheet] = (tmp_path / "generate").glob("*compare*.png")
    made = [p for p in (tmp_path / "generate").glob("*.png") if p != sheet]
    assert len(made) == 2
    assert all(pictures.read_settings(path)["model"] == builtin.NAME for path in made)
    assert (pixels(made[0]) != pixels(made[1])).any()
    run("compare", PROMPT, "--method", "factor=2", *words, tmp_path / "compare")
    assert list((tmp_path / "compare").glob("*.png"))
    words = ("--quick", "--size", "128x128", "--steps", 1, "--out")
    run("analyze", PROMPT, *words, tmp_path / "analyze")
    found = json.loads((tmp_path / "analyze" / "analysis.json").read_text())
    assert {tuple(layer["grid"]) for layer in found["layers"]} == {(32, 32)}
    said, _ = run("tune", "--speedup", 1.01, *words, tmp_path / "tune", "--json")
    assert json.loads(said)["request"]["model"] == builtin.NAME
    assert TunedPlan.load(tmp_path / "tune" / "plan.json").layers
