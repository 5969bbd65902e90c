"""What an analysis sees of joint attention: the patched layer's error, the written-out softmax."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch

import joint_reference
import tiny
import tiny_pipelines
import tiny_transformers
from joint_reference import Want
from test_analyze import REQUEST, assert_self_contained
from test_joint import built, run, shapes
from test_joint_remove import traces
from tokendown import ConfigError, Grid, UnsupportedModelError, apply_patch
from tokendown.adapters.families import make_plan
from tokendown.analyze import analyze
from tokendown.analyze.measures import Candidate
from tokendown.analyze.probe import Probe
from tokendown.analyze.report import report
from tokendown.tune import Target, tune
from tokendown.tune.effects import Uniform, plan_of

SIZE = (11, 13)
CANDIDATES = [Candidate(2), Candidate(2, 5), Candidate(3, 4)]
EVERY = 10_000  # queries
# text apart and joined, image alone, frames, a mask over queries, fewer heads of keys, norms of
# [tokens, batch], text that has keys alone
KINDS = [
    "flux", "sd35", "wan", "chroma", "lumina2", "hunyuan_video_15", "kandinsky5", "ernie_image",
    "prx",
]  # fmt: skip


def probe_of(kind: str, queries: int = EVERY) -> Probe:
    with Probe(built(kind), CANDIDATES, queries) as probe:
        run(kind, built(kind), SIZE)
    return probe


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_a_layer_is_that_of_the_patched_module(kind):
    """The first layer has the same input in a dense and in a patched run."""
    model = built(kind)
    first = probe_of(kind).layers[0]
    outputs = []
    handle = model.get_submodule(first.layer.name).register_forward_hook(
        lambda _, __, output: outputs.append(tiny.flatten(output))
    )
    run(kind, model, SIZE)
    for candidate in CANDIDATES:
        with apply_patch(model, factor=candidate.factor, anchors=candidate.anchors):
            run(kind, model, SIZE)
    handle.remove()
    dense, *patched = outputs
    for candidate, output in zip(CANDIDATES, patched, strict=True):
        want = float((output - dense).square().sum() / dense.square().sum())
        assert want > 1e-4
        assert first.errors[0][candidate] == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize(
    "kind", ["flux", "sd35", "hunyuan_video", "lumina2", "hunyuan_video_15", "prx", "mochi"]
)
def test_what_goes_to_text_is_that_of_the_written_out_softmax(kind):
    model = copy.deepcopy(built(kind))
    processors = joint_reference.coarsen(model, kind, Want(shapes(kind, SIZE), factor=1))
    run(kind, model, SIZE)
    probes = {probe.layer.name: probe for probe in probe_of(kind).layers}
    names = [layer.name for layer in make_plan(built(kind), None).layers]
    for name, processor in zip(names, processors, strict=True):
        text = processor.to_text
        if text.any():
            assert probes[name].calls[0]["text"] == pytest.approx(float(text.mean()), abs=1e-6)
            received = float(probes[name].received[0].sum())
            assert received == pytest.approx(1 - float(text.mean()), abs=1e-6)
        else:
            assert "text" not in probes[name].calls[0]


@pytest.mark.parametrize("missing", [0, 2])
def test_attention_of_one_sample_after_another(missing):
    """Mochi: text that a sample lacks has no key, and what it asks is looked at in no sample."""
    model, arguments = built("mochi"), tiny_transformers.inputs("mochi", built("mochi"), *SIZE)
    mask = arguments["encoder_attention_mask"].fill_(1)
    mask[0, mask.shape[1] - missing :] = 0
    with Probe(model, CANDIDATES, EVERY) as probe, torch.no_grad():
        model(**arguments)
    outputs = []
    attention = model.get_submodule(probe.layers[0].layer.name)
    handle = attention.register_forward_hook(lambda _, __, output: outputs.append(output))
    with torch.no_grad():
        model(**arguments)
        for candidate in CANDIDATES:
            with apply_patch(model, factor=candidate.factor, anchors=candidate.anchors):
                model(**arguments)
    handle.remove()
    dense, *patched = (
        torch.cat([image.flatten(), text[:, : mask.shape[1] - missing].flatten()])
        for image, text in outputs
    )
    for candidate, output in zip(CANDIDATES, patched, strict=True):
        want = float((output - dense).square().sum() / dense.square().sum())
        assert probe.layers[0].errors[0][candidate] == pytest.approx(want, rel=1e-6)


def test_a_sample_of_queries_looks_at_text_as_densely():
    tokens = SIZE[0] * SIZE[1]
    probe = probe_of("flux", tokens // 2).layers[0]
    want = probe_of("flux").layers[0].errors[0]
    assert probe.keys == tokens + 5
    for candidate in CANDIDATES:
        assert probe.errors[0][candidate] == pytest.approx(want[candidate], rel=0.5)
        assert probe.errors[0][candidate] != want[candidate]


@pytest.mark.parametrize("kind", [*KINDS, "mochi"])
def test_looking_on_changes_nothing_and_leaves_no_trace(kind):
    model = getattr(tiny_transformers, kind)()
    before, dense = traces(model), run(kind, model, SIZE)
    with Probe(model, CANDIDATES, 20) as probe:
        assert torch.equal(run(kind, model, SIZE), dense)
        assert torch.equal(run(kind, model, SIZE), dense)
    assert all(len(layer.calls) == 2 for layer in probe.layers)
    assert len(probe.layers) == len(make_plan(model, None).layers)
    assert traces(model) == before
    arguments = tiny_transformers.inputs(kind, model, *SIZE)
    name = "text_bth" if kind == "ernie_image" else "encoder_hidden_states"
    text = arguments[name]
    arguments[name] = text.new_zeros(*text.shape[:-1], 3)  # a wrong width
    with pytest.raises(RuntimeError), Probe(model, CANDIDATES, 20):
        model(**arguments)
    assert traces(model) == before
    assert torch.equal(run(kind, model, SIZE), dense)


def test_frames_are_looked_at_one_by_one():
    probe = probe_of("wan").layers[0]
    assert probe.box.frames == tiny_transformers.FRAMES
    assert probe.box.grid == Grid(*SIZE)
    assert len(probe.received[0]) == tiny_transformers.FRAMES * SIZE[0] * SIZE[1]


def test_a_processor_out_of_reach_is_named_before_anything_is_attached():
    class Strange:
        def __call__(self, attn, hidden_states, **kwargs):
            return hidden_states

    model = tiny_transformers.flux()
    model.transformer_blocks[0].attn.processor = Strange()
    before = traces(model)
    with pytest.raises(UnsupportedModelError, match="Strange"):
        Probe(model, CANDIDATES, 8)
    assert traces(model) == before


# Pipelines


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    pipe = tiny_pipelines.flux(tmp_path_factory.mktemp("tokenizer"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_an_analysis_and_a_plan_of_flux(flux):
    tiny.image_of(flux)  # a pipeline leaves traces of its own
    before = traces(flux.transformer)
    tuning = tune(
        flux, replace(REQUEST, steps=2), ["a cat"], ["a dog"], Target(like="auto"),
        factors=(2,), anchors=(0, 8), parts=1,
    )  # fmt: skip
    analysis = tuning.analysis
    assert [layer.grid for layer in analysis.layers] == [(10, 14)] * 2
    assert {x.method for layer in analysis.layers for x in layer.errors} == {"nearest"}
    for layer in analysis.layers:
        assert layer.keys == 140 + 512
        assert all(0 < share < 1 for share in layer.measures["text"])
    assert json.dumps(analysis.to_dict(), allow_nan=False)
    page = report(analysis)
    assert_self_contained(page)
    assert "What goes to text" in page
    by_name = {entry.name: entry for entry in tuning.entries}
    auto = next(entry for name, entry in by_name.items() if name.startswith("auto"))
    assert by_name["tuned"].speedup >= auto.speedup * (1 - 1e-6)
    promised = tuning.plan.made["predicted_speedup"]
    assert by_name["tuned"].speedup == pytest.approx(promised, rel=1e-3)
    with apply_patch(flux, tuning.plan):
        tiny.image_of(flux)
    assert traces(flux.transformer) == before


def test_two_calls_a_step_are_one_step(tmp_path):
    pipe = tiny_pipelines.wan(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    request = replace(REQUEST, width=96, height=80, frames=5)
    analysis = analyze(pipe, request, ["a cat"], factors=(2,), anchors=(0,))
    assert len(analysis.timesteps) == request.steps
    [layer] = analysis.layers
    assert layer.keys == 2 * layer.grid[0] * layer.grid[1]
    assert all(len(values) == request.steps for values in layer.errors.values())


def test_cell_means_are_refused_where_positions_are_rotated(flux):
    analysis = analyze(flux, REQUEST, ["a cat"], factors=(2,), anchors=(0,))
    layer = analysis.layers[0]
    layer.errors[Candidate(2, 0, "mean")] = layer.errors[Candidate(2)]  # by hand
    plan = plan_of(analysis, Uniform(Candidate(2, 0, "mean"), layer.name))
    with pytest.raises(ConfigError, match="rotary"), apply_patch(flux, plan):
        pass
