"""Gradients through a patched model: checkpointing, and LoRA training."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from tests import tiny, tiny_transformers
from torch import distributed
from torch.utils.checkpoint import checkpoint

from tokendown import ConfigError, apply_patch, is_patched

from .checks import ANCHORS, FACTORS, LATENT, oracle
from .test_lora import add_lora

PATCH = {"factor": FACTORS, "anchors": ANCHORS}


def gradients(unet, **inputs) -> dict[str, torch.Tensor]:
    unet.zero_grad()
    tiny.flatten(unet(**inputs)).square().mean().backward()
    return collected(unet)


def collected(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(got, want) -> None:
    assert got.keys() == want.keys()
    assert want
    for name, gradient in want.items():
        bound = 1e-4 * max(gradient.abs().max().item(), 1e-3)
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=bound, msg=name)


@pytest.mark.compat("training: gradients", note="of every weight, against the oracle")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("patched_first", [False, True], ids=["after", "before"])
def test_gradients_flow(checkpointing, patched_first):
    unet = tiny.sd_unet().requires_grad_(True).train()
    inputs = tiny.inputs(unet, *LATENT)
    dense = gradients(unet, **inputs)
    with oracle(unet):
        want = gradients(unet, **inputs)
    patch = apply_patch(unet, **PATCH) if patched_first else None
    if checkpointing:
        unet.enable_gradient_checkpointing()
    patch = patch or apply_patch(unet, **PATCH)
    got = gradients(unet, **inputs)
    assert_same(got, want)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.weight"
    assert (got[name] - dense[name]).abs().max() > 1e-6
    patch.remove()
    again = gradients(unet, **inputs)
    assert all(torch.equal(again[key], dense[key]) for key in dense)


def inputs_of(kind, model, size) -> dict[str, Any]:
    """Of the tiny U-Net or of a tiny transformer."""
    if kind == "unet":
        return tiny.inputs(model, *size)
    return tiny_transformers.inputs(kind, model, *size)


def gradients_of_two(kind, model, *sizes) -> dict[str, torch.Tensor]:
    """Two forward passes before one backward pass."""
    model.zero_grad()
    losses = (tiny.flatten(model(**inputs_of(kind, model, size))).square().mean() for size in sizes)
    sum(losses).backward()
    return collected(model)


@pytest.mark.compat("gradient checkpointing: two sizes before one backward pass")
@pytest.mark.parametrize("kind", ["unet", "sd35", "flux", "wan"])  # SD 3.5 has two in a block
@pytest.mark.parametrize("first", [(12, 16), (8, 16)], ids=["as many tokens", "fewer tokens"])
def test_checkpointing_and_two_sizes(kind, first):
    build = tiny.sd_unet if kind == "unet" else getattr(tiny_transformers, kind)
    model = build().requires_grad_(True).train()
    patch = PATCH if kind == "unet" else {"factor": 2, "anchors": ANCHORS}
    with apply_patch(model, **patch):
        want = gradients_of_two(kind, model, first, (16, 12))
        model.enable_gradient_checkpointing()
        assert_same(gradients_of_two(kind, model, first, (16, 12)), want)
        model.zero_grad()
        one = gradients(model, **inputs_of(kind, model, first))  # the present is back
    model.disable_gradient_checkpointing()
    with apply_patch(model, **patch):
        assert_same(one, gradients(model, **inputs_of(kind, model, first)))


def gradients_of_steps(model, patch, run) -> dict[str, torch.Tensor]:
    """Three steps of a sampling, each with another weight, before one backward pass."""
    model.zero_grad()
    loss = torch.zeros(())
    for step in range(3):
        patch.set_progress(step, 4)
        loss = loss + (step + 1) * run().square().mean()
    patch.set_progress(3, 4)
    loss.backward()
    return collected(model)


@pytest.mark.compat(
    "gradient checkpointing: steps before one backward pass", note="jitter; windows"
)
@pytest.mark.parametrize("kind", ["unet", "flux", "wan"])
@pytest.mark.parametrize("options", [{"anchors": 0}, {"stop": 0.5}], ids=["jitter", "window"])
def test_checkpointing_and_several_steps(kind, options):
    model = tiny.sd_unet() if kind == "unet" else getattr(tiny_transformers, kind)()
    inputs = inputs_of(kind, model, LATENT if kind == "unet" else (6, 8))
    model.requires_grad_(True).train()
    with apply_patch(model, factor=2, **options) as patch:
        want = gradients_of_steps(model, patch, lambda: tiny.flatten(model(**inputs)))
        model.enable_gradient_checkpointing()
        got = gradients_of_steps(model, patch, lambda: tiny.flatten(model(**inputs)))
        again = gradients_of_steps(model, patch, lambda: tiny.flatten(model(**inputs)))
        assert_same(got, want)
        assert_same(again, want)
    with apply_patch(model, factor=2, method="nearest", **options) as patch:
        still = gradients_of_steps(model, patch, lambda: tiny.flatten(model(**inputs)))
    with pytest.raises(AssertionError):
        assert_same(still, want)


@pytest.mark.compat("LoRA training", note="gradient checkpointing; the loss falls")
@pytest.mark.parametrize("patched_first", [False, True], ids=["after", "before"])
def test_lora_training(patched_first):
    unet = tiny.sd_unet()
    if patched_first:
        apply_patch(unet, **PATCH)
    add_lora(unet)
    if not patched_first:
        apply_patch(unet, **PATCH)
    unet.train()
    unet.enable_gradient_checkpointing()
    trained = [p for name, p in unet.named_parameters() if "lora_" in name]
    frozen = {n: p.detach().clone() for n, p in unet.named_parameters() if "lora_" not in n}
    assert all(p.requires_grad for p in trained)
    inputs = tiny.inputs(unet, *LATENT)
    target = torch.zeros(1)
    optimizer = torch.optim.Adam(trained, lr=0.02)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = (tiny.flatten(unet(**inputs)) - target).square().mean()
        loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in trained)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    parameters = dict(unet.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in frozen.items())
    assert all(parameters[name].grad is None for name in frozen)


@pytest.mark.compat("DistributedDataParallel", note="one gloo process; patch around and inside it")
def test_a_denoiser_in_data_parallel(tmp_path):
    unet = tiny.sd_unet().requires_grad_(True)
    inputs = tiny.inputs(unet, *LATENT)
    with apply_patch(unet, **PATCH):
        want = gradients(unet, **inputs)
    distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(unet)
        for outer in (wrapped, unet):
            with apply_patch(outer, **PATCH):
                assert is_patched(wrapped)
                assert is_patched(unet)
                found = gradients(wrapped, **inputs)
                assert_same({name.removeprefix("module."): g for name, g in found.items()}, want)
            assert not is_patched(wrapped)
    finally:
        distributed.destroy_process_group()


@pytest.mark.compat(
    "checkpoints of others", note="whole denoiser, reentrant: refused where steps or sizes move"
)
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_step_that_cannot_be_told_is_an_error(reentrant):
    """The input of a block is another tensor when more than the block runs again."""
    unet = tiny.shallow_unet().requires_grad_(True).train()
    inputs = tiny.inputs(unet, 8, 8)

    def gradients_of_whole(again: bool, **options) -> dict[str, torch.Tensor]:
        unet.zero_grad()
        loss = torch.zeros(())
        with apply_patch(unet, factor=4, **options) as patch:
            for step in range(3):
                patch.set_progress(step, 4)
                latent = inputs["sample"].clone().requires_grad_(True)
                run = lambda x: unet(**{**inputs, "sample": x}).sample  # noqa: E731
                output = checkpoint(run, latent, use_reentrant=reentrant) if again else run(latent)
                loss = loss + (step + 1) * output.square().mean()
            loss.backward()
        return collected(unet)

    with pytest.raises(ConfigError, match="enable_gradient_checkpointing"):
        gradients_of_whole(True)
    still = {"method": "nearest"}
    assert_same(gradients_of_whole(True, **still), gradients_of_whole(False, **still))


@pytest.mark.compat("gradient checkpointing: Ctrl-C", note="the next call is of the present")
def test_an_interrupted_backward_pass():
    unet = tiny.shallow_unet().requires_grad_(True).train()
    inputs = tiny.inputs(unet, 8, 8)
    unet.enable_gradient_checkpointing()
    block = unet.down_blocks[0].attentions[0].transformer_blocks[0]

    def interrupt(*_) -> None:
        if torch._C._current_graph_task_id() != -1:
            raise KeyboardInterrupt

    with apply_patch(unet, factor=2, anchors=0) as patch:
        patch.set_progress(0, 4)
        loss = tiny.flatten(unet(**inputs)).sum()
        patch.set_progress(3, 4)
        handle = block.norm1.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            loss.backward()
        handle.remove()
        pickle.loads(pickle.dumps(block))
        assert torch.equal(tiny.run(unet, 8, 8), tiny.run(unet, 8, 8))
