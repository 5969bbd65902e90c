"""The caches of diffusers and the patch, in both orders.

A cache decides by itself what it computes; where it computes, the patch decides how. So the two
orders have to agree with each other, and a cache that never skips with the patch alone.
"""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)

import tiny
import tiny_transformers
from tokendown import apply_patch, remove_patch

SIZE = (6, 7)
PATCH = {"factor": 2, "anchors": 3}
STEPS = 6


class Steps:
    """A short schedule: the same noise with a drift, in a cache context as pipelines do it."""

    def __init__(self) -> None:
        self.step = 0

    def run(self, model):
        outputs = []
        model._reset_stateful_cache()
        for self.step in range(STEPS):
            arguments = tiny_transformers.inputs("flux", model, *SIZE)
            arguments["hidden_states"] = arguments["hidden_states"] * (1 - 0.02 * self.step)
            arguments["timestep"] = torch.full((2,), 0.8 - 0.1 * self.step)
            with torch.no_grad(), model.cache_context("cond"):
                outputs.append(tiny.flatten(model(**arguments)))
        return torch.stack(outputs)


def configs(steps: Steps, skip: bool):
    """Every cache, set to skip a part of the work or none of it."""
    yield "FirstBlockCache", FirstBlockCacheConfig(threshold=10.0 if skip else 0.0)
    yield (
        "PyramidAttentionBroadcast",
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2 if skip else 1,
            spatial_attention_timestep_skip_range=(-1, 1000),
            spatial_attention_block_identifiers=("transformer_blocks", "single_transformer_blocks"),
            current_timestep_callback=lambda: 500 - steps.step,
        ),
    )
    yield (
        "TaylorSeer",
        TaylorSeerCacheConfig(cache_interval=2 if skip else 1, disable_cache_before_step=1),
    )
    yield (
        "MagCache",
        MagCacheConfig(
            threshold=10.0 if skip else 0.0,
            max_skip_steps=1,
            retention_ratio=0.2,
            num_inference_steps=STEPS,
            mag_ratios=torch.full((STEPS,), 0.9),
        ),
    )
    yield (
        "FasterCache",
        FasterCacheConfig(
            spatial_attention_block_skip_range=2 if skip else 1,
            spatial_attention_timestep_skip_range=(-1, 499),  # needs two steps to start with
            spatial_attention_block_identifiers=("transformer_blocks", "single_transformer_blocks"),
            unconditional_batch_skip_range=100,
            unconditional_batch_timestep_skip_range=(0, 1),
            attention_weight_callback=lambda _: 0.5,
            current_timestep_callback=lambda: 500 - steps.step,
            is_guidance_distilled=True,
        ),
    )


NAMES = [name for name, _ in configs(Steps(), True)]


def prepared(name: str, skip: bool, order: str):
    """Output of a fresh model with the cache and the patch put on in an order."""
    steps, model = Steps(), tiny_transformers.flux()
    config = dict(configs(steps, skip))[name]
    if order == "patch first":
        apply_patch(model, **PATCH)
    if "cache" in order or order == "patch first":
        model.enable_cache(config)
    if order == "cache first":
        apply_patch(model, **PATCH)
    output = steps.run(model)
    return output, model, steps


@pytest.mark.compat(
    "transformers: caches", note="FirstBlock, PAB, TaylorSeer, MagCache, FasterCache; both orders"
)
@pytest.mark.parametrize("name", NAMES)
def test_caches_compose_in_both_orders(name):
    cached_only, _, _ = prepared(name, True, "cache only")
    first, model, steps = prepared(name, True, "patch first")
    second, other, others_steps = prepared(name, True, "cache first")
    assert torch.equal(first, second)
    assert not torch.equal(first, cached_only), "the patch does nothing"
    patched = apply_and_run()
    assert not torch.equal(first, patched), "the cache does nothing"
    model.disable_cache()  # the cache was put on last, and goes first
    assert torch.equal(steps.run(model), patched)
    remove_patch(other)  # the patch was put on last, and goes first
    assert torch.equal(others_steps.run(other), cached_only)


def apply_and_run():
    steps, model = Steps(), tiny_transformers.flux()
    with apply_patch(model, **PATCH):
        return steps.run(model)


@pytest.mark.compat("transformers: caches that never skip", note="equal the patch alone")
@pytest.mark.parametrize("name", [name for name in NAMES if name != "TaylorSeer"])
def test_a_cache_that_never_skips_is_the_patch_alone(name):
    got, _, _ = prepared(name, False, "cache first")
    torch.testing.assert_close(got, apply_and_run(), rtol=0, atol=1e-5)
