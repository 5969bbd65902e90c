"""A plan that says for every layer what it keeps and when: exact, portable, refused elsewhere."""

from __future__ import annotations

import copy
import json
import math
import pickle
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import reference
import tiny
from older import needs_compiler
from tokendown import (
    ConfigError,
    LayerChoice,
    NothingPatchedError,
    PatchConfig,
    TunedPlan,
    UnsupportedModelError,
    apply_patch,
    is_patched,
    remove_patch,
    summary,
)
from tokendown._errors import LoadError
from tokendown.adapters.families import make_plan
from tokendown.request import Request

SIZE = (10, 14)


def plan_for(model, choose) -> TunedPlan:
    """``choose(index)`` gives the options of the layer at that place."""
    layers = [
        LayerChoice(layer.name, layer.channels, layer.heads, **choose(index))
        for index, layer in enumerate(make_plan(model, None).layers)
    ]
    return TunedPlan(type(model).__name__, tuple(layers), sizes=((28, 20),))


def mixed(index: int) -> dict:
    """Every layer another factor, number of anchors and method; the first stays dense."""
    method = "mean" if index % 3 == 1 else "nearest"
    return {"factor": 1 + index % 4, "anchors": (index * 3) % 5, "method": method}


def wanted(kind, model, plan, size=SIZE):
    """The output of a copy that follows the formula, each layer by its own line of the plan."""
    model = copy.deepcopy(model)
    choices = {layer.name: layer for layer in plan.layers}
    for name, (block, level) in reference.spatial_blocks(model, kind).items():
        choice = choices[f"{name}.attn1"]
        if choice.factor > 1:
            patch = reference.PATCH_SIZES.get(kind, 1)
            grid = tuple(math.ceil(side // patch / level) for side in size)
            processor = reference.Coarse(
                grid, choice.factor, choice.anchors, choice.method == "mean"
            )
            block.attn1.set_processor(processor)
            block.norm1.register_forward_pre_hook(processor.note_norms)
    return tiny.run(model, *size)


@pytest.mark.parametrize("kind", ["sd_unet", "sdxl_unet", "pixart", "svd_unet"])
def test_every_layer_follows_its_own_line(kind):
    model = getattr(tiny, kind)().double()
    plan = plan_for(model, mixed)
    dense, want = tiny.run(model, *SIZE), wanted(kind, model, plan)
    assert (want - dense).abs().max() > 1e-4
    with apply_patch(model, plan):
        got = tiny.run(model, *SIZE)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    assert torch.equal(tiny.run(model, *SIZE), dense)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_a_patched_model_follows_the_plan(duplicate):
    model = tiny.sd_unet().double()
    plan = plan_for(model, mixed)
    want = wanted("sd_unet", model, plan)
    apply_patch(model, plan)
    other = duplicate(model)
    remove_patch(model)
    assert is_patched(other)
    torch.testing.assert_close(tiny.run(other, *SIZE), want, rtol=0, atol=1e-10)


# Windows


class Keys:
    """Notes which layers dropped keys, at every call of the denoiser."""

    def __init__(self, unet) -> None:
        self.calls: list[set[int]] = []
        self.tokens = 0
        unet.register_forward_pre_hook(lambda *_: self.calls.append(set()))
        for index, layer in enumerate(make_plan(unet, None).layers):
            attention = unet.get_submodule(layer.name)
            attention.to_q.register_forward_pre_hook(self._note_queries)
            attention.to_k.register_forward_pre_hook(lambda _, args, i=index: self._note(i, args))

    def _note_queries(self, _, args) -> None:
        self.tokens = args[0].shape[1]

    def _note(self, index, args) -> None:
        if args[0].shape[1] < self.tokens:
            self.calls[-1].add(index)


WINDOWS = [(0.0, 1.0), (0.0, 0.5), (0.25, 0.75), (0.0, 0.5), (0.5, 1.0), (0.75, 1.0), (0.25, 0.75)]


def windows(index: int) -> dict:
    start, stop = WINDOWS[index % len(WINDOWS)]
    return {"factor": 2, "start": start, "stop": stop}


def windows_at(step: int, steps: int) -> set[int]:
    """Which of the ten layers of the tiny U-Net are coarse then."""
    options = [windows(index) for index in range(10)]
    return {i for i, o in enumerate(options) if o["start"] <= step / steps < o["stop"]}


@pytest.mark.parametrize("duplicate", [lambda x: x, copy.deepcopy])
def test_every_layer_has_its_own_window_in_a_pipeline(tmp_path, duplicate):
    pipe = tiny.sd_pipeline(tmp_path)
    apply_patch(pipe, plan_for(pipe.unet, windows))
    copied = duplicate(pipe)
    if copied is not pipe:
        remove_patch(pipe)
    keys = Keys(copied.unet)
    for steps in (8, 4):
        keys.calls.clear()
        tiny.image_of(copied, steps=steps)
        assert keys.calls == [windows_at(step, steps) for step in range(steps)]
    remove_patch(copied)
    keys.calls.clear()
    tiny.image_of(copied, steps=2)
    assert keys.calls == [set(), set()]
    assert not {"step", "set_timesteps"} & set(vars(copied.scheduler))


def test_without_a_scheduler_progress_is_told_or_asked_for():
    model = tiny.sd_unet()
    keys = Keys(model)
    with apply_patch(model, plan_for(model, windows)) as patch:
        with pytest.raises(ConfigError, match="set_progress"):
            tiny.run(model, *SIZE)
        keys.calls.clear()
        for step in range(4):
            patch.set_progress(step, 4)
            tiny.run(model, *SIZE)
    assert keys.calls == [windows_at(step, 4) for step in range(4)]


@needs_compiler
@torch.no_grad()
def test_a_compiled_model_has_one_graph_for_each_state_of_the_windows():
    torch._dynamo.reset()
    model = tiny.shallow_unet().double()
    edges = [{"stop": 0.5}, {"start": 0.25}, {}]
    plan = plan_for(model, lambda index: {"factor": 2, "anchors": 3, **edges[index % 3]})
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    patch = apply_patch(compiled, plan)
    graphs = []
    for step in range(8):
        patch.set_progress(step, 8)
        got = tiny.flatten(compiled(**tiny.inputs(model, *SIZE)))
        torch.testing.assert_close(got, tiny.run(model, *SIZE), rtol=0, atol=1e-10)
        graphs.append(counter.frame_count)
    states = {tuple(s <= step / 8 < e for s, e in ((0, 0.5), (0.25, 1))) for step in range(8)}
    assert graphs[-1] == len(states) == 3
    assert graphs[0] == 1
    torch._dynamo.reset()


# Files


def test_round_trip(tmp_path):
    plan = replace(plan_for(tiny.sd_unet(), mixed), made={"error": 0.01, "prompts": ["a cat"]})
    plan.save(tmp_path / "plan.json")
    assert TunedPlan.load(tmp_path / "plan.json") == plan
    assert TunedPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    request = Request("a cat", config=plan)
    assert Request.from_dict(json.loads(json.dumps(request.to_dict()))) == request


@pytest.mark.parametrize(
    "change",
    [
        {"plan": 2},
        {"model": 3, "layers": 5},
        {"layers": [{"name": "x"}]},
        {"layers": [{"name": "x", "channels": 8, "heads": 1, "factor": 0}]},
        {"layers": [{"name": "x", "channels": 8, "heads": 1, "factor": 2.5}]},
        {"layers": [{"name": "x", "channels": 8, "heads": 1, "start": 0.5, "stop": 0.5}]},
        {"layers": [{"name": "x", "channels": 8, "heads": 1, "stop": "1"}]},
        {"layers": [{"name": "x", "channels": 8, "heads": 1, "rank": 1}]},
        {"layers": [{"name": "x", "channels": 8, "heads": 1, "method": "median"}]},
        {"layers": [{"name": "x", "channels": 8, "heads": 1}] * 2},
        {"sizes": [[512]]},
        {"made": None},
    ],
)
def test_damaged_plans_are_refused(change):
    good = plan_for(tiny.shallow_unet(), mixed).to_dict()
    with pytest.raises(ConfigError):
        TunedPlan.from_dict({**good, **change})


def test_a_plan_from_before_methods_still_loads():
    plan = plan_for(tiny.shallow_unet(), windows)
    record = plan.to_dict()
    for layer in record["layers"]:
        del layer["method"]
    assert TunedPlan.from_dict(record) == plan


def test_files_that_are_no_plans(tmp_path):
    with pytest.raises(LoadError, match="No such file"):
        TunedPlan.load(tmp_path / "none.json")
    for text, error in (("{", LoadError), ("[]", LoadError), ("{}", ConfigError)):
        (tmp_path / "wrong.json").write_text(text)
        with pytest.raises(error):
            TunedPlan.load(tmp_path / "wrong.json")


# Refusals


def test_another_architecture_is_refused_and_left_untouched():
    plan = plan_for(tiny.sd_unet(), mixed)
    for other in (tiny.shallow_unet(), tiny.pixart(), tiny.sd_unet(attention_head_dim=4)):
        with pytest.raises(UnsupportedModelError, match=r"another architecture.*tokendown tune"):
            apply_patch(other, plan)
        assert not is_patched(other)


def test_a_plan_without_an_effect_is_an_error():
    model = tiny.sd_unet()
    with pytest.raises(NothingPatchedError):
        apply_patch(model, plan_for(model, lambda _: {}))


def test_a_plan_and_options_by_name_exclude_each_other():
    model = tiny.sd_unet()
    with pytest.raises(ConfigError, match="got both"):
        apply_patch(model, plan_for(model, mixed), anchors=3)


# Numbers


def test_a_summary_says_where_cells_are_averaged():
    model = tiny.sd_unet()
    plan = plan_for(model, mixed)
    what = summary(model, plan, height=128, width=96)
    averaged = [layer.note == "cell averages" for layer in what.layers if layer.factor > 1]
    assert averaged == [line.method == "mean" for line in plan.layers if line.factor > 1]
    assert True in averaged


def test_summary_of_a_plan():
    model = tiny.sd_unet()
    plan = plan_for(model, windows)
    before = summary(model, plan, height=128, width=96)
    with apply_patch(model, plan):
        after = summary(model, height=128, width=96)
    assert after.patched
    assert before.layers == after.layers
    assert [
        {"factor": layer.factor, "start": layer.start, "stop": layer.stop}
        for layer in before.layers
    ] == [windows(index) for index in range(10)]
    dense = before.step_flops_before
    spent = sum(
        dense
        - sum(
            before.layers[i].flops_before - before.layers[i].flops_after
            for i in windows_at(step, 8)
        )
        for step in range(8)
    )
    assert before.speedup_over(8) == pytest.approx(8 * dense / spent)
    assert 1 < before.speedup_over(8) < before.predicted_speedup
    everywhere = summary(model, PatchConfig(factor=2), height=128, width=96)
    assert everywhere.speedup_over(8) == pytest.approx(everywhere.predicted_speedup)
