"""A patch of a transformer leaves no trace, survives copies, and says what it cannot do."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import JointAttnProcessor2_0
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

import joint_reference
import tiny
import tiny_transformers
from tokendown import (
    ConfigError,
    GridError,
    PatchConfig,
    UnsupportedModelError,
    apply_patch,
    is_patched,
    remove_patch,
)

SIZE = (6, 8)


def run(kind: str, model: Any, size: tuple[int, int] = SIZE) -> torch.Tensor:
    return tiny_transformers.run(kind, model, *size)


def traces(model: Any) -> list[tuple[Any, ...]]:
    """Everything about a model that a patch could leave behind."""
    return [
        (
            name,
            type(module),
            sorted(module.__dict__),
            len(module._forward_pre_hooks),
            id(getattr(module, "processor", None)),
        )
        for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("kind", sorted(joint_reference.WHERE))
def test_remove_restores_every_family(kind):
    model = getattr(tiny_transformers, kind)()
    before, dense, state = traces(model), run(kind, model), list(model.state_dict())
    patch = apply_patch(model, factor=2, anchors=2)
    assert not torch.equal(run(kind, model), dense)
    assert list(model.state_dict()) == state
    assert is_patched(model)
    for _ in range(2):
        patch.remove()
        assert not is_patched(model)
        assert traces(model) == before
        assert torch.equal(run(kind, model), dense)


def test_an_exception_leaves_no_trace():
    model = tiny_transformers.flux()
    before, dense = traces(model), run("flux", model)
    arguments = tiny_transformers.inputs("flux", model, *SIZE)
    arguments["encoder_hidden_states"] = torch.zeros(2, 5, 3)  # a wrong width
    with pytest.raises(RuntimeError), apply_patch(model, factor=2):
        model(**arguments)
    assert traces(model) == before
    assert torch.equal(run("flux", model), dense)
    with apply_patch(model, factor=2):  # nothing is left over from a failed call
        again = run("flux", model)
    with apply_patch(tiny_transformers.flux(), factor=2) as fresh:
        assert torch.equal(run("flux", fresh.models[0]), again)


def test_applying_again_replaces():
    model = tiny_transformers.flux()
    before = traces(model)
    first = apply_patch(model, factor=2)
    apply_patch(model, factor=3, anchors=0)
    got = run("flux", model)
    first.remove()  # is no longer at work
    assert is_patched(model)
    remove_patch(model)
    assert traces(model) == before
    with apply_patch(model, factor=3, anchors=0):
        assert torch.equal(run("flux", model), got)


def test_remove_needs_the_model_only():
    model = tiny_transformers.flux()
    before = traces(model)
    apply_patch(model, factor=2)
    remove_patch(model)
    assert traces(model) == before


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("kind", ["flux", "sd35", "wan"])
def test_copies_are_patched_and_independent(kind, clone):
    model = getattr(tiny_transformers, kind)()
    dense = run(kind, model)
    apply_patch(model, factor=2, anchors=2)
    patched = run(kind, model)
    copied = clone(model)
    remove_patch(model)
    assert torch.equal(run(kind, model), dense)
    assert is_patched(copied)
    assert torch.equal(run(kind, copied), patched)
    with torch.no_grad():  # its own weights decide
        next(iter(copied.parameters())).add_(1)
    assert not torch.equal(run(kind, copied), patched)
    assert torch.equal(run(kind, model), dense)
    remove_patch(copied)
    assert not is_patched(copied)


def test_processors_are_never_touched():
    model = tiny_transformers.flux()
    before = dict(model.attn_processors)
    with apply_patch(model, factor=2):
        run("flux", model)
        assert all(model.attn_processors[name] is item for name, item in before.items())


def test_new_processors_do_no_harm():
    model = tiny_transformers.flux()
    dense = run("flux", model)
    apply_patch(model, factor=2)
    patched = run("flux", model)
    model.set_attn_processor(FluxAttnProcessor())
    assert torch.equal(run("flux", model), patched)
    remove_patch(model)
    assert torch.equal(run("flux", model), dense)


class OwnSubclass(FluxAttnProcessor):
    """A processor of a user, which calls attention in a way that cannot be reached."""

    def __call__(self, attn: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        return FluxAttnProcessor.__call__(self, attn, hidden_states, *args, **kwargs)


def test_a_processor_that_cannot_be_reached_is_refused_by_name():
    model = tiny_transformers.flux()
    before = traces(model)
    apply_patch(model, factor=2)
    model.set_attn_processor(OwnSubclass())
    with pytest.raises(UnsupportedModelError, match="OwnSubclass"):
        run("flux", model)
    remove_patch(model)
    model.set_attn_processor(OwnSubclass())
    with pytest.raises(UnsupportedModelError, match="OwnSubclass"):
        apply_patch(model, factor=2)
    model.set_attn_processor(FluxAttnProcessor())
    assert [trace[:4] for trace in traces(model)] == [trace[:4] for trace in before]


class Elsewhere(JointAttnProcessor2_0):
    """Calls attention, but over tokens that are not the sequence."""

    def __call__(self, attn: Any, hidden_states: Any, **kwargs: Any) -> Any:
        query = attn.to_q(hidden_states)[:, None, :3]
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
        return hidden_states, kwargs["encoder_hidden_states"]


def test_a_processor_that_attends_to_something_else_is_refused_when_it_runs():
    model = tiny_transformers.sd3()
    apply_patch(model, factor=2)
    model.transformer_blocks[0].attn.set_processor(Elsewhere())
    with pytest.raises(UnsupportedModelError, match="Elsewhere"):
        run("sd3", model)


def test_a_part_of_a_model_cannot_run_on_its_own():
    model = tiny_transformers.sd3()
    with apply_patch(model, factor=2), pytest.raises(GridError, match="call the denoiser"):
        model.transformer_blocks[0].attn(hidden_states=torch.zeros(1, 4, tiny_transformers.DIM))


def test_averages_are_refused():
    for kind in ("flux", "sd3"):
        with pytest.raises(ConfigError, match="nearest"):
            apply_patch(getattr(tiny_transformers, kind)(), factor=2, method="mean")


@pytest.mark.parametrize(
    "options", [{"references": 0}, {"temporal_factor": 0}, {"multiplicity": 1}], ids=str
)
def test_options_are_checked(options):
    with pytest.raises(ConfigError):
        PatchConfig(**options)


def test_set_grid_is_for_transformers():
    with apply_patch(tiny.sd_unet(), factor=2) as patch, pytest.raises(ConfigError):
        patch.set_grid((4, 4))
    with apply_patch(tiny_transformers.flux(), factor=2) as patch:
        with pytest.raises(ConfigError):
            patch.set_grid()
        with pytest.raises(GridError):
            patch.set_grid((0, 4))


@pytest.mark.parametrize("kind", ["flux", "wan"])
def test_a_step_window_is_honoured(kind):
    model = getattr(tiny_transformers, kind)()
    dense = run(kind, model)
    with apply_patch(model, factor=2):
        patched = run(kind, model)
    with apply_patch(model, factor=2, start=0.25, stop=0.75, method="nearest") as patch:
        got = []
        for step in range(4):
            patch.set_progress(step, 4)
            got.append(run(kind, model))
    for output, want in zip(got, [dense, patched, patched, dense], strict=True):
        assert torch.equal(output, want)
