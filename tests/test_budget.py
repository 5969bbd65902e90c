"""How many keys ``auto`` keeps: fewer a step where there are more steps to see the others."""

from __future__ import annotations

import json
import pickle
from math import ceil

import diffusers
import pytest
import torch
from torch._dynamo.testing import CompileCounter

import tiny
import tiny_transformers
from test_schedule import SCHEDULERS, image_to_image, text_to_image
from test_summary import counted
from tokendown import PatchConfig, apply_patch, summary

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
LATENT = (16, 12)
SHORT, LONG = 60, 24  # grid keys at most: factors 2 and 3 of a 16 x 12 grid


@pytest.fixture
def small(monkeypatch):
    """The same rule at a tiny size."""
    monkeypatch.setattr("tokendown.config.AUTO_BUDGET", SHORT)
    monkeypatch.setattr("tokendown.config.LONG_BUDGET", LONG)
    monkeypatch.setattr("tokendown.config.LONG_SCHEDULE", 5)
    monkeypatch.setattr("tokendown.config.AUTO_ANCHORS", 0)


def smallest(height: int, width: int, budget: int) -> int:
    """Written once more: the first factor that leaves so few keys."""
    return next(f for f in range(1, 99) if ceil(height / f) * ceil(width / f) <= budget)


def keys_of(model):
    """How many tokens reach the key projection of a layer, call by call."""
    seen: list[int] = []
    projection = model.get_submodule(LAYER).to_k
    projection.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    return seen


def keys_of_a_call(model):
    """The same for one call of the denoiser; no hook stays."""
    seen, projection = keys_of(model), model.get_submodule(LAYER).to_k
    tiny.run(model, 16, 16)
    projection._forward_pre_hooks.popitem()
    return seen


# The rule


@pytest.mark.parametrize(
    ("steps", "factors"),
    [
        (None, {1: 3, 2: 2, 4: 1, 8: 1}),
        (19, {1: 3, 2: 2, 4: 1, 8: 1}),
        (20, {1: 4, 2: 2, 4: 1, 8: 1}),
        (1000, {1: 4, 2: 2, 4: 1, 8: 1}),
    ],
)
def test_stable_diffusion_at_1024(steps, factors):
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8
        )
    found = summary(unet, PatchConfig(), height=1024, width=1024, steps=steps)
    assert {128 // x.grid[0]: x.factor for x in found.layers if x.grid} == factors
    assert found.steps == steps


@pytest.mark.parametrize(
    "options", [{"preset": "paper"}, {"budget": 3072}, {"method": "nearest"}, {"method": "mean"}]
)
def test_other_rules_keep_as_many_whatever_the_number_of_steps(options):
    config = PatchConfig(**options)
    assert config.budget in (3072, 4096)
    size = {"height": 1920, "width": 1080}
    few, many = (summary(tiny.shallow_unet(), config, **size, steps=n) for n in (2, 50))
    assert few.layers == many.layers
    assert few.predicted_speedup > 1


def test_the_rule_outlives_json():
    for config in (PatchConfig(), PatchConfig(preset="paper"), PatchConfig(method="mean")):
        assert PatchConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


# In a pipeline


@pytest.mark.parametrize("make", [text_to_image, image_to_image])
@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_a_patch_follows_the_length_of_the_schedule(tmp_path, small, schedule, make):
    pipe, call = make(tmp_path, schedule)
    height = width = 32 // pipe.vae_scale_factor
    seen = keys_of(pipe.unet)
    with apply_patch(pipe):
        for steps, budget in ((2, SHORT), (8, LONG), (2, SHORT)):
            seen.clear()
            tiny.image_of(pipe, steps=steps, **call)
            factor = smallest(height, width, budget)
            assert set(seen) == {ceil(height / factor) * ceil(width / factor)}
    seen.clear()
    tiny.image_of(pipe, steps=8, **call)
    assert set(seen) == {height * width}


def test_image_to_image_counts_the_whole_schedule(tmp_path, small):
    """What tells is how long a step is, not how many are left."""
    pipe, call = image_to_image(tmp_path)
    seen = keys_of(pipe.unet)
    with apply_patch(pipe):
        tiny.image_of(pipe, steps=6, **{**call, "strength": 0.4})
    assert len(seen) == 2
    assert max(seen) <= LONG


def test_a_copy_and_a_pickle_follow_as_well(tmp_path, small):
    pipe, call = text_to_image(tmp_path)
    apply_patch(pipe)
    for steps, budget in ((2, SHORT), (8, LONG)):
        tiny.image_of(pipe, steps=steps, **call)
        twin = pickle.loads(pickle.dumps(pipe.unet))
        for unet in (pipe.unet, twin):
            assert keys_of_a_call(unet) == [ceil(16 / smallest(16, 16, budget)) ** 2]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["flux", "wan", "pixart"])
def test_transformers_are_told_by_set_progress(small, kind):
    model = tiny.pixart() if kind == "pixart" else getattr(tiny_transformers, kind)()
    height, width = 36, 24  # of the latent
    size = {"height": 8 * height, "width": 8 * width}
    patch = apply_patch(model)
    for steps, factor in ((2, 2), (5, 3)):
        patch.set_progress(1, steps)
        told, asked = summary(model, **size), summary(model, **size, steps=steps)
        assert told == asked
        assert {layer.factor for layer in told.layers} == {factor}
        assert told.step_flops_after == counted(model, height, width, steps)


# What is said


def test_summary_takes_the_usual_number_of_steps(tmp_path, small):
    pipe, call = text_to_image(tmp_path)
    config = PatchConfig()
    assert summary(pipe, config, height=32, width=32).steps == 50  # of every SD pipeline
    assert summary(pipe.unet, config).steps is None
    assert "50 steps" in str(summary(pipe, config)).splitlines()[0]
    patch = apply_patch(pipe)
    tiny.image_of(pipe, steps=3, **call)
    after = summary(pipe, height=32, width=32)
    assert after.steps == 3
    assert [p.clocks[0].steps for p in patch._plans] == [3]  # asked with another, it stays
    assert summary(pipe, height=32, width=32, steps=9).predicted_speedup > after.predicted_speedup
    assert [p.clocks[0].steps for p in patch._plans] == [3]
    with pytest.raises(ValueError, match="steps, an integer >= 1"):
        summary(pipe, steps=0)


# Compiled


@torch.no_grad()
@pytest.mark.parametrize("regional", [False, True])
def test_a_compiled_model_compiles_once_a_budget(small, regional):
    unet = tiny.shallow_unet()
    patch = apply_patch(unet)
    wants = {}
    for steps in (2, 3, 5, 6):
        patch.set_progress(1, steps)
        wants[steps] = tiny.run(unet, *LATENT)
    assert torch.equal(wants[2], wants[3])
    assert not torch.equal(wants[3], wants[5])
    counter = CompileCounter()
    if regional:
        unet.compile_repeated_blocks(fullgraph=True, backend=counter)
        compiled = unet
    else:
        compiled = torch.compile(unet, fullgraph=True, backend=counter)
    graphs = []
    for steps in (2, 3, 5, 6, 2, 5):
        patch.set_progress(1, steps)
        got = tiny.flatten(compiled(**tiny.inputs(unet, *LATENT)))
        torch.testing.assert_close(got, wants[steps], atol=1e-5, rtol=1e-5)
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[1] < graphs[2] == graphs[-1]
