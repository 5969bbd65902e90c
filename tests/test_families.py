"""A patched model against the formula, for every family and many sizes."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
import tiny
from tokendown import apply_patch
from tokendown.adapters.families import FAMILIES

KINDS = sorted(reference.LEVELS)


@cache
def built(kind: str, dtype: torch.dtype = torch.float64):
    """Shared among tests: patches leave no trace, says test_remove.py."""
    return getattr(tiny, kind)().to(dtype)


def wanted(kind, model, size, factors, batch=2, **options):
    """The output of a copy of the model that follows the formula; proves that it is coarse."""
    model = copy.deepcopy(model)
    processors = reference.coarsen(model, kind, size, factors, **options)
    output = tiny.run(model, *size, batch=batch)
    assert processors
    assert all(processor.calls == 1 for processor in processors)
    return output


def patched(model, size, batch=2, **options):
    with apply_patch(model, **options):
        return tiny.run(model, *size, batch=batch)


def possible(kind: str, height: int, width: int) -> tuple[int, int]:
    """The size, or one that the family takes: square, or all of its levels even."""
    if kind == "kandinsky3":
        return (-(-height // 8) * 8, -(-width // 8) * 8)
    return (height, height) if kind == "dit" else (height, width)


def finest(kind: str) -> int:
    return min(reference.LEVELS[kind].values())


def test_every_family_is_tested():
    assert {type(built(kind)).__name__ for kind in KINDS} == set(FAMILIES)


@pytest.mark.parametrize("anchors", [0, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_families_follow_the_formula(kind, anchors):
    model, size = built(kind), possible(kind, 12, 18)
    dense = tiny.run(model, *size)
    want = wanted(kind, model, size, {finest(kind): 2}, anchors=anchors)
    got = patched(model, size, factor=2, anchors=anchors)
    assert (want - dense).abs().max() > 1e-4  # otherwise this test proves nothing
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_grid_only_is_dense_attention_with_dropped_keys_masked_in_float32(kind):
    model, size = built(kind, torch.float32), possible(kind, 10, 14)
    want = wanted(kind, model, size, {finest(kind): 3})
    got = patched(model, size, factor=3, anchors=0)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["sd_unet", "sdxl_unet", "pixart"])
@pytest.mark.parametrize("anchors", [0, 4])
def test_cell_averages_follow_the_formula(kind, anchors):
    model, size = built(kind), (10, 14)
    want = wanted(kind, model, size, {finest(kind): 2}, anchors=anchors, mean=True)
    got = patched(model, size, factor=2, anchors=anchors, method="mean")
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("kind", "level"), [("plain_unet", 2), ("mixed_unet", 2), ("kandinsky3", 4)]
)
@pytest.mark.parametrize("method", ["nearest", "mean"])
def test_attention_to_maps_at_coarser_levels(kind, level, method):
    model, size = built(kind), possible(kind, 12, 18)
    options = {"anchors": 3, "mean": method == "mean"}
    want = wanted(kind, model, size, {level: 2}, **options)
    got = patched(model, size, factor={level: 2}, anchors=3, method=method)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


# Which layer gets which factor


@pytest.mark.parametrize(
    ("kind", "options", "factors"),
    [
        ("sd_unet", {"factor": {1: 4, 2: 2}}, {1: 4, 2: 2}),
        ("sd_unet", {"factor": {4: 2}}, {4: 2}),
        ("sd_unet", {"factor": {1: 1, 2: 2}}, {2: 2}),
        ("sd_unet", {"budget": 16}, {1: 4, 2: 2}),
        ("sd_unet", {"budget": 20}, {1: 4, 2: 2}),
        ("sd_unet", {"budget": 15}, {1: 6, 2: 3, 4: 2}),
        ("sd_unet", {"preset": "paper", "budget": 64}, {1: 2}),
        ("sd_unet", {"preset": "paper", "budget": 16}, {1: 4}),
        ("sdxl_unet", {"factor": 2}, {2: 2}),
        ("sdxl_unet", {"factor": {4: 2}}, {4: 2}),
        ("sdxl_unet", {"budget": 4}, {2: 4, 4: 2}),
        ("pixart", {"factor": {1: 2}}, {1: 2}),
        ("pixart", {"preset": "paper", "budget": 16}, {1: 2}),
    ],
)
def test_levels_and_factors(kind, options, factors):
    model, size = built(kind), (16, 16)
    want = wanted(kind, model, size, factors)
    got = patched(model, size, anchors=0, **options)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_paper_keeps_4096_keys_of_the_published_square_sizes():
    from tokendown import Grid

    assert [Grid(side, side).factor_for(4096) for side in (64, 128, 192, 256)] == [1, 2, 3, 4]


def test_defaults_are_auto_with_32_anchors():
    model, size = built("shallow_unet"), (54, 58)  # above the budget of 3072, and below it
    want = wanted("shallow_unet", model, size, {1: 2}, anchors=32)
    torch.testing.assert_close(patched(model, size), want, rtol=0, atol=1e-10)


def test_one_patch_follows_the_size_of_every_call():
    dense, model = built("sd_unet"), tiny.sd_unet().double()
    with apply_patch(model, budget=20, anchors=3):
        for size, factors in [((16, 16), {1: 4, 2: 2}), ((8, 9), {1: 2}), ((16, 16), {1: 4, 2: 2})]:
            want = wanted("sd_unet", dense, size, factors, anchors=3)
            torch.testing.assert_close(tiny.run(model, *size), want, rtol=0, atol=1e-10)
        assert torch.equal(tiny.run(model, 4, 5), tiny.run(dense, 4, 5))


# Every size


@settings(max_examples=25)
@given(
    height=st.integers(1, 25),
    width=st.integers(1, 25),
    batch=st.integers(1, 4),
    factor=st.integers(2, 9),
    anchors=st.sampled_from([0, 1, 7, 1000]),
)
def test_any_size(height, width, batch, factor, anchors):
    shallow, size = built("shallow_unet"), (height, width)
    want = wanted("shallow_unet", shallow, size, {1: factor}, batch, anchors=anchors)
    got = patched(shallow, size, batch, factor=factor, anchors=anchors)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@settings(max_examples=15)
@given(height=st.integers(2, 21), width=st.integers(2, 21), factor=st.integers(2, 4))
def test_any_size_of_patches(height, width, factor):
    model = built("pixart")
    want = wanted("pixart", model, (height, width), {1: factor}, anchors=3)
    got = patched(model, (height, width), factor=factor, anchors=3)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@settings(max_examples=15)
@given(height=st.integers(8, 21), width=st.integers(8, 21))
def test_any_size_at_the_coarse_levels(height, width):
    """Odd sides are rounded up at every halving."""
    model, factors = built("sd_unet"), {1: 3, 2: 2, 4: 2, 8: 2}
    want = wanted("sd_unet", model, (height, width), factors, anchors=3)
    got = patched(model, (height, width), factor=factors, anchors=3)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("size", "factor"), [((135, 240), 8), ((240, 135), 9), ((67, 121), 2)])
def test_large_sizes(size, factor):
    """135 x 240 is the latent of 1920 x 1080 pixels."""
    model = built("shallow_unet", torch.float32)
    want = wanted("shallow_unet", model, size, {1: factor}, batch=1, anchors=32)
    got = patched(model, size, batch=1, factor=factor)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["sd_unet", "sdxl_unet", "pixart", "svd_unet"])
def test_half_precision_is_as_exact_as_the_formula_at_that_precision(kind, dtype):
    # anchors=1000 keeps every token, so that rounding cannot change which ones are kept
    model, size, factors = built(kind, torch.float32), (9, 14), {finest(kind): 2}
    exact = wanted(kind, model, size, factors, anchors=1000)
    half = copy.deepcopy(model).to(dtype)
    rounded = wanted(kind, half, size, factors, anchors=1000).float()
    got = patched(half, size, factor=2, anchors=1000)
    assert got.dtype == dtype
    assert (got.float() - exact).abs().max() <= 2 * (rounded - exact).abs().max()


@pytest.mark.parametrize("anchors", [0, 5])
def test_channels_last(anchors):
    model, size = built("sd_unet"), (9, 14)
    want = wanted("sd_unet", model, size, {1: 2}, anchors=anchors)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    inputs = tiny.inputs(last, *size)
    inputs["sample"] = inputs["sample"].contiguous(memory_format=torch.channels_last)
    with apply_patch(last, factor=2, anchors=anchors), torch.no_grad():
        got = last(**inputs).sample.flatten()
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


# Masks over keys


@pytest.mark.parametrize("anchors", [0, 5, 1000])
def test_masks_are_selected_with_the_keys(anchors):
    # one level only: diffusers hands the same mask to every level
    model = tiny.shallow_unet(
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
    ).double()
    height, width = 7, 10
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(2, height * width, generator=generator) > 0.4
    inputs = {**tiny.inputs(model, height, width), "attention_mask": mask}
    bare = copy.deepcopy(model)
    for block in bare.modules():
        if hasattr(block, "attn1"):
            processor = reference.Coarse((height, width), 2, anchors, mean=False)
            block.attn1.set_processor(processor)
            block.norm1.register_forward_pre_hook(processor.note_norms)
    with torch.no_grad():
        want = bare(**inputs).sample
        with apply_patch(model, factor=2, anchors=anchors):
            got = model(**inputs).sample
            del inputs["attention_mask"]
            unmasked = model(**inputs).sample
    assert (unmasked - want).abs().max() > 1e-4
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


# Left alone


@pytest.mark.parametrize(
    "kind", ["motion_unet", "svd_unet", "unet_3d", "i2vgen_unet", "sparse_controlnet", "latte"]
)
def test_temporal_and_cross_attention_see_every_key(kind):
    model = built(kind, torch.float32)
    spatial = {f"{name}.attn1" for name in reference.spatial_blocks(model, kind)}

    def keys() -> dict[str, set[int]]:
        seen: dict[str, set[int]] = {}
        handles = [
            module.to_k.register_forward_pre_hook(
                lambda _, args, name=name: seen.setdefault(name, set()).add(args[0].shape[1])
            )
            for name, module in model.named_modules()
            if hasattr(module, "to_k")
        ]
        side = reference.PATCH_SIZES.get(kind, 1)
        tiny.run(model, 8 * side, 10 * side)
        for handle in handles:
            handle.remove()
        return seen

    dense = keys()
    with apply_patch(model, factor=2, anchors=0):
        coarse = keys()
    changed = {name for name in dense if dense[name] != coarse[name]}
    level_1 = {name for name in spatial if not name.startswith("mid_block")}
    assert len(dense) > 2 * len(spatial)
    assert changed == level_1
    assert all(coarse[name] == {20} for name in changed)
