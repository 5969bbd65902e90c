"""Measures of dense runs against loops and dense softmax; the run itself stays as it was."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import reference
import tiny
from tokendown import ConfigError, Grid, RunError, UnsupportedModelError, apply_patch
from tokendown.adapters.families import make_plan
from tokendown.analyze import analyze, measures, svg
from tokendown.analyze.analysis import _gather
from tokendown.analyze.measures import Candidate
from tokendown.analyze.probe import LayerProbe, Probe
from tokendown.analyze.report import report, similarity_map
from tokendown.analyze.seen import ClassicCall
from tokendown.attention import vector_norm
from tokendown.request import Request
from tokendown.sequence import Box

CANDIDATES = [
    Candidate(2), Candidate(2, 5), Candidate(3), Candidate(3, 1000),
    Candidate(2, 0, "mean"), Candidate(3, 5, "mean"),
]  # fmt: skip


def random_tokens(grid: Grid, channels: int = 8, batch: int = 2, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, grid.tokens, channels, generator=generator)


# Similarity


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 7), width=st.integers(1, 7))
def test_lowest_similarity_is_that_of_the_loop(height, width):
    grid = Grid(height, width)
    tokens = random_tokens(grid, channels=3)
    got = measures.lowest_similarity(tokens, grid).view(2, height, width)
    for item in range(2):
        for row in range(height):
            for column in range(width):
                near = [
                    tokens[item, r * width + c]
                    for r in range(max(0, row - 1), min(height, row + 2))
                    for c in range(max(0, column - 1), min(width, column + 2))
                ]
                cosines = [
                    float(a @ b / (a.norm() * b.norm()))
                    for i, a in enumerate(near)
                    for b in near[i + 1 :]
                ]
                want = min([1.0, *cosines])
                assert got[item, row, column] == pytest.approx(want, abs=1e-5)


# Attention


def first_attention(seed: int = 0):
    model = tiny.sd_unet(seed)
    return model.down_blocks[1].attentions[0].transformer_blocks[0].attn1


def dense_weights(attention, tokens):
    """[batch, heads, N, N]"""
    query, key = (
        layer(tokens).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for layer in (attention.to_q, attention.to_k)
    )
    logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return logits.softmax(-1)


@pytest.mark.parametrize("count", [10_000, 17])
def test_received_attention_and_entropy_are_those_of_the_dense_softmax(count, monkeypatch):
    monkeypatch.setattr(measures, "_CHUNK", 700)  # two queries at a time
    grid, attention = Grid(9, 11), first_attention()
    tokens = random_tokens(grid, channels=16)
    sample = measures.sample_queries(grid.tokens, count)
    assert len(set(sample.tolist())) == min(count, 99)
    call = ClassicCall(attention, tokens, vector_norm(tokens), grid, count)
    seen = measures.attended(call, [])
    weights = dense_weights(attention, tokens)[:, :, sample]
    torch.testing.assert_close(seen.received, weights.mean((0, 1, 2)), rtol=0, atol=1e-6)
    entropy = -(weights * weights.log()).sum(-1).mean()
    assert seen.entropy == pytest.approx(float(entropy), abs=1e-5)
    assert seen.entropy < math.log(99) - 0.01


def test_errors_are_those_of_masked_dense_attention(monkeypatch):
    monkeypatch.setattr(measures, "_CHUNK", 2000)
    grid, attention = Grid(9, 11), first_attention()
    tokens = random_tokens(grid, channels=16)
    norms = random_tokens(grid, channels=1, seed=1)[..., 0].abs()
    sample = measures.sample_queries(99, 40)
    seen = measures.attended(ClassicCall(attention, tokens, norms, grid, 40), CANDIDATES)

    def output(kept, bias):
        query, key, value = (
            layer(x).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for layer, x in (
                (attention.to_q, tokens[:, sample]),
                (attention.to_k, kept),
                (attention.to_v, kept),
            )
        )
        heads = reference.softmax_attention(query, key, value, bias[:, None, None])
        return attention.to_out[0](heads.transpose(1, 2).flatten(2))

    dense = output(tokens, torch.zeros(2, 99))
    for factor, anchors, method in CANDIDATES:
        if method == "mean":
            means = reference.cell_means(tokens, 9, 11, factor)
            chosen = norms.topk(anchors).indices[..., None].expand(-1, -1, 16)
            kept = torch.cat([means, tokens.gather(1, chosen)], 1)
            bias = torch.zeros(2, kept.shape[1])
            bias[:, : means.shape[1]] = 2 * math.log(factor)
        else:
            kept = tokens
            cells = reference.cells((1, 9, 11), factor)
            bias = reference.with_anchors(norms, cells, factor**2, anchors).float()
        want = (output(kept, bias) - dense).square().sum() / dense.square().sum()
        assert seen.errors[factor, anchors, method] == pytest.approx(float(want), rel=1e-3)
        assert want > 1e-4


def test_errors_where_heads_share_keys_are_those_of_the_patched_layer():
    model, grid = tiny.dreamlite_unet(), Grid(9, 11)
    attention = model.down_blocks[1].attentions[0].transformer_blocks[0].attn1
    tokens = random_tokens(grid, channels=16)
    seen = measures.attended(
        ClassicCall(attention, tokens, vector_norm(tokens), grid, 99), [Candidate(2)]
    )
    dense = attention(tokens)
    with apply_patch(model, factor=2, anchors=0) as patch:
        for layer in patch._plans[0].layers:
            layer.height, layer.width = 9, 11
        want = (attention(tokens) - dense).square().sum() / dense.square().sum()
    assert seen.errors[Candidate(2)] == pytest.approx(float(want), rel=1e-3)
    assert want > 1e-4


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


def test_no_matrix_of_all_pairs_is_made(monkeypatch):
    monkeypatch.setattr(measures, "_CHUNK", 2**17)
    grid, attention = Grid(48, 50), first_attention()
    tokens = random_tokens(grid, channels=16, batch=1)
    with Largest() as largest:
        call = ClassicCall(attention, tokens, vector_norm(tokens), grid, grid.tokens)
        measures.attended(call, [Candidate(2, 32)])
        measures.lowest_similarity(tokens, grid)
    assert largest.numbers <= 2**17


def test_where_the_sinks_are():
    received = torch.full((120,), 0.5 / 88)
    top = list(range(88, 120))  # the last 32: rows 7 (from column 4) to 9
    received[top] = 0.5 / 32
    scores = torch.zeros(120)
    scores[top[:16]] = 1.0
    found = measures.sink_measures(received, scores, Box(1, 10, 12))
    assert found["top_mass"] == pytest.approx(0.5)
    assert found["largest"] == pytest.approx(0.5 / 32 * 120)
    border = [i for i in top if i // 12 >= 8 or i % 12 >= 10]
    assert found["border"] == pytest.approx(len(border) / 32)
    on_grid = [i for i in top if i // 12 % 2 == 0 and i % 2 == 0]
    assert found["on_grid"] == pytest.approx(len(on_grid) / 32)
    assert found["found"] >= len({*top[:16], *on_grid}) / 32
    assert sorted(measures.top_tokens(received).tolist()) == top
    assert measures.overlap(torch.tensor([1, 2, 3, 4]), torch.tensor([3, 4, 9])) == 0.5


# A run


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return tiny.sd_pipeline(tmp_path_factory.mktemp("tokenizer"))


REQUEST = Request(width=56, height=40, steps=3, guidance=5.0, seed=4, config=None, device="cpu",
                  dtype="float32")  # fmt: skip


@pytest.fixture(scope="module")
def analysis(pipe):
    return analyze(pipe, REQUEST, ["a cat", "a dog"], factors=(2, 3), anchors=(0, 8))


def hooks(pipe) -> int:
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_hooks)
        for module in pipe.unet.modules()
    )


def test_a_run_changes_nothing_and_leaves_no_trace(pipe):
    dense = tiny.image_of(pipe)
    with Probe(pipe.unet, CANDIDATES, 16) as probe:
        assert hooks(pipe) > 0
        assert torch.equal(tiny.image_of(pipe), dense)
    assert hooks(pipe) == 0
    assert all(len(layer.calls) == 2 for layer in probe.layers)


def test_an_analysis_has_every_layer_in_the_order_in_which_they_run(pipe, analysis):
    stages = [layer.name.split(".")[0] for layer in analysis.layers]
    assert stages == sorted(stages, key=["down_blocks", "mid_block", "up_blocks"].index)
    here = {layer.name for layer in make_plan(pipe.unet, None).layers}
    assert {layer.name for layer in analysis.layers} == here
    assert [layer.grid for layer in analysis.layers if layer.downsample == 1] == [(20, 28)] * 3
    assert len(analysis.timesteps) == 3
    assert list(analysis.timesteps) == sorted(analysis.timesteps, reverse=True)
    for layer in analysis.layers:
        lengths = {name: len(values) for name, values in layer.measures.items()}
        assert lengths.pop("stay") == 2  # the first step has none before it
        assert set(lengths.values()) == {3}
        assert all(-1 <= value <= 1 for value in layer.measures["similarity"])
        tokens = layer.grid[0] * layer.grid[1]
        assert all(1 <= value <= tokens * 1.001 for value in layer.measures["effective_keys"])
        assert (Candidate(2, 8) in layer.errors) == (Grid(*layer.grid).coarse(2).tokens >= 16)


@pytest.mark.parametrize("each", [1, 2])
def test_sinks_stay_where_they_were_at_the_same_call_of_the_step_before(each):
    """Constructed: the second call of a step looks elsewhere, and all change in the third step."""
    probe = LayerProbe(SimpleNamespace(name="a", downsample=1, channels=8, heads=1, head_dim=8),
                       None, [], 1, [])  # fmt: skip
    probe.box = Box(1, 16, 16)
    for step in range(3):
        for call in range(each):
            received = torch.zeros(256)
            begin = 64 * call + (128 if step == 2 else 0)
            received[begin : begin + 32] = 1 / 32
            probe.received.append(received)
            probe.calls.append({"entropy": 0.0})
            probe.errors.append({})
    assert _gather([probe], each).measures["stay"] == [1.0, 0.0]


def test_a_single_step_has_no_step_before(pipe):
    once = analyze(pipe, replace(REQUEST, steps=1), ["a cat"], factors=(2,), anchors=(0,))
    assert all("stay" not in layer.measures for layer in once.layers)
    assert "<th>stay</th>" not in report(once)
    json.dumps(once.to_dict(), allow_nan=False)


@pytest.mark.parametrize("kind", ["sd_unet", "plain_unet", "kandinsky3"])
def test_the_error_of_a_layer_is_that_of_the_patched_module(kind):
    """The first layer has the same input in a dense and in a patched run."""
    unet, size, outputs = getattr(tiny, kind)(), (24, 32), []
    with Probe(unet, [Candidate(2, 5)], 10_000) as probe:
        tiny.run(unet, *size)

    def note(attention, args, output) -> None:
        output = output * attention.rescale_output_factor
        outputs.append(output - args[0] if attention.residual_connection else output)

    handle = unet.get_submodule(probe.layers[0].layer.name).register_forward_hook(note)
    tiny.run(unet, *size)
    with apply_patch(unet, factor=2, anchors=5):
        tiny.run(unet, *size)
    handle.remove()
    dense, patched = outputs
    want = (patched - dense).square().sum() / dense.square().sum()
    assert probe.layers[0].errors[0][Candidate(2, 5)] == pytest.approx(float(want), rel=1e-3)


def test_errors_of_a_part_of_the_schedule(analysis):
    layer = analysis.layers[0]
    calls = layer.errors[Candidate(2)]
    assert layer.error(Candidate(2)) == pytest.approx(sum(calls) / 3)
    assert layer.error(Candidate(2), 0.5, 1.0) == calls[2]
    assert layer.error(measures.DENSE) == 0.0


def test_a_layer_that_is_not_a_number_is_named_at_once(tmp_path):
    broken = tiny.sd_pipeline(tmp_path)
    name = "mid_block.attentions.0.transformer_blocks.0.attn1"
    weight = broken.unet.get_submodule(name).to_k.weight
    with torch.no_grad():
        weight[0, 0] = float("nan")
    with pytest.raises(RunError, match=rf"layer {name}: .* as float32 .* --dtype bfloat16"):
        analyze(broken, REQUEST, ["a cat"], factors=(2,), anchors=(0,))
    assert hooks(broken) == 0


def test_as_json(analysis):
    record = json.loads(json.dumps(analysis.to_dict(), allow_nan=False))
    assert (record["analysis"], record["prompts"]) == (1, list(analysis.prompts))
    for entry, layer in zip(record["layers"], analysis.layers, strict=True):
        assert (entry["name"], tuple(entry["grid"])) == (layer.name, layer.grid)
        assert entry["errors"] == {str(which): each for which, each in layer.errors.items()}
        assert entry["measures"] == layer.measures
    assert "2/0" in record["layers"][0]["errors"]


def test_refusals(pipe):
    with pytest.raises(ConfigError, match="a prompt"):
        analyze(pipe, REQUEST, [])
    with apply_patch(pipe, factor=2), pytest.raises(ConfigError, match="remove_patch"):
        analyze(pipe, REQUEST, ["a cat"])
    with pytest.raises(UnsupportedModelError):
        Probe(
            tiny.sd_unet(
                down_block_types=("DownBlock2D",) * 4,
                up_block_types=("UpBlock2D",) * 4,
                mid_block_type="UNetMidBlock2D",
            ),
            [Candidate(2)],
            8,
        )


# The page


class Strict(HTMLParser):
    """Every tag is closed in order."""

    open_tags: tuple[str, ...] = ()
    seen: frozenset[str] = frozenset()

    def handle_starttag(self, tag, attributes):
        self.seen |= {tag}
        if tag not in ("meta", "!doctype"):
            self.open_tags += (tag,)
        for name, value in attributes:
            assert name not in ("src", "href")
            assert name == "xmlns" or "://" not in (value or "")

    def handle_startendtag(self, tag, attributes):
        self.seen |= {tag}

    def handle_endtag(self, tag):
        assert self.open_tags[-1] == tag
        self.open_tags = self.open_tags[:-1]


def assert_self_contained(page: str) -> None:
    parser = Strict()
    parser.feed(page)
    assert parser.open_tags == ()
    assert "svg" in parser.seen
    assert not {"script", "link", "img", "iframe"} & parser.seen


def test_the_page_is_self_contained(analysis):
    page = report(analysis)
    assert_self_contained(page)
    for layer in analysis.layers:
        assert f"{layer.grid[0]}x{layer.grid[1]}" in page
    ElementTree.fromstring(similarity_map(analysis))


def test_plots_are_well_formed_with_odd_names_and_values():
    name = 'a <b> & "c"'
    for plot in (
        svg.heat_map({name: [0.0, float("nan")]}, ["1", "2"], label=name, unit=name, log=True),
        svg.heat_map({name: [1.0]}, ["1"], label=name, unit=name),
        svg.lines({name: [(0, 1e-3), (1, 0.0)]}, label=name, names=(name, name), log=True),
        svg.lines({name: [(0, 1.0), (1, 1.0)]}, label=name, names=(name, name)),
        svg.points({name: [(1.5, 0.1, name)]}, label=name, names=(name, name), curve=[(1, 0.1)]),
        svg.tiles([[1.0, 0.5], [2.0, 3.0]], label=name),
    ):
        root = ElementTree.fromstring(plot)
        assert any(name in (text or "") for text in root.itertext()) or root.get("aria-label")
    assert svg.colour(0.0) != svg.colour(1.0)
