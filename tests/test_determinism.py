"""Same seed, same image; no random state is touched; no step waits for the device."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import reference
import tiny
from tokendown import apply_patch, attend, remove_patch, summary
from tokendown.adapters.dispatch import merge
from tokendown.adapters.skeleton import on_meta
from tokendown.grid import Grid
from tokendown.inputs import denoiser_inputs

KINDS = sorted(reference.LEVELS)
SYNCHRONISE = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_to_copy", "unique"}


def test_same_seed_same_image(tmp_path):
    pipe = tiny.sd_pipeline(tmp_path)
    with apply_patch(pipe, factor=2, anchors=3, start=0.25):
        first = tiny.image_of(pipe, steps=4)
        assert torch.equal(tiny.image_of(pipe, steps=4), first)
        assert not torch.equal(tiny.image_of(pipe, steps=4, seed=1), first)
    other = tiny.sd_pipeline(tmp_path)
    with apply_patch(other, factor=2, anchors=3, start=0.25):
        assert torch.equal(tiny.image_of(other, steps=4), first)


def test_an_item_does_not_depend_on_its_batch():
    model = tiny.sd_unet().double()
    call = tiny.inputs(model, 9, 10, batch=4)
    with apply_patch(model, factor=2, anchors=3), torch.no_grad():
        together = model(**call).sample
        alone = [
            model(**{name: value[i : i + 1] for name, value in call.items()}).sample
            for i in range(4)
        ]
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=1e-10)


def random_states() -> list:
    name, keys, *rest = np.random.get_state()
    return [random.getstate(), torch.get_rng_state().tolist(), name, keys.tolist(), *rest]


def test_no_random_state_is_touched():
    model = tiny.sd_unet()
    before = random_states()
    patch = apply_patch(model, factor=2, anchors=3, start=0.2)
    patch.set_progress(1, 2)
    tiny.run(model, 8, 12)
    summary(model)
    patch.remove()
    summary(model)
    x = torch.ones(1, 1, 16, 4)
    attend(x, x, x, Grid(4, 4), anchors=3)
    remove_patch(model)
    assert random_states() == before


# No host synchronisation


@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, {}) for kind in KINDS] + [("sd_unet", {"anchors": 0}), ("sd_unet", {"method": "mean"})],
    ids=str,
)
def test_a_patched_model_runs_without_data(kind, options):
    """On the meta device nothing has a value: reading one raises."""
    model = on_meta(getattr(tiny, kind)())
    call = denoiser_inputs(model, 16, 16, device="meta")
    with torch.no_grad(), apply_patch(model, factor=2, **options):
        model(**call)


class Count(TorchDispatchMode):
    """Counts the operations that wait for a device."""

    def __init__(self, names: set[str] = SYNCHRONISE) -> None:
        super().__init__()
        self.names = names
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.names:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def test_the_counter_counts():
    with Count() as count:
        torch.ones(1).item()
        bool(torch.ones(1) > 0)
        torch.ones(2).nonzero()
    assert count.seen == {"_local_scalar_dense": 2, "nonzero": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_a_patched_call_waits_no_more_often(kind):
    model, size = getattr(tiny, kind)(), (8, 8)
    call = tiny.inputs(model, *size)
    with torch.no_grad(), Count() as dense:
        model(**call)
    with torch.no_grad(), apply_patch(model, factor=2, anchors=3), Count() as coarse:
        model(**call)
    assert coarse.seen == dense.seen
    assert not coarse.seen["_local_scalar_dense"]


@pytest.mark.parametrize("schedule", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_a_clock_does_not_wait(tmp_path, schedule):
    pipe = tiny.sd_pipeline(tmp_path, schedule)

    def count() -> Counter[str]:
        with Count() as counter:
            tiny.image_of(pipe, steps=4)
        return counter.seen

    dense = count()
    with apply_patch(pipe, factor=2, start=0.25, stop=0.75):
        assert count() == dense


def test_masks_do_not_wait():
    model = tiny.shallow_unet(
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
    )
    call = {**tiny.inputs(model, 8, 8), "attention_mask": torch.ones(2, 64)}
    with torch.no_grad(), apply_patch(model, factor=2, anchors=3), Count() as count:
        model(**call)
    assert not count.seen["_local_scalar_dense"]


def test_a_boolean_mask_does_not_wait():
    """A number that becomes a tensor is copied to the device, which waits for it."""
    mask, bias = torch.tensor([True, False, True])[None, None, None], torch.arange(3.0)
    with Count({"scalar_tensor"}) as count:
        merged = merge(mask, bias)
    assert not count.seen
    assert merged.tolist() == [[[[0.0, -torch.inf, 2.0]]]]


# Gradients


def test_gradients_flow_through_the_kept_keys():
    model = tiny.shallow_unet().double()
    call = tiny.inputs(model, 5, 6)

    def gradient() -> Tensor:
        sample = call["sample"].clone().requires_grad_()
        model(**{**call, "sample": sample}).sample.pow(2).sum().backward()
        return sample.grad

    with apply_patch(model, factor=2, anchors=3):
        got = gradient()
    reference.coarsen(model, "shallow_unet", (5, 6), {1: 2}, anchors=3)
    torch.testing.assert_close(got, gradient(), rtol=0, atol=1e-8)
