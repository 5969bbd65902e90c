"""Removing leaves no trace: same output to the bit, same processors, nothing installed."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import weakref
from functools import partial

import pytest
import torch
from torch import nn

import reference
import tiny
from tokendown import ConfigError, NothingPatchedError, apply_patch, is_patched, remove_patch
from tokendown.adapters.classic import FewerKeys

KINDS = sorted(reference.LEVELS)
SIZES = {"dit": (8, 8), "kandinsky3": (8, 16)}
OPTIONS = [
    {"factor": 2},
    {"factor": 2, "anchors": 0},
    {"factor": 2, "method": "mean"},
]


def traces(model: nn.Module) -> list[str]:
    """Everything that any module carries in its instance, and every hook."""
    return [
        f"{name}.{key}={sorted(value) if 'hooks' in key and value else type(value).__name__}"
        for name, module in model.named_modules()
        for key, value in sorted(module.__dict__.items())
    ]


def processors(model: nn.Module) -> list[int]:
    return [id(module.processor) for module in model.modules() if hasattr(module, "processor")]


class Sandwich:
    """Compares a model with what it was before."""

    def __init__(self, model: nn.Module, *size: int) -> None:
        self.model, self.size = model, size or (8, 12)
        self.output = tiny.run(model, *self.size)
        self.traces, self.processors = traces(model), processors(model)
        self.state = {name: value.clone() for name, value in model.state_dict().items()}

    def assert_changed(self, model: nn.Module | None = None) -> None:
        model = model or self.model
        assert is_patched(model)
        assert not torch.equal(tiny.run(model, *self.size), self.output)

    def assert_restored(self, model: nn.Module | None = None) -> None:
        copied, model = model is not None, model or self.model
        assert not is_patched(model)
        assert traces(model) == self.traces
        assert copied or processors(model) == self.processors
        assert torch.equal(tiny.run(model, *self.size), self.output)
        state = model.state_dict()
        assert list(state) == list(self.state)
        assert all(torch.equal(state[name], value) for name, value in self.state.items())


@pytest.mark.parametrize("kind", KINDS)
def test_remove_restores_every_family(kind):
    before = Sandwich(getattr(tiny, kind)(), *SIZES.get(kind, ()))
    patch = apply_patch(before.model, factor=2, anchors=3)  # 32 would be all tokens
    before.assert_changed()
    patch.remove()
    before.assert_restored()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_remove_restores_after_every_option(options):
    before = Sandwich(tiny.sd_unet())
    patch = apply_patch(before.model, **options)
    before.assert_changed()
    patch.remove()
    before.assert_restored()


def test_remove_without_a_call_in_between():
    before = Sandwich(tiny.sd_unet())
    apply_patch(before.model, factor=2).remove()
    before.assert_restored()


def test_remove_is_idempotent():
    before = Sandwich(tiny.sd_unet())
    patch = apply_patch(before.model, factor=2)
    for _ in range(2):
        patch.remove()
        remove_patch(before.model)
        before.assert_restored()


def test_remove_patch_of_a_model_that_was_never_patched():
    before = Sandwich(tiny.sd_unet())
    remove_patch(before.model)
    before.assert_restored()


def test_the_context_manager_removes():
    before = Sandwich(tiny.sd_unet())
    with apply_patch(before.model, factor=2) as patch:
        before.assert_changed()
        assert patch.models == [before.model]
    before.assert_restored()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_the_context_manager_removes_after_an_error(error):
    before = Sandwich(tiny.sd_unet())
    with pytest.raises(error), apply_patch(before.model, factor=2):  # noqa: PT012
        before.assert_changed()
        raise error
    before.assert_restored()


@pytest.mark.parametrize("place", ["attn1", "norm1", "attn1.to_k", "attn1.to_out.0"])
def test_an_interrupt_inside_the_model(place):
    before = Sandwich(tiny.sd_unet())
    module = before.model.get_submodule("up_blocks.3.attentions.0.transformer_blocks.0." + place)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handle = module.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), apply_patch(before.model, factor=2):
        tiny.run(before.model, 8, 12)
    handle.remove()
    before.assert_restored()


def test_a_patch_goes_on_after_an_interrupt():
    model = tiny.sd_unet()
    norm = model.get_submodule("up_blocks.3.attentions.0.transformer_blocks.0.norm1")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with apply_patch(model, factor=2):
        want = tiny.run(model, 6, 6)
        handle = norm.register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            tiny.run(model, 8, 12)
        handle.remove()
        assert torch.equal(tiny.run(model, 6, 6), want)


def test_a_lost_handle():
    before = Sandwich(tiny.sd_unet())
    apply_patch(before.model, factor=2)
    gc.collect()
    before.assert_changed()
    remove_patch(before.model)
    before.assert_restored()


# Applied twice


def test_applying_again_replaces():
    before = Sandwich(tiny.sd_unet())
    with apply_patch(before.model, factor=4, anchors=3):
        want = tiny.run(before.model, 8, 12)
    apply_patch(before.model, factor=2)
    second = apply_patch(before.model, factor=4, anchors=3)
    assert torch.equal(tiny.run(before.model, 8, 12), want)
    second.remove()
    before.assert_restored()


def test_a_replaced_handle_does_nothing():
    before = Sandwich(tiny.sd_unet())
    first = apply_patch(before.model, factor=2)
    second = apply_patch(before.model, factor=4)
    want = tiny.run(before.model, 8, 12)
    first.remove()
    assert torch.equal(tiny.run(before.model, 8, 12), want)
    second.remove()
    before.assert_restored()


def test_nested_with_blocks():
    before = Sandwich(tiny.sd_unet())
    with apply_patch(before.model, factor=2), apply_patch(before.model, factor=4):
        before.assert_changed()
    before.assert_restored()


def test_a_failing_second_patch_keeps_the_first():
    model = tiny.sd_unet()
    with apply_patch(model, factor=2):
        want = tiny.run(model, 8, 12)
        with pytest.raises(NothingPatchedError):
            apply_patch(model, factor={16: 2})
        assert torch.equal(tiny.run(model, 8, 12), want)


def test_an_interrupt_while_it_is_put_in(monkeypatch):
    """The old patch is gone by then, and nothing of the new one may stay."""
    model = tiny.sd_unet()
    sandwich = Sandwich(model)
    install = FewerKeys.install
    calls = []

    def interrupted(self):
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        install(self)

    apply_patch(model, factor=4)
    monkeypatch.setattr(FewerKeys, "install", interrupted)
    with pytest.raises(KeyboardInterrupt):
        apply_patch(model, factor=2)
    assert len(calls) == 2
    sandwich.assert_restored()


# Copies


@pytest.mark.parametrize("called", [False, True], ids=["fresh", "called"])
@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_is_patched_and_on_its_own(duplicate, called):
    before = Sandwich(tiny.sd_unet())
    patch = apply_patch(before.model, factor=2)
    want = tiny.run(before.model, 8, 12)
    if not called:
        patch.remove()
        patch = apply_patch(before.model, factor=2)
    other = duplicate(before.model)
    assert torch.equal(tiny.run(other, 8, 12), want)
    remove_patch(other)
    before.assert_restored(other)
    before.assert_changed()
    patch.remove()
    before.assert_restored()


def test_a_copy_runs_its_own_weights():
    model = tiny.sd_unet()
    with apply_patch(model, factor=2):
        want = tiny.run(model, 8, 12)
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert torch.equal(tiny.run(model, 8, 12), want)
        assert not tiny.run(other, 8, 12).any()
    assert is_patched(other)


def test_a_handle_survives_a_pickle_together_with_its_model():
    before = Sandwich(tiny.sd_unet())
    patch = apply_patch(before.model, factor=2)
    model, other = pickle.loads(pickle.dumps((before.model, patch)))
    before.assert_changed(model)
    other.remove()
    before.assert_restored(model)


def test_a_patched_model_can_be_collected():
    model = tiny.sd_unet()
    apply_patch(model, factor=2)
    tiny.run(model, 8, 12)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_saved_weights_are_those_of_the_model(tmp_path):
    model = tiny.sd_unet()
    want = tiny.run(model, 8, 12)
    with apply_patch(model, factor=2):
        tiny.run(model, 8, 12)
        model.save_pretrained(tmp_path)
        state = model.state_dict()
    loaded = type(model).from_pretrained(tmp_path)
    assert list(state) == list(loaded.state_dict())
    assert torch.equal(tiny.run(loaded, 8, 12), want)


def test_parameters_and_modules_are_those_of_the_model():
    model = tiny.sd_unet()
    parameters = [name for name, _ in model.named_parameters()]
    modules = [name for name, _ in model.named_modules()]
    with apply_patch(model, factor=2):
        assert [name for name, _ in model.named_parameters()] == parameters
        assert [name for name, _ in model.named_modules()] == modules


# Pipelines


def test_a_pipeline_is_restored(tmp_path):
    pipe = tiny.sd_pipeline(tmp_path)
    want = tiny.image_of(pipe)
    with apply_patch(pipe, factor=2, anchors=2):
        assert is_patched(pipe)
        assert is_patched(pipe.unet)
        assert not torch.equal(tiny.image_of(pipe), want)
    assert not is_patched(pipe)
    assert torch.equal(tiny.image_of(pipe), want)


@pytest.mark.parametrize("given", ["pipeline", "denoiser"])
def test_a_pipeline_and_its_denoiser_are_the_same_thing(tmp_path, given):
    pipe = tiny.sd_pipeline(tmp_path)
    want = tiny.image_of(pipe)
    one, other = (pipe, pipe.unet) if given == "pipeline" else (pipe.unet, pipe)
    apply_patch(one, factor=2)
    remove_patch(other)
    assert torch.equal(tiny.image_of(pipe), want)


def controlled(folder, nets=1):
    nets = [tiny.controlnet(seed) for seed in range(nets)]
    pipe = tiny.sd_pipeline(
        folder,
        kind="StableDiffusionControlNetPipeline",
        controlnet=nets[0] if len(nets) == 1 else nets,
    )
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return pipe, {"image": image if len(nets) == 1 else [image] * len(nets)}


@pytest.mark.parametrize("nets", [1, 2])
def test_controlnets_are_patched_on_request(tmp_path, nets):
    pipe, call = controlled(tmp_path, nets)
    parts = [pipe.controlnet] if nets == 1 else list(pipe.controlnet.nets)
    want = tiny.image_of(pipe, **call)
    with apply_patch(pipe, factor=2):
        assert not any(is_patched(net) for net in parts)
        unet_only = tiny.image_of(pipe, **call)
    with apply_patch(pipe, factor=2, controlnet=True) as patch:
        assert all(is_patched(net) for net in parts)
        assert len(patch.models) == 1 + nets
        both = tiny.image_of(pipe, **call)
    assert not torch.equal(unet_only, want)
    assert not torch.equal(both, unet_only)
    assert not any(is_patched(net) for net in parts)
    assert torch.equal(tiny.image_of(pipe, **call), want)


def test_controlnets_are_found_without_the_handle(tmp_path):
    pipe, call = controlled(tmp_path)
    want = tiny.image_of(pipe, **call)
    apply_patch(pipe, factor=2, controlnet=True)
    remove_patch(pipe)
    assert not is_patched(pipe.controlnet)
    assert torch.equal(tiny.image_of(pipe, **call), want)


def test_applying_again_without_controlnets_takes_them_out(tmp_path):
    """Applying again replaces the earlier patch: all of it."""
    pipe, _ = controlled(tmp_path)
    apply_patch(pipe, factor=2, controlnet=True)
    second = apply_patch(pipe, factor=2)
    assert not is_patched(pipe.controlnet)
    second.remove()
    assert not is_patched(pipe)


# What a patched module looks like from outside


def test_forward_keeps_its_signature():
    model = tiny.sd_unet()
    layer = model.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1")
    before = list(inspect.signature(layer.forward).parameters)
    with apply_patch(model, factor=2):
        during = inspect.signature(layer.forward).parameters
        for name in before:
            assert name in during or any(
                p.kind is inspect.Parameter.VAR_KEYWORD for p in during.values()
            )
    assert list(inspect.signature(layer.forward).parameters) == before


def test_class_and_processor_stay():
    model = tiny.sd_unet()
    before = [(type(m), getattr(m, "processor", None)) for m in model.modules()]
    with apply_patch(model, factor=2):
        tiny.run(model, 8, 12)
        after = [(type(m), getattr(m, "processor", None)) for m in model.modules()]
    assert before == after


# What others did to the model meanwhile


def test_one_controlnet_in_two_places(tmp_path):
    pipe, call = controlled(tmp_path, 2)
    nets = pipe.controlnet.nets
    nets[1] = nets[0]
    want = tiny.image_of(pipe, **call)
    with apply_patch(pipe, factor=2, controlnet=True) as patch:
        assert len(patch.models) == 2
        assert not torch.equal(tiny.image_of(pipe, **call), want)
    assert not is_patched(pipe)
    assert torch.equal(tiny.image_of(pipe, **call), want)


def test_a_removed_handle_cannot_be_entered():
    patch = apply_patch(tiny.shallow_unet(), factor=2)
    with patch:
        pass
    with pytest.raises(ConfigError, match="was removed"), patch:
        pass


@pytest.mark.parametrize("by", ["handle", "model"])
def test_closures_around_our_stand_ins_run_the_dense_model(by):
    """A tracer or a profiler keeps what it found, out of our sight."""
    model = tiny.shallow_unet()
    dense, other = tiny.run(model, 8, 8), tiny.run(model, 16, 8)
    patch = apply_patch(model, factor=2)
    for module in model.modules():
        if hasattr(module, "to_q"):
            module.forward = partial(lambda inner, *args, **kwargs: inner(*args, **kwargs),
                                     module.forward)  # fmt: skip
    assert is_patched(model)
    assert not torch.equal(tiny.run(model, 8, 8), dense)
    patch.remove() if by == "handle" else remove_patch(model)
    assert not is_patched(model)
    assert torch.equal(tiny.run(model, 8, 8), dense)
    assert torch.equal(tiny.run(model, 16, 8), other)
