"""The methods of the benchmark: what they compute, what they cost, and that they leave no trace."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import pytest
import torch
from tests import tiny, tiny_transformers
from tests.compat.builders import one_level_unet
from tests.reference import coarsen, softmax_attention, spatial_blocks

from tokendown import BenchError, ConfigError, PatchConfig, summary
from tokendown.adapters.skeleton import on_meta
from tokendown.bench import backends, methods
from tokendown.bench.compiled import CompiledCopies, share_weights
from tokendown.bench.cost import predicted_flops
from tokendown.bench.methods import DEFAULT, Scene, Useless, make_method
from tokendown.counting import call, counted_flops
from tokendown.inputs import denoiser_inputs, image_transformers, video_transformers
from tokendown.tuned import LayerChoice, TunedPlan

BUILD = {"shallow_unet": tiny.shallow_unet, "sdxl_unet": tiny.sdxl_unet, "pixart": tiny.pixart}
SIZES = [(12, 20), (10, 14)]  # of the latent


@pytest.fixture(autouse=True)
def small_budgets(monkeypatch):
    """So that the presets have something to do at tiny sizes, with factor 3 at 12 x 20."""
    monkeypatch.setattr("tokendown.config.PAPER_BUDGET", 30)
    monkeypatch.setattr("tokendown.config.AUTO_BUDGET", 15)
    monkeypatch.setattr("tokendown.config.AUTO_ANCHORS", 3)
    monkeypatch.setattr(methods, "PAPER_BUDGET", 30)


def scene_of(model, height, width, batch=2):
    return Scene.of(on_meta(model), height, width, batch)


def state(model):
    """Everything that a method could leave behind."""
    return [
        (name, type(part), sorted(vars(part)), id(getattr(part, "processor", None)),
         len(part._forward_pre_hooks), len(part._forward_hooks))
        for name, part in model.named_modules()
    ]  # fmt: skip


def output(model, *size):
    with torch.no_grad():
        inputs = tiny.inputs(model, *size)
        sample = inputs.pop(next(iter(inputs)))
        return tiny.flatten(model(sample, **inputs))


# No trace


@pytest.mark.parametrize("name", [*DEFAULT, "factor 1:3,2:2", "budget 8"])
def test_a_method_changes_the_output_and_leaves_no_trace(name):
    model = tiny.shallow_unet()
    dense, before = output(model, 12, 20), state(model)
    method = make_method(name, scene_of(model, 12, 20))
    with method.apply(model):
        inside = output(model, 12, 20)
    assert torch.equal(inside, dense) == (name == "dense")
    assert torch.equal(output(model, 12, 20), dense)
    assert state(model) == before
    with pytest.raises(RuntimeError, match="stop"), method.apply(model):
        raise RuntimeError("stop")
    assert state(model) == before
    assert torch.equal(output(model, 12, 20), dense)


def test_tomesd_leaves_the_random_numbers_alone():
    model = tiny.shallow_unet()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with make_method("tomesd-half", scene_of(model, 12, 20)).apply(model):
        output(model, 12, 20)
    assert torch.equal(torch.get_rng_state(), before)


# Exact


class Sampled:
    """A processor: dense attention in which all but the sampled rows and columns are masked."""

    def __init__(self, height, width, rows, columns):
        keep = torch.zeros(height, width, dtype=torch.bool)
        for row in rows:
            keep[row, columns] = True
        self.bias = torch.zeros(height * width).masked_fill(~keep.flatten(), -math.inf)

    def __call__(self, attn, hidden_states, *_: Any, **__: Any):
        query, key, value = (
            layer(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        return attn.to_out[0](
            softmax_attention(query, key, value, self.bias).transpose(1, 2).flatten(2)
        )


def sampled_indices(length, factor, mode):
    """Of ceil(length / factor) samples; as PyTorch documents its interpolation modes."""
    count = math.ceil(length / factor)
    if mode == "minimal":
        return [factor * i for i in range(count)]
    offset = 0.5 if mode == "nearest-exact" else 0.0
    return [math.floor((i + offset) * length / count) for i in range(count)]


@pytest.mark.parametrize("mode", ["minimal", "nearest", "nearest-exact"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", BUILD)
def test_grid_methods_equal_masked_dense_attention(kind, size, mode):
    model, oracle = BUILD[kind](), BUILD[kind]()
    scene = scene_of(model, *size)
    grid = scene.grid(scene.finest[0])
    assert scene.factor == math.ceil(math.sqrt(grid.tokens / 30)) or scene.factor == 2
    level = {"shallow_unet": 1, "sdxl_unet": 2, "pixart": 1}[kind]
    rows = sampled_indices(grid.height, scene.factor, mode)
    columns = sampled_indices(grid.width, scene.factor, mode)
    for block, at in spatial_blocks(oracle, kind).values():
        if at == level:
            block.attn1.set_processor(Sampled(grid.height, grid.width, rows, columns))
    with make_method(mode, scene).apply(model):
        got = output(model, *size)
    want = output(oracle, *size)
    assert not torch.allclose(want, output(model, *size), atol=1e-3)  # dense
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * want.abs().max().item())


def test_what_nearest_exact_samples_in_whole_cells():
    """Bottom-right of 2 x 2, the centre of 3 x 3, the third of 4 x 4."""
    for factor, first in ((2, 1), (3, 1), (4, 2)):
        assert sampled_indices(24, factor, "nearest-exact") == list(range(first, 24, factor))
        assert sampled_indices(24, factor, "nearest") == list(range(0, 24, factor))


def test_a_chosen_factor_equals_the_reference():
    model, oracle = tiny.shallow_unet(), tiny.shallow_unet()
    coarsen(oracle, "shallow_unet", (12, 20), {1: 3, 2: 2}, anchors=3)
    with make_method("factor 1:3,2:2", scene_of(model, 12, 20)).apply(model):
        got = output(model, 12, 20)
    want = output(oracle, 12, 20)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * want.abs().max().item())


def zero_images_and_texts(_, __, out):
    return torch.zeros_like(out) if torch.is_tensor(out) else tuple(map(torch.zeros_like, out))


@pytest.mark.parametrize(
    "kind",
    [
        "flux",
        "sd35",
        "qwen_image",
        "wan",
        "hunyuan_video",
        "hunyuan_video_15",
        "kandinsky5",
        "z_image",
    ],
)
def test_the_bound_and_the_flops_of_joint_attention(kind, monkeypatch):
    # as many positions as a tiny model has
    for module in (image_transformers, video_transformers):
        monkeypatch.setattr(module, "T5_TOKENS", 32)
    model = getattr(tiny_transformers, kind)()
    skeleton = on_meta(model)
    scene = Scene.of(skeleton, 8, 12, 1)
    empty = denoiser_inputs(skeleton, 8, 12, batch=1, device="meta")
    flops = {
        name: predicted_flops(make_method(name, scene), scene, empty)
        for name in ("dense", "factor 2", "bound")
    }
    assert flops["bound"] < flops["factor 2"] < flops["dense"] == scene.cost.flops
    after = summary(model, PatchConfig(factor=2), height=64, width=96, batch=1).step_flops_after
    assert flops["factor 2"] == pytest.approx(after, rel=0.01)
    given = denoiser_inputs(model, 8, 12, batch=1)
    with torch.no_grad():
        with make_method("bound", scene).apply(model):
            got = tiny.flatten(model(**given))
        for layer in scene.layers:
            model.get_submodule(layer.name).register_forward_hook(zero_images_and_texts)
        assert torch.equal(got, tiny.flatten(model(**given)))


def test_both_notations_and_a_plan_are_the_same_patch(tmp_path):
    model = tiny.shallow_unet()
    scene = scene_of(model, 12, 20)
    layers = tuple(
        LayerChoice(x.name, x.channels, x.heads, factor={1: 3}.get(x.downsample, 1), anchors=3)
        for x in scene.layers
    )
    TunedPlan(type(model).__name__, layers).save(tmp_path / "plan.json")
    names = ("factor 1:3", "factor=1:3,anchors=3", f"plan={tmp_path / 'plan.json'}")
    made = [make_method(name, scene) for name in names]
    detail = "factor 3 at downsampling 1, 3 anchors"
    assert [method.detail.partition(", plan ")[0] for method in made] == [detail] * 3
    outputs = []
    for method in made:
        with method.apply(model):
            outputs.append(output(model, 12, 20))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], output(model, 12, 20))


def test_the_bound_has_no_self_attention_at_all():
    model, oracle = tiny.shallow_unet(), tiny.shallow_unet()
    for block, _ in spatial_blocks(oracle, "shallow_unet").values():
        block.attn1.register_forward_hook(lambda _, __, out: torch.zeros_like(out))
    with make_method("bound", scene_of(model, 12, 20)).apply(model):
        got = output(model, 12, 20)
    assert torch.equal(got, output(oracle, 12, 20))


# Cost


@pytest.mark.parametrize(
    ("kind", "size"), [("shallow_unet", (9, 15)), ("sdxl_unet", (12, 20)), ("pixart", (10, 14))]
)
def test_predicted_flops_are_what_the_counter_counts(kind, size):
    model = on_meta(BUILD[kind]())
    inputs = denoiser_inputs(model, *size, batch=2, device="meta")
    scene, seen = Scene.of(model, *size, 2), {}
    for name in (*DEFAULT, "factor 2"):
        try:
            method = make_method(name, scene)
        except Useless:
            continue
        seen[name] = predicted_flops(method, scene, inputs)
        assert seen[name] == counted_flops(model, inputs, method.apply)
    assert seen["bound"] < seen["auto"] < seen["dense"]
    assert seen["minimal"] == seen["nearest"] == seen["nearest-exact"] < seen["dense"]
    if kind != "pixart":
        assert seen["tomesd-equal"] < seen["tomesd-half"] < seen["dense"]


# Parts of the schedule


def test_a_step_in_the_window_is_what_is_timed():
    model = tiny.shallow_unet()
    scene = scene_of(model, 12, 20)
    always, late = (make_method(f"factor=2{more}", scene) for more in ("", ",start=0.5,stop=0.6"))
    assert late.windowed
    assert late.detail == f"{always.detail}, from 50% to 60% of the steps"
    assert late.keys == always.keys
    with late.apply(model):
        coarse = output(model, 12, 20)
    assert not torch.equal(coarse, output(model, 12, 20))


def mixed_plan(model, scene, path):
    """Two factors at one level, in two parts of the schedule; saved."""
    parts = [(0.0, 0.5), (0.5, 1.0)]
    layers = tuple(
        LayerChoice(x.name, x.channels, x.heads, factor=2 + n % 2, anchors=0, start=a, stop=b)
        for n, x in enumerate(scene.layers)
        for a, b in [parts[n % 2]]
    )
    TunedPlan(type(model).__name__, layers).save(path)
    return f"plan={path}"


def test_layers_that_are_coarse_at_different_steps_have_no_one_step(tmp_path):
    model = tiny.shallow_unet()
    scene = scene_of(model, 12, 20)
    name = mixed_plan(model, scene, tmp_path / "a.json")
    with pytest.raises(Useless, match="time whole pictures, with --whole"):
        make_method(name, scene)
    whole = make_method(name, Scene.of(scene.model, 12, 20, 2, whole=True))
    assert "factor 2 or 3 at downsampling 1" in whole.detail
    assert ", from 0% to 50% of the steps, from 50% to 100% of the steps, plan " in whole.detail


# What is said


def test_a_method_without_effect_is_named_with_its_reason(monkeypatch):
    scene = scene_of(tiny.sdxl_unet(), 12, 20)
    with pytest.raises(Useless, match="no self-attention at downsampling 1"):
        make_method("paper", scene)
    with pytest.raises(Useless, match="U-Nets only"):
        make_method("tomesd-equal", scene_of(tiny.pixart(), 12, 20))
    with pytest.raises(Useless, match="changes nothing at this size"):
        make_method("budget 999", scene)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match=r"pip install 'tokendown\[bench\]'"):
        make_method("tomesd-half", scene)


def test_details_say_what_is_done():
    scene = scene_of(tiny.shallow_unet(), 12, 20)
    assert make_method("paper", scene).detail == "factor 3 at downsampling 1"
    assert make_method("tomesd-equal", scene).detail.startswith("ratio 0.8889, stride 3, ")
    assert make_method("factor 2", scene).detail == "factor 2 at downsampling 1, 3 anchors"


@pytest.mark.parametrize(
    "name",
    [
        "todo",
        "factor",
        "factor x",
        "factor 1:x",
        "factor 0",
        "budget 2.5",
        "factor 2 2",
        "factor=x",
        "tomesd=0.5",
    ],
)
def test_unknown_methods(name):
    with pytest.raises(ConfigError, match=r"expected|cannot read"):
        methods.check_name(name)


# Compiled copies


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")  # tomesd's generator
@pytest.mark.parametrize("what", ["model", "blocks"])
def test_compiled_copies_compute_what_the_method_does(what):
    model = one_level_unet()
    scene = scene_of(model, 12, 20)
    before = state(model)
    with CompiledCopies(model, what, "eager") as copies:
        for name in ("dense", "auto", "minimal", "tomesd-half"):
            method = make_method(name, scene)
            compiled = copies.of(method)
            assert compiled is copies.of(method)
            with method.apply(model):
                want = output(model, 12, 20)
            torch.testing.assert_close(output(compiled, 12, 20), want, rtol=0, atol=1e-5)
    assert state(model) == before


def test_copies_share_their_weights():
    model = tiny.shallow_unet()
    twin = share_weights(model)
    assert twin is not model
    for part, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert part is other
    assert twin.down_blocks[0].attentions[0] is not model.down_blocks[0].attentions[0]


# Attention backends


def test_backends_on_the_cpu():
    device, dtype = torch.device("cpu"), torch.float32
    assert backends.chosen_kernel(2, 8, device, dtype) == "flash"
    with backends.attention_backend("math"):
        assert backends.chosen_kernel(2, 8, device, dtype) == "math"
    with backends.attention_backend("cudnn"):
        kernel = backends.chosen_kernel(2, 8, device, dtype)
    with pytest.raises(BenchError, match=r"takes flash attention .* and not cudnn"):
        backends.check_kernel("cudnn", kernel, device, dtype)
    assert backends.worth_trying(device) == ("default",)


def test_a_patched_model_computes_the_same_on_a_named_backend():
    model = tiny.shallow_unet()
    with make_method("factor 2", scene_of(model, 12, 20)).apply(model):
        want = output(model, 12, 20)
        for name in ("flash", "math"):
            with backends.attention_backend(name):
                got = output(model, 12, 20)
            torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * want.abs().max().item())


def test_the_fastest_backend_is_the_one_that_works_fastest():
    def seconds(name):
        if name == "cudnn":
            raise RuntimeError("no available kernel")
        return {"default": 2.0, "flash": 1.0}[name]

    assert backends.fastest(("default", "flash", "cudnn"), seconds) == "flash"
    with pytest.raises(BenchError, match="cudnn: no available kernel"):
        backends.fastest(("cudnn",), seconds)


def test_a_call_gives_the_sample_by_position():
    seen = []
    call(lambda *args, **rest: seen.append((args, rest)), {"sample": 1, "timestep": 2})
    assert seen == [((1,), {"timestep": 2})]
