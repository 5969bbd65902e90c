"""The knapsack against brute force, and a plan from beginning to end on a tiny pipeline."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

import tiny
from test_analyze import REQUEST, assert_self_contained, hooks
from test_cli import pixels, run, run_for_error
from tokendown import ConfigError, PatchConfig, RunError, TunedPlan, apply_patch, summary
from tokendown.analyze import Analysis, LayerAnalysis
from tokendown.analyze.measures import DENSE, Candidate
from tokendown.analyze.prompts import PROMPTS, pick_prompts
from tokendown.methods import parse_method
from tokendown.models.loading import fingerprint
from tokendown.sampling import Picture
from tokendown.tune import Target, tune
from tokendown.tune import tuning as tuning_module
from tokendown.tune.contest import Contest, readings, uniform
from tokendown.tune.costs import Costs, measured
from tokendown.tune.effects import (
    Calls,
    Uniform,
    measure_gains,
    middle_calls,
    parts_of,
    picture_error,
    plan_of,
)
from tokendown.tune.knapsack import best_tradeoffs
from tokendown.tune.menu import Menu, build_menu, choose
from tokendown.tune.report import pareto_plot, report, to_dict
from tokendown.tune.rivals import tome_speedup
from tokendown.tune.tuning import better_on, dominated
from tokendown.tune.validate import Entry, _entry
from tokendown.tuned import LayerChoice

ROOT = Path(__file__).parents[1]

# The knapsack

OPTION = st.tuples(st.integers(0, 12), st.integers(0, 12).map(float))
LAYERS = st.lists(st.lists(OPTION, min_size=1, max_size=5), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(layers=LAYERS)
def test_the_front_is_that_of_brute_force(layers):
    costs = [[cost for cost, _ in layer] for layer in layers]
    errors = [[error for _, error in layer] for layer in layers]
    front = best_tradeoffs(costs, errors)
    sums = {
        (sum(o[0] for o in pick), sum(o[1] for o in pick)) for pick in itertools.product(*layers)
    }
    best = sorted(
        s for s in sums if not any(o != s and o[0] <= s[0] and o[1] <= s[1] for o in sums)
    )
    assert list(zip(front.costs.tolist(), front.errors.tolist(), strict=True)) == best
    for index, (cost, error) in enumerate(best):
        picked = front.choices(index)
        assert sum(c[i] for c, i in zip(costs, picked, strict=True)) == cost
        assert sum(e[i] for e, i in zip(errors, picked, strict=True)) == error


@settings(max_examples=100, deadline=None)
@given(layers=LAYERS, bound=st.integers(-1, 40))
def test_bounds_are_kept(layers, bound):
    costs = [[cost for cost, _ in layer] for layer in layers]
    errors = [[error for _, error in layer] for layer in layers]
    front = best_tradeoffs(costs, errors)
    sums = [
        (sum(o[0] for o in pick), sum(o[1] for o in pick)) for pick in itertools.product(*layers)
    ]
    index = front.within_cost(bound)
    affordable = [error for cost, error in sums if cost <= bound]
    assert (index is None) == (not affordable)
    if index is not None:
        assert front.errors[index] == min(affordable)
    index = front.within_error(bound)
    good = [cost for cost, error in sums if error <= bound]
    assert (index is None) == (not good)
    if index is not None:
        assert front.costs[index] == min(good)


def menu(costs, errors, fixed=10.0) -> Menu:
    options = [
        [LayerChoice(f"layer{i}", 8, 1, 1 + j) for j in range(len(row))]
        for i, row in enumerate(costs)
    ]
    return Menu(options, costs, errors, fixed, "FLOPs")


@settings(max_examples=60, deadline=None)
@given(
    layers=st.lists(
        st.lists(st.tuples(st.floats(0.1, 5), st.floats(0.01, 1)), min_size=1, max_size=3),
        min_size=1,
        max_size=4,
    ),
    part=st.floats(0.05, 0.99),
)
def test_a_choice_is_within_its_bound_and_as_good_as_rounding_allows(layers, part):
    costs = [[5.0, *(c for c, _ in layer)] for layer in layers]
    errors = [[0.0, *(e for _, e in layer)] for layer in layers]
    table = menu(costs, errors)
    every = list(itertools.product(*(range(len(row)) for row in costs)))
    limit = table.dense * part
    try:
        picked = choose(table, table.front(), limit, None)
    except ConfigError:
        assert all(table.cost(pick) > limit * 0.999 for pick in every)
        return
    assert table.cost(picked) <= limit * (1 + 1e-6)
    least = min(
        (table.error(pick) for pick in every if table.cost(pick) <= limit * 0.999), default=9e9
    )
    assert table.error(picked) <= least + 1e-9


# The contest


class Additive(Contest):
    """Pictures whose error is the sum of constructed errors of layers."""

    def error(self, choices):
        return self.truth.error(choices)


OPTIONS = st.lists(st.tuples(st.floats(0.1, 4.9), st.floats(0.0, 1)), min_size=2, max_size=5)


@settings(max_examples=150, deadline=None)
@given(
    layers=st.lists(OPTIONS, min_size=1, max_size=4),
    rival=st.lists(st.integers(0, 9), min_size=4, max_size=4),
    noise=st.lists(st.floats(0.2, 5), min_size=4, max_size=4),
    exact=st.booleans(),
)
def test_a_plan_that_dominates_a_preset_is_found_wherever_there_is_one(layers, rival, noise, exact):
    """And where the measured errors are wrong, the preset itself stays in the contest."""
    costs = [[5.0, *(cost for cost, _ in layer)] for layer in layers]
    errors = [[0.0, *(error for _, error in layer)] for layer in layers]
    truth = menu(costs, errors)
    seen = truth if exact else menu(
        costs, [[error * by for error in row] for row, by in zip(errors, noise, strict=False)]
    )  # fmt: skip
    preset = tuple(pick % len(row) for pick, row in zip(rival, costs, strict=False))
    assume(any(preset))
    contest = Additive(None, readings(seen, seen), None, [preset], [], lambda: None)
    contest.truth = truth
    try:
        picked = contest.settle(truth.cost(preset), None)
    except ConfigError:
        picked = (0,) * len(layers)  # dense is the best within the bound
    assert truth.cost(picked) <= truth.cost(preset) * (1 + 1e-8)
    assert truth.error(picked) <= truth.error(preset)
    affordable = [
        truth.error(pick)
        for pick in itertools.product(*(range(len(row)) for row in costs))
        if truth.cost(pick) <= truth.cost(preset)
    ]
    if exact:
        assert truth.error(picked) <= min(affordable) + 1e-12


def test_a_sole_candidate_for_an_error_is_measured():
    table = menu([[5.0, 4.0]], [[0.0, 0.01]])
    asked = []

    class Noted(Contest):
        def error(self, choices):
            asked.append(choices)
            return 0.5

    assert Noted(None, [table], None, [], [], lambda: None).settle(None, 0.1) == (1,)
    assert set(asked) == {(1,)}


def test_a_coarser_grid_with_anchors_beats_the_preset_at_its_cost():
    """Constructed: anchors take most of the error away, and one layer bears anything."""
    sensitive = {Candidate(2): 0.1, Candidate(3, 32): 0.02, Candidate(2, 8): 0.01}
    idle = {Candidate(2): 1e-6, Candidate(4, 8): 2e-6, Candidate(2, 0, "mean"): 1e-7}
    made = constructed({"a": sensitive, "b": idle})
    keys = {DENSE: 4096, Candidate(2): 1024, Candidate(2, 0, "mean"): 1024,
            Candidate(2, 8): 1032, Candidate(3, 32): 516, Candidate(4, 8): 264}  # fmt: skip
    prices = Costs("FLOPs", 10_000.0, dict.fromkeys("ab", keys))
    table = build_menu(made, prices, {"a": [1.0] * 2, "b": [1.0] * 2}, [1.0] * 2)
    paper = tuple(table.find({"a": Candidate(2), "b": Candidate(2)}))
    contest = Additive(None, readings(table, table), None, [paper], [], lambda: None)
    contest.truth = table
    picked = contest.settle(table.cost(paper), None)
    lines = [options[i] for options, i in zip(table.options, picked, strict=True)]
    assert [(x.factor, x.anchors) for x in lines] == [(2, 8), (4, 8)]
    assert table.cost(picked) < table.cost(paper)
    assert table.error(picked) < table.error(paper) / 5


def test_the_best_choice_that_treats_all_layers_alike():
    errors = {Candidate(2): 0.2, Candidate(2, 0, "mean"): 0.1, Candidate(3, 8): 0.3}
    made = constructed({"a": errors, "b": {key: 2 * error for key, error in errors.items()}})
    keys = {DENSE: 100, Candidate(2): 25, Candidate(2, 0, "mean"): 25, Candidate(3, 8): 20}
    prices = Costs("FLOPs", 1000.0, dict.fromkeys("ab", keys))
    table = build_menu(made, prices, {"a": [1.0], "b": [1.0]}, [1.0])

    def lines(limit, error):
        [picked] = uniform(table, limit, error)
        options = [options[i] for options, i in zip(table.options, picked, strict=True)]
        assert all((x.start, x.stop) == (0.0, 1.0) for x in options)
        return {(x.factor, x.anchors, x.method) for x in options}

    paper = table.cost(table.find({"a": Candidate(2), "b": Candidate(2)}))
    assert lines(paper, None) == {(2, 0, "mean")}
    assert lines(paper - 1, None) == {(3, 8, "jitter")}
    assert lines(None, 1.0) == {(3, 8, "jitter")}
    assert uniform(table, 1.0, None) == uniform(table, None, 1e-9) == []


def constructed(errors: dict[str, dict[Candidate, float]]) -> Analysis:
    """Layers of 64 x 64 tokens in a schedule of two steps, the same error at both."""
    layers = [
        LayerAnalysis(
            name, (64, 64), 1, 8, 1, 8, 4096,
            errors={candidate: [error, error] for candidate, error in of.items()},
        )
        for name, of in errors.items()
    ]  # fmt: skip
    return Analysis("Model", {"width": 256, "height": 256}, ("a cat",), (9.0, 1.0), tuple(layers))


def test_impossible_bounds_say_so():
    table = menu([[5.0, 4.0]], [[0.0, 1.0]])
    with pytest.raises(ConfigError, match=r"the fastest has a predicted speed-up of 1\.07"):
        choose(table, table.front(), 9.0, None)
    with pytest.raises(ConfigError, match="dense model"):
        choose(table, table.front(), None, 0.5)


@pytest.mark.parametrize(
    "wrong", [{}, {"error": 0.1, "speedup": 2.0}, {"error": 0.0}, {"speedup": 1.0}, {"like": "x"}]
)
def test_targets(wrong):
    with pytest.raises(ConfigError):
        Target(**wrong)


# From beginning to end


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return tiny.sd_pipeline(tmp_path_factory.mktemp("tokenizer"), unet=tiny.shallow_unet())


@pytest.fixture(scope="module")
def tuning(pipe):
    return tune(
        pipe, REQUEST, ["a cat"], ["a dog"], Target(like="auto"),
        factors=(2, 3), anchors=(0, 8), parts=3,
    )  # fmt: skip


def test_what_was_promised_is_what_the_summary_says(pipe, tuning):
    """FLOPs of the knapsack against those of the patched model, windows and all."""
    what = summary(pipe, tuning.plan, height=REQUEST.height, width=REQUEST.width)
    promised = tuning.plan.made["predicted_speedup"]
    assert what.speedup_over(3) == pytest.approx(promised, rel=1e-3)
    assert tuning.entries[0].name == "dense"
    assert tuning.entries[0].error == 0.0
    by_name = {entry.name: entry for entry in tuning.entries}
    auto, paper = by_name["auto's way, factor 2"], by_name["paper's way, factor 2"]
    assert by_name["tuned"].speedup >= auto.speedup * (1 - 1e-6)
    cheap = by_name.get("tuned, cost of paper", by_name["tuned"])
    assert cheap.speedup >= paper.speedup * (1 - 1e-6)
    assert {"tomesd 0.75", "tomesd 0.5"} <= set(by_name)


def test_no_preset_of_its_cost_does_better_on_the_prompts_that_it_was_chosen_on(pipe, tuning):
    dense = picture(pipe, "a cat", seed=4)

    def error(config):
        with apply_patch(pipe, config):
            other = picture(pipe, "a cat", seed=4)
        return float((other - dense).square().mean() / dense.var(correction=0))

    tuned = error(tuning.plan)
    assert tuned == pytest.approx(tuning.plan.made["error_on_prompts"], rel=1e-3)
    for preset in (PatchConfig(factor=2), PatchConfig(factor=2, anchors=0)):
        assert tuned <= error(preset) * 1.001


def picture(pipe, prompt: str, seed: int) -> torch.Tensor:
    """The latents of what REQUEST asks for, straight from the pipeline."""
    return pipe(
        prompt, height=40, width=56, num_inference_steps=3, guidance_scale=5.0,
        output_type="latent",
        generator=torch.Generator().manual_seed(seed),
    ).images.double()  # fmt: skip


def test_held_out_errors_are_those_of_the_pictures(pipe, tuning):
    dense = picture(pipe, "a dog", seed=5)
    for name, config in (("tuned", tuning.plan), ("auto's way, factor 2", PatchConfig(factor=2))):
        with apply_patch(pipe, config):
            other = picture(pipe, "a dog", seed=5)
        want = (other - dense).square().mean() / dense.var(correction=0)
        [entry] = [entry for entry in tuning.entries if entry.name == name]
        assert entry.error == pytest.approx(float(want), rel=1e-3)


def test_gains_are_measured_on_the_denoiser(pipe, tuning):
    """Once more by hand: one layer coarse in a call of the dense run."""
    layer = tuning.analysis.layers[0]
    inputs = []
    handle = pipe.unet.register_forward_pre_hook(
        lambda _, args, kwargs: inputs.append((args, kwargs)), with_kwargs=True
    )
    picture(pipe, "a cat", seed=4)
    handle.remove()
    plan = plan_of(tuning.analysis, Uniform(Candidate(2, 32), layer.name))
    for part, (args, kwargs) in enumerate(inputs):
        with torch.no_grad():
            dense = pipe.unet(*args, **kwargs)[0]
            with apply_patch(pipe.unet, plan):
                coarse = pipe.unet(*args, **kwargs)[0]
        error = float((coarse - dense).square().sum() / dense.square().sum())
        assert error > 0
        want = error / layer.errors[Candidate(2, 32)][part]
        assert tuning.gains[layer.name][part] == pytest.approx(want, rel=0.01)


def test_a_tuned_plan_works_and_travels(pipe, tuning, tmp_path):
    tuning.plan.save(tmp_path / "plan.json")
    plan = TunedPlan.load(tmp_path / "plan.json")
    assert plan == tuning.plan
    assert plan.sizes == ((56, 40),)
    dense = picture(pipe, "a cat", seed=0)
    with apply_patch(pipe, plan):
        assert not torch.equal(picture(pipe, "a cat", seed=0), dense)
    assert torch.equal(picture(pipe, "a cat", seed=0), dense)
    assert hooks(pipe) == 0


def test_what_a_plan_dominates():
    def entry(name, speedup, error):
        return Entry(name, speedup, error, (error,), None, 1.0, 1.0)

    tuned = entry("tuned", 1.5, 0.01)
    others = [
        entry("dense", 1.0, 0.0), entry("paper", 1.5, 0.011), entry("auto", 1.6, 0.5),
        entry("tomesd 0.5", 1.2, 0.02), entry("equal", 1.5, 0.01), entry("tuned, cost of x", 1, 1),
    ]  # fmt: skip
    assert dominated([*others, tuned]) == ["paper", "tomesd 0.5"]


def test_on_how_many_prompts_a_plan_is_better():
    """Those of the committed record: less error than paper in the mean, on one of two prompts."""
    record = json.loads((ROOT / "paper/results/tune-512.json").read_text())
    entries = [Entry(**{**entry, "errors": tuple(entry["errors"])}) for entry in record["entries"]]
    assert better_on(entries)["paper"] == 1
    assert "paper" in dominated(entries)
    assert not {"dense", "tuned", "tuned, cost of auto"} & better_on(entries).keys()


def test_the_page(tuning):
    assert_self_contained(report(tuning))
    record = json.loads(json.dumps(to_dict(tuning), allow_nan=False))
    assert [entry["name"] for entry in record["entries"]] == [e.name for e in tuning.entries]
    assert "paper" in pareto_plot(tuning)
    assert "Of 1 held-out prompts it has less error than paper" in report(tuning)
    worse = replace(tuning, notes=["<b>"])
    assert "<b>" not in report(worse)


def test_measured_seconds(pipe, tuning):
    calls = Calls(pipe.unet)
    picture(pipe, "a cat", seed=0)
    calls.release()
    calls.keep([0])
    costs = measured(tuning.analysis, calls)
    assert costs.unit == "seconds"
    for layer in tuning.analysis.layers:
        assert set(costs.layers[layer.name]) == {DENSE, *layer.errors}
        assert all(0 < seconds < costs.whole for seconds in costs.layers[layer.name].values())
    name, pair = tuning.analysis.layers[0].name, Candidate(2)
    of = costs.layers[name]
    assert costs.of(name, pair, (0.0, 0.5), 4) == pytest.approx(2 * of[pair] + 2 * of[DENSE])


def test_parts():
    assert parts_of(4)[0] == (0.0, 0.25)
    assert parts_of(3)[-1][1] == 1.0
    assert middle_calls(20, 20, 4) == [2, 7, 12, 17]
    assert middle_calls(10, 5, 1) == [4]  # two calls a step


@pytest.mark.parametrize("each", [1, 2])
def test_the_call_of_a_part_is_in_it(each):
    for steps in range(1, 30):
        for parts in range(1, steps + 1):
            for index, call in enumerate(middle_calls(each * steps, steps, parts)):
                step = call // each
                assert index * steps <= step * parts < (index + 1) * steps, (steps, parts)


def test_fewer_steps_than_parts(pipe):
    short = replace(REQUEST, steps=2, width=24, height=16)  # too small for the inner level
    tuning = tune(pipe, short, ["a cat"], ["a dog"], Target(error=10.0), factors=(2,), parts=4)
    assert len(tuning.weights) == 2
    assert [bool(layer.errors) for layer in tuning.analysis.layers] == [True, False, True, True]


def test_no_prompt_is_both_chosen_on_and_held_out(pipe):
    with pytest.raises(ConfigError, match="'a cat' in both"):
        tune(pipe, REQUEST, ["a cat", "a dog"], ["a fox", "a cat"], Target(like="auto"))


def test_psnr_is_that_of_the_pictures_that_differ():
    def shown(*values):
        image = Image.new("RGB", (16, 16), values)
        return Picture((image,), REQUEST, 1.0, 1.0)

    dense, other = shown(100, 100, 100), shown(110, 110, 110)
    half = _entry("half", 1.0, [dense, other], [dense, dense])
    assert half.psnr_db == pytest.approx(20 * math.log10(255 / 10), rel=1e-3)
    assert _entry("same", 1.0, [dense], [dense]).psnr_db is None


@pytest.mark.parametrize("wrong", [1e-4, 1.0])
def test_an_error_that_is_not_reached_is_told(pipe, monkeypatch, wrong):
    """The additive model expects far less than the pictures have, or just what they have."""
    gains = tuning_module.measure_gains
    monkeypatch.setattr(
        tuning_module, "measure_gains",
        lambda *given: {k: [wrong * x for x in v] for k, v in gains(*given).items()},
    )  # fmt: skip
    monkeypatch.setattr(tuning_module, "measure_weights", lambda *_: [1.0, 1.0])
    bound = 1e-5 if wrong < 1 else 10.0
    tuned = tune(
        pipe, replace(REQUEST, steps=2), ["a cat"], ["a dog"], Target(error=bound),
        factors=(2,), anchors=(0,), parts=2,
    )  # fmt: skip
    missed = tuned.plan.made["error_on_prompts"] > bound
    assert missed == (wrong < 1)
    assert any("is not reached" in note for note in to_dict(tuned)["notes"]) == missed


def test_a_picture_that_is_not_a_number_is_named(pipe):
    def shown(value):
        image = Image.new("RGB", (8, 8))
        request = replace(REQUEST, prompt="a cat")
        return Picture((image,), request, 1.0, 1.0, latents=torch.tensor([0.0, value]).half())

    assert picture_error(shown(1.0), shown(1.0)) == 0.0
    with pytest.raises(RunError, match=r"the picture of 'a cat': .* as float16 .* bfloat16"):
        picture_error(shown(float("nan")), shown(1.0))


def test_gains_that_are_not_a_number_name_the_layer(pipe, tuning):
    calls = Calls(pipe.unet)
    picture(pipe, "a cat", seed=0)
    calls.release()
    calls.keep([0])
    calls.kept[0][1]["encoder_hidden_states"].fill_(float("nan"))
    name = tuning.analysis.layers[0].name
    with pytest.raises(RunError, match=f"coarse {name}: not a number"):
        measure_gains(tuning.analysis, calls, lambda _: Candidate(2, 8))


def test_nothing_to_tune(pipe):
    small = replace(REQUEST, width=8, height=8)
    with pytest.raises(ConfigError, match="nothing to tune at this size"):
        tune(pipe, small, ["a cat"], ["a dog"], Target(like="auto"))


# The commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    tiny.sd_pipeline(place / "t", unet=tiny.shallow_unet()).save_pretrained(place / "pipe")
    return place / "pipe"


def test_analyze_and_tune_and_generate(folder, tmp_path):
    words = ("--model", folder, "--size", "56x40", "--steps", 2, "--factors", 2, "--anchors", "0,4")
    said, notes = run("analyze", "a cat", *words, "--out", tmp_path / "a")
    assert notes == []
    assert [line.rsplit("/", 1)[1] for line in said.split()] == [
        "analysis.json", "analysis.html", "figure4.svg",
    ]  # fmt: skip
    assert json.loads((tmp_path / "a" / "analysis.json").read_text())["prompts"] == ["a cat"]
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\n")
    out = tmp_path / "p"
    words = (*words, "--prompts", tmp_path / "prompts.txt", "--quick")
    said, _ = run("tune", *words, "--speedup", 1.01, "--out", out, "--json")
    record = json.loads(said)
    assert record["plan"]["made"]["prompts"] == ["a cat"]
    assert record["plan"]["made"]["held_out"] == ["a dog"]
    assert record["plan"]["made"]["cost"] == "FLOPs"
    kept = json.loads((out / "tuning.json").read_text())
    assert kept["held_out"] == ["a dog"]
    assert {"weights", "hardware", "versions", "commit"} <= kept.keys() & record.keys()
    for each in (kept, record):
        assert each["weights"] == fingerprint(DiffusionPipeline.from_pretrained(folder))
        assert len(each["part_weights"]) == 2
        assert all(isinstance(weight, float) for weight in each["part_weights"])
    assert all(path.startswith(str(out)) for path in record["paths"])
    words = ("generate", "a dog", "--model", folder, "--size", "56x40", "--steps", 2, "--out", out)
    run(*words, "--plan", out / "plan.json")
    run(*words, "--dense")
    assert (pixels(out / "a-dog-0.png") != pixels(out / "a-dog-0-2.png")).any()


def test_tune_by_seconds(folder, tmp_path):
    """At any error there is a plan, whatever this machine is busy with."""
    words = ("--model", folder, "--size", "56x40", "--steps", 2, "--factors", 2, "--anchors", 0)
    words = (*words, "--quick", "--measure", "--error", 1e9, "--out", tmp_path, "--json")
    record = json.loads(run("tune", "a cat", "a dog", "a cow", *words)[0])
    assert record["plan"]["made"]["cost"] == "seconds"


def test_wrong_input_is_one_line(folder, tmp_path):
    base = ("tune", "--model", folder, "--out", tmp_path)
    assert "one of error, speedup and like" in run_for_error(*base, "--error", 1, "--speedup", 2)
    assert "2 different prompts, got 2" in run_for_error(*base, "a cat", "a dog")
    assert "different prompts, got 2" in run_for_error(*base, "a cat", "a dog", "a cat")
    assert "numbers such as" in run_for_error(*base, "--factors", "two")
    assert "at least 2" in run_for_error("analyze", "--model", folder, "--factors", "1")
    assert "not a readable text file" in run_for_error(*base, "--prompts", tmp_path / "none")
    assert "'paper' or 'auto'" in run_for_error(*base, "--like", "best")


def test_prompts(tmp_path):
    assert pick_prompts(None, None, None) == list(PROMPTS)
    assert pick_prompts(["a"], None, None) == ["a"]
    with pytest.raises(ConfigError, match="at least 3"):
        pick_prompts(["a"], None, 3)
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ConfigError, match=r"empty.txt: no prompts, expected one a line"):
        pick_prompts([], tmp_path / "empty.txt", None)


@pytest.mark.skipif(not importlib.util.find_spec("tomesd"), reason="needs tomesd")
def test_tomesd_merges_where_self_attention_is():
    """SDXL has none at full resolution."""
    model = tiny.sdxl_unet()

    def run():
        given = tiny.inputs(model, 16, 16)
        with torch.no_grad():
            return model(given.pop("sample"), **given).sample  # it looks for that by position

    dense = run()
    pipe, tome = SimpleNamespace(unet=model), parse_method("tomesd=0.75,stride=2")
    assert tome_speedup(pipe, tome, 128, 128) > 1.01
    with tome.on(pipe):
        assert not torch.equal(run(), dense)
    assert torch.equal(run(), dense)
