"""A benchmark as it is run, interrupted, resumed and shown. Times are never judged."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from tests import tiny, tiny_transformers
from tests.older import needs_compiler
from typer.testing import CliRunner

from tokendown import BenchError, ConfigError
from tokendown.adapters.classic import FewerKeys
from tokendown.adapters.families import make_plan
from tokendown.adapters.skeleton import on_meta
from tokendown.bench import cells, jobs, report, shapes, stacks
from tokendown.bench import run as running
from tokendown.bench.cells import CellFile, read_cells
from tokendown.bench.jobs import Job
from tokendown.bench.run import Deadline, run
from tokendown.bench.targets import Target
from tokendown.bench.turns import williams
from tokendown.cli.app import app
from tokendown.cli.bench import read_jobs
from tokendown.models.blueprint import load_skeleton
from tokendown.tuned import LayerChoice, TunedPlan


@pytest.fixture(autouse=True)
def tiny_shapes(monkeypatch):
    """Two entries of the registry as a joint-attention family would add its own."""
    unet, transformer = tiny.shallow_unet(), tiny.pixart()
    for name, model, more in (
        ("tiny-unet", unet, {}),
        ("tiny-pixart", transformer, {"stacks": {"transformer_blocks": "num_layers"}}),
    ):
        shape = shapes.Shape(name, type(model).__name__, dict(model.config), **more)
        monkeypatch.setitem(shapes.SHAPES, name, shape)


@pytest.fixture
def tiny_job():
    methods = ("paper", "minimal", "factor 2", "tomesd-half", "bound")
    sizes = ((96, 160), (64, 64))
    return Job("tiny-unet", sizes=sizes, device="cpu", rounds=2, methods=methods)


MEASURED = ("dense", "minimal", "factor 2", "tomesd-half", "bound")


def lines(path):
    return path.read_text().splitlines()


def keys(path):
    return [(c["width"], c["method"], c["round"]) for c in read_cells(path)]


# Running


def test_every_method_has_a_turn_in_every_round(tiny_job, tmp_path):
    file = CellFile(tmp_path / "new" / "a.jsonl", resume=False)
    said = []
    assert run([tiny_job], file, report=said.append)
    assert said == read_cells(file.path) == file.cells
    assert len(keys(file.path)) == len(set(keys(file.path)))
    for width in (96, 64):
        turns = [c for c in file.cells if c["width"] == width and c["outcome"] == "measured"]
        assert [c["method"] for c in turns[:5]] == list(MEASURED)
        second = [name for name in williams(tiny_job.methods, 1) if name != "paper"]
        assert [c["method"] for c in turns[5:]] == second
    skipped = [c for c in file.cells if c["outcome"] == "skipped"]
    assert {c["why"] for c in skipped} == {"changes nothing at this size"}
    assert [c["method"] for c in skipped] == ["paper", "paper"]


@pytest.mark.parametrize("count", range(1, 9))
def test_no_method_always_follows_the_same_one(count):
    names = [str(number) for number in range(count)]
    rounds = [williams(names, number) for number in range(count)]
    assert rounds[0] == names
    for column in (*rounds, *zip(*rounds, strict=True)):  # all in every round, all in every place
        assert sorted(column) == names
    pairs = [pair for order in rounds for pair in itertools.pairwise(order)]
    if count % 2 == 0:
        assert sorted(pairs) == list(itertools.permutations(names, 2))
    elif count > 1:  # no square of an odd number has them all
        assert max(map(pairs.count, pairs)) == 2


def test_a_line_says_everything(tiny_job, tmp_path):
    file = CellFile(tmp_path / "a.jsonl", resume=False)
    run([replace(tiny_job, sizes=((96, 160),), methods=("minimal",), warmup=2)], file)
    for cell in map(json.loads, lines(file.path)):
        assert set(cell) >= cells._FIELDS
        assert cell["seconds"] > 0
        assert len(cell["calls"]) == 1
        assert len(cell["warmup"]) == 2
        assert cell["peak_gib"] > 0.01
        assert cell["flops"] > 0
        assert (cell["attention"], cell["kernel"]) == ("default", "flash")
        assert cell["dtype"] == "float32"
        assert cell["threads"] == torch.get_num_threads()
        assert cell["versions"]["torch"].startswith(torch.__version__.split("+")[0])
        assert cell["hardware"]
        assert {"commit", "run", "detail"} <= set(cell)


def test_short_calls_are_repeated(tiny_job, tmp_path):
    file = CellFile(tmp_path / "a.jsonl", resume=False)
    run([replace(tiny_job, sizes=((64, 64),), methods=(), rounds=1, least_seconds=0.05)], file)
    [cell] = file.cells
    assert sum(cell["calls"]) >= 0.05 or len(cell["calls"]) == 100
    assert len(cell["calls"]) > 1
    assert cell["seconds"] == pytest.approx(sorted(cell["calls"])[len(cell["calls"]) // 2], rel=0.5)


def test_an_interrupted_benchmark_loses_nothing(tiny_job, tmp_path):
    path = tmp_path / "a.jsonl"

    def stop_after(count):
        seen = []

        def stop(cell):
            seen.append(cell)
            if len(seen) == count:
                raise KeyboardInterrupt

        return stop

    with pytest.raises(KeyboardInterrupt):
        run([tiny_job], CellFile(path, resume=False), report=stop_after(4))
    first = lines(path)
    assert len(first) == 4
    with path.open("a") as file:
        file.write('{"schema": 1, "target": "ti')  # and the power went off
    with pytest.raises(KeyboardInterrupt):
        run([tiny_job], CellFile(path, resume=True), report=stop_after(5))
    assert len(lines(path)) == 9
    assert run([tiny_job], CellFile(path, resume=True))
    assert lines(path)[:4] == first
    assert len(set(keys(path))) == 2 * (5 * 2 + 1)
    again = [key for key, count in Counter(keys(path)).items() if count > 1]
    assert again  # dense, beside what was missing in a round
    assert all("dense" in key for key in again)
    assert_compared(read_cells(path))
    whole = path.read_bytes()
    assert run([tiny_job], CellFile(path, resume=True))
    assert path.read_bytes() == whole


def assert_compared(found):
    """Every cell has dense beside it, of its run and round."""
    done = [cell for cell in found if cell["outcome"] == "measured"]
    beside = {(c["width"], c["run"], c["round"]) for c in done if c["method"] == "dense"}
    assert {(c["width"], c["run"], c["round"]) for c in done} == beside


def test_another_method_is_measured_beside_dense(tiny_job, tmp_path):
    path = tmp_path / "a.jsonl"
    job = replace(tiny_job, sizes=((64, 64),), methods=("minimal",))
    assert run([job], CellFile(path, resume=False))
    assert run([replace(job, methods=("minimal", "bound"))], CellFile(path, resume=True))
    assert [(c["method"], c["round"]) for c in read_cells(path)[4:]] == [
        ("dense", 0), ("bound", 0), ("dense", 1), ("bound", 1)
    ]  # fmt: skip
    assert_compared(read_cells(path))


def test_what_has_no_dense_of_its_run_is_measured_again(tiny_job, tmp_path):
    """As where a run was cut off before dense had its turn."""
    path = tmp_path / "a.jsonl"
    job = replace(tiny_job, sizes=((64, 64),), methods=("minimal",))

    def stop(cell):
        if (cell["method"], cell["round"]) == ("minimal", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([job], CellFile(path, resume=False), report=stop)
    assert [c["method"] for c in read_cells(path)] == ["dense", "minimal", "minimal"]
    assert run([job], CellFile(path, resume=True))
    assert [(c["method"], c["round"]) for c in read_cells(path)[3:]] == [
        ("minimal", 1), ("dense", 1)
    ]  # fmt: skip


def test_where_time_is_short_dense_comes_first(tiny_job, tmp_path):
    file = CellFile(tmp_path / "a.jsonl", resume=False)
    job = replace(tiny_job, sizes=((64, 64),), methods=("minimal",))
    assert run([job], file, deadline=Deadline(60))
    assert [c["method"] for c in file.cells] == ["dense", "minimal"] * 2
    file.cells[-1]["calls"] = [400.0]
    more = replace(job, methods=("minimal", "bound"))
    assert not run([more], file, deadline=Deadline(10))  # enough for dense, but for no other
    assert len(file.cells) == 4


def test_other_settings_are_other_cells(tiny_job, tmp_path):
    file = CellFile(tmp_path / "a.jsonl", resume=False)
    job = replace(tiny_job, sizes=((64, 64),), methods=(), rounds=1)
    variants = [
        job,
        replace(job, dtype="bfloat16"),
        replace(job, batch=2),
        replace(job, backend="math"),
        replace(job, backend="best"),
        replace(job, compile="blocks", compiler="eager"),
        replace(job, shape="tiny-pixart"),
        replace(job, shape="tiny-pixart", blocks=1),
    ]
    for count in (1, 2):  # the second time nothing is left to do
        run(variants, file)
        assert len(file.cells) == len(variants), count
    assert file.cells[3]["kernel"] == "math"
    assert file.cells[4]["attention"] == "default"  # a CPU has no choice worth trying


def test_a_deadline_ends_between_cells_and_a_later_call_goes_on(tiny_job, tmp_path, monkeypatch):
    file = CellFile(tmp_path / "a.jsonl", resume=False)
    assert not run([tiny_job], file, deadline=Deadline(0))
    assert file.cells == []
    assert Deadline().allows(1e9)
    assert Deadline(1).allows(50)
    assert not Deadline(1).allows(70)
    # what is known of the group's longest cell counts: it would not end in time
    run([replace(tiny_job, sizes=((64, 64),), rounds=1)], file)
    count = len(file.cells)
    file.cells[-1]["calls"] = [1000.0]
    assert not run([replace(tiny_job, sizes=((64, 64),))], file, deadline=Deadline(10))
    assert len(file.cells) == count
    # nothing is known of a larger size, but that attention grows with the square of the area
    file.cells[-1]["seconds"] = 2.0
    large = [replace(tiny_job, sizes=((640, 640),))]
    assert not run(large, file, deadline=Deadline(10))
    assert len(file.cells) == count
    file.cells[-1]["calls"] = [0.1]
    assert run([replace(tiny_job, sizes=((64, 64),))], file, deadline=Deadline(10))


def test_out_of_memory_is_a_result_and_a_failure_is_tried_again(tiny_job, tmp_path, monkeypatch):
    file = CellFile(tmp_path / "a.jsonl", resume=False)
    job = replace(tiny_job, sizes=((64, 64),), methods=("minimal", "bound"), warmup=0)
    errors = {3: torch.OutOfMemoryError("CUDA out of memory"), 2: ValueError("bad kernel. Why?")}
    calls = []

    def measure(*args, **options):
        calls.append(args)
        if len(calls) in errors:
            raise errors[len(calls)]
        return real(*args, **options)

    real = running.measure
    monkeypatch.setattr(running, "measure", measure)
    assert run([job], file)
    outcomes = {(c["method"], c["round"]): c["outcome"] for c in file.cells}
    assert outcomes == {
        ("dense", 0): "measured",
        ("minimal", 0): "failed",
        ("bound", 0): "out of memory",
        ("minimal", 1): "measured",
        ("dense", 1): "measured",
    }
    assert file.cells[1]["why"] == "ValueError: bad kernel. Why?"
    assert run([job], file)
    assert [(c["method"], c["round"], c["outcome"]) for c in file.cells[5:]] == [
        ("dense", 0, "measured"), ("minimal", 0, "measured")
    ]  # fmt: skip
    [group] = report.summarise(file.cells)
    assert group.rows[-1].why.startswith("out of memory")
    assert group.rows[-1].seconds is None
    assert group.rows[1].speedup is not None


def test_flops_do_not_depend_on_the_dtype(tiny_job, tmp_path):
    file = CellFile(tmp_path / "a.jsonl", resume=False)
    job = replace(tiny_job, sizes=((64, 64),), rounds=1)
    run([job, replace(job, dtype="bfloat16")], file)
    flops = [(c["method"], c["flops"]) for c in file.cells if c["outcome"] == "measured"]
    assert len(flops) == 2 * len(MEASURED)
    assert flops[: len(MEASURED)] == flops[len(MEASURED) :]
    assert all(count > 0 for _, count in flops)


# A few blocks of a deep model


def test_a_few_blocks_are_timed_and_the_rest_is_calculated(tmp_path):
    file = CellFile(tmp_path / "a.jsonl", resume=False)
    job = Job("tiny-pixart", sizes=((96, 160),), device="cpu", rounds=1, methods=("minimal",))
    run([job, replace(job, blocks=1)], file)
    whole, _, part, _ = file.cells
    assert "whole_model_seconds" not in whole
    assert part["whole_model_seconds"] > part["seconds"]
    assert part["flops"] == whole["flops"]  # of all blocks
    _, group = report.summarise(file.cells)
    assert group.rows[0].seconds == part["whole_model_seconds"]
    assert group.notes == [
        "timed 1 of 2 transformer_blocks; the others are calculated, "
        "memory is that of the timed part"
    ]


@needs_compiler
def test_a_shape_with_text_in_its_sequence(tmp_path, monkeypatch):
    model = tiny_transformers.flux()
    shape = shapes.Shape(
        "tiny-flux", type(model).__name__, dict(model.config), stacks=shapes._FLUX_STACKS, patch=2
    )
    monkeypatch.setitem(shapes.SHAPES, "tiny-flux", shape)
    file = CellFile(tmp_path / "a.jsonl", resume=False)
    methods = ("factor=2,anchors=2", "bound", "minimal")
    job = Job("tiny-flux", sizes=((96, 160),), device="cpu", rounds=1, methods=methods)
    run([job, replace(job, blocks=1), replace(job, compile="model", compiler="eager")], file)
    outcomes = [(c["method"], c["outcome"]) for c in file.cells]
    assert outcomes[:4] == outcomes[4:8] == outcomes[8:]
    assert dict(outcomes) == {
        "dense": "measured", "factor=2,anchors=2": "measured", "bound": "measured",
        "minimal": "skipped",
    }  # fmt: skip
    flops = {c["method"]: c["flops"] for c in file.cells if c["outcome"] == "measured"}
    assert flops["bound"] < flops["factor=2,anchors=2"] < flops["dense"]
    with pytest.raises(ConfigError, match="multiples of 16"):
        run([replace(job, sizes=((88, 160),))], file)


def test_a_video_shape_has_a_usual_size():
    assert Target(Job("wan-14b", device="cpu")).sizes == ((1280, 720),)
    assert Target(Job("wan-14b", device="cpu", sizes=((832, 480),))).sizes == ((832, 480),)


def test_extrapolation():
    stacks_seconds = {"double": 2.0, "single": 1.0}
    timed, published = {"double": 1, "single": 2}, {"double": 19, "single": 38}
    assert stacks.extrapolate(3.5, stacks_seconds, timed, published) == 3.5 + 2.0 * 18 + 1.0 * 18
    assert stacks.extrapolate(3.5, stacks_seconds, timed, timed) == 3.5


def test_a_stack_clock_sees_its_stack_only():
    model = tiny.pixart()
    with stacks.StackClock(model, ["transformer_blocks"], torch.device("cpu")) as clock:
        total = clock.time(lambda: tiny.run(model))
    assert 0 < clock.seconds["transformer_blocks"] < total
    assert not any(part._forward_hooks for part in model.modules())


# Shapes and presets


def test_published_shapes_have_the_published_number_of_weights():
    counts = {
        "sd15": 859_520_964,
        "sd21": 865_910_724,
        "sdxl": 2_567_463_684,
        "pixart-sigma": 610_856_096,
        "flux": 11_901_408_320,
        "sd3": 2_028_328_000,
        "sd35-medium": 2_243_171_520,
        "qwen-image": 20_430_401_088,
        "z-image": 6_154_908_736,
        "wan-1.3b": 1_418_996_800,
        "wan-14b": 14_288_491_584,
        "hunyuan-video": 12_821_012_544,
    }
    assert set(counts) == {name for name in shapes.SHAPES if not name.startswith("tiny")}
    for name, count in counts.items():
        model = shapes.find_shape(name).on_meta()
        assert sum(weight.numel() for weight in model.parameters()) == count
    assert len(shapes.find_shape("pixart-sigma").on_meta(blocks=2).transformer_blocks) == 2


def test_random_weights_are_finite_and_the_same_every_time():
    one, two = (
        shapes.find_shape("tiny-unet").with_random_weights(torch.device("cpu"), torch.float32)
        for _ in range(2)
    )
    assert torch.equal(tiny.run(one), tiny.run(two))
    assert tiny.run(one).isfinite().all()
    assert tiny.run(one).std() > 0.01


@pytest.mark.parametrize("kind", ["flux", "sd35", "qwen_image", "z_image", "wan", "hunyuan_video"])
def test_random_weights_leave_nothing_without_values(kind):
    """Qwen-Image keeps its tables of positions as plain attributes, which no ``to`` reaches."""
    published = getattr(tiny_transformers, kind)()
    shape = shapes.Shape("tiny", type(published).__name__, dict(published.config))
    filled = shape.with_random_weights(torch.device("cpu"), torch.float32)
    assert tiny_transformers.run(kind, filled, 4, 6).isfinite().all()


def test_the_gpu_preset_is_the_matrix():
    found = jobs.preset("gpu")
    cases = {(j.shape, j.compile, size[0]) for j in found for size in j.sizes}
    assert cases == {
        (shape, how, size)
        for shape in ("sd15", "sd21", "sdxl", "pixart-sigma")
        for how in ("no", "graph", "blocks")
        for size in (1024, 1536, 2048, 4096)
    }
    assert {j.dtype for j in found} == {"float16", "bfloat16"}
    assert {(j.compile, j.backend) for j in found} == {
        ("graph", "default"), ("no", "best"), ("blocks", "best"),
    }  # fmt: skip
    assert {j.batch for j in found} == {2}


# Errors


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shape": "sd9", "sizes": ((64, 64),)}, "expected a shape of sd15, sd21"),
        ({"shape": "sd15"}, "a shape needs a size"),
        ({"shape": "sd15", "whole": True, "sizes": ((64, 64),)}, "whole pictures need --model"),
        ({"methods": ("todo",)}, "expected a method of dense, paper"),
        ({"rounds": 0}, "at least 1 for rounds"),
        ({"backend": "xla"}, "expected a backend of default, flash"),
        ({"compile": "yes"}, "expected compile no, blocks, model"),
        ({"steps": 3}, "add --whole"),
        ({"blocks": 1}, "of a --shape only"),
        ({"whole": True, "batch": 2}, "a picture has its own"),
        ({"shape": "pixart-sigma", "sizes": ((64, 64),), "blocks": 1, "compile": "model"},
         "without compilation"),
    ],
)  # fmt: skip
def test_jobs_that_cannot_be(options, says):
    with pytest.raises(ConfigError, match=says):
        Job(**options)


def test_sizes_and_blocks_that_a_shape_does_not_have(tmp_path):
    file = CellFile(tmp_path / "a.jsonl", resume=False)
    with pytest.raises(ConfigError, match="needs sides that are multiples of 16"):
        run([Job("tiny-pixart", sizes=((64, 72),), device="cpu")], file)
    with pytest.raises(ConfigError, match="no stack of equal blocks"):
        run([Job("tiny-unet", sizes=((64, 64),), device="cpu", blocks=1)], file)
    with pytest.raises(ConfigError, match="expected 1 to 2 blocks, got 3"):
        run([Job("tiny-pixart", sizes=((64, 64),), device="cpu", blocks=3)], file)
    with pytest.raises(BenchError, match="takes flash attention"):
        run([Job("tiny-unet", sizes=((64, 64),), device="cpu", backend="cudnn")], file)


def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"schema": 1}\n')
    with pytest.raises(ConfigError, match="go on with --resume"):
        CellFile(path, resume=False)
    for content in ('{"schema": 1}\n', "no json\n", "[1]\n"):
        path.write_text(content)
        with pytest.raises(BenchError, match="line 1: not a cell"):
            CellFile(path, resume=True)
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(BenchError, match="not a readable file"):
        CellFile(path, resume=True)
    with pytest.raises(BenchError, match="not a readable file"):
        read_cells(tmp_path / "missing.jsonl")


# The command


def command(*words, code=0):
    result = CliRunner().invoke(app, ["bench", *map(str, words)])
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr.splitlines()


def test_the_command_measures_shows_and_resumes(tmp_path):
    path = tmp_path / "a.jsonl"
    words = ("--shape", "tiny-unet", "--size", "96x64", "--method", "minimal", "--factor", "1: 2",
             "--device", "cpu", "--rounds", 1)  # fmt: skip
    said, _ = command(*words, "--out", path)
    assert said.startswith("tiny-unet, 96 x 64, one step, batch 1; float32 on ")
    assert {c["method"] for c in read_cells(path)} == {"dense", "minimal", "factor 1:2"}
    before = path.read_bytes()
    said, _ = command(*words, "--resume", path, "--json")
    record = json.loads(said)
    assert record["complete"] is True
    assert [row["method"] for row in record["groups"][0]["rows"]] == [
        "dense", "minimal", "factor 1:2",
    ]  # fmt: skip
    assert path.read_bytes() == before
    shown, _ = command("--show", path)
    assert "factor 2 at downsampling 1, hand-written" in shown
    said, notes = command(*words, "--rounds", 2, "--resume", path, "--minutes", 0, "--json")
    assert json.loads(said)["complete"] is False
    assert f"go on with --resume {path}" in notes[-1]


def test_the_command_on_a_pipeline_steps_and_whole_pictures(tmp_path):
    path = tmp_path / "a.jsonl"
    words = ("--method", "minimal", "--size", "64x96", "--device", "cpu", "--rounds", 1)
    command(*words, "--out", path)
    command(*words, "--whole", "--steps", 1, "--resume", path)
    found = read_cells(path)
    assert [(c["what"], c["method"]) for c in found] == [
        ("step", "dense"), ("step", "minimal"), ("picture", "dense"), ("picture", "minimal"),
    ]  # fmt: skip
    assert all(0 < c["denoising_seconds"] < c["seconds"] for c in found[2:])
    assert {c["target"] for c in found} == {"built-in"}


def test_a_size_that_does_not_fit_is_said_before_the_first_is_measured(tmp_path):
    sizes = ("--size", "64x64", "--size", "66x65", "--device", "cpu")
    _, notes = command(*sizes, "--out", tmp_path / "a.jsonl", code=2)
    assert "66x65: built-in needs sides that are multiples of" in notes[-1]
    assert not (tmp_path / "a.jsonl").exists()


def test_other_files_are_never_cut(tmp_path):
    """Half a line at the end is a cell that was interrupted, or the work of somebody else."""
    words = ("--size", "64x64", "--device", "cpu", "--method", "dense", "--rounds", 1)
    for text in ("my notes", "a\nb", '{"a": 1}', "{\n}"):
        path = tmp_path / "notes.txt"
        path.write_text(text)
        _, notes = command(*words, "--resume", path, code=2)
        assert "not a cell of tokendown bench" in notes[-1]
        assert path.read_text() == text
    command(*words, "--out", tmp_path / "a.jsonl")
    whole = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text(whole + whole[:40])
    command(*words, "--resume", tmp_path / "a.jsonl", "--rounds", 2)
    assert [c["round"] for c in read_cells(tmp_path / "a.jsonl")] == [0, 1]


def test_what_failed_in_another_group_is_not_this_runs_failure(tmp_path):
    path = tmp_path / "a.jsonl"
    words = ("--device", "cpu", "--method", "dense", "--rounds", 1)
    command("--size", "64x64", *words, "--out", path)
    [cell] = read_cells(path)
    failed = {**cell, "width": 96, "outcome": "failed", "seconds": None, "why": "ValueError: no"}
    path.write_text(path.read_text() + json.dumps(failed) + "\n")
    said, _ = command("--size", "64x96", *words, "--resume", path, "--json")
    assert json.loads(said)["failed"] == []


def test_a_plan_that_has_changed_is_not_resumed(tmp_path):
    layers = [x for x in make_plan(load_skeleton()[0], None).layers if not x.reason]
    path = tmp_path / "plan.json"

    def save(factor):
        choices = (LayerChoice(x.name, x.channels, x.heads, factor=factor) for x in layers)
        TunedPlan("UNet2DConditionModel", tuple(choices)).save(path)

    words = ("--size", "64x64", "--device", "cpu", "--method", f"plan={path}", "--rounds", 2)
    save(2)
    command(*words[:-1], 1, "--out", tmp_path / "a.jsonl")
    save(3)
    _, notes = command(*words, "--resume", tmp_path / "a.jsonl", code=2)
    assert "has changed since" in notes[-1]
    save(2)
    command(*words, "--resume", tmp_path / "a.jsonl")


def test_a_window_follows_the_steps_of_a_whole_picture(tmp_path, monkeypatch):
    seen = []
    run = FewerKeys._attend

    def attend(self, *args, **kwargs):
        seen.append(self.layer.clock.step)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(FewerKeys, "_attend", attend)
    words = ("--size", "64x64", "--device", "cpu", "--rounds", 1, "--whole", "--steps", 4)
    path = tmp_path / "a.jsonl"
    command(*words, "--method", "factor=2,start=0.5", "--warmup", 0, "--out", path)
    assert set(seen) == {2, 3}
    dense, patched = read_cells(path)
    assert patched["outcome"] == "measured"
    assert (dense["flops"] is None, patched["flops"]) == (False, None)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--model", "a/b", "--shape", "sd15"), "expected --model or --shape, got both"),
        (("--preset", "gpu", "--shape", "sd15"), "a preset chooses models"),
        (("--preset", "tpu"), "expected a preset of gpu, cpu"),
        (("--size", "big"), "expected a size such as"),
        (("--factor", "x"), "expected a factor such as"),
        (("--show", "nothing.jsonl"), "not a readable file"),
        (("--plot", "bars.bmp"), "expected a plot named"),
        (("--minutes", "nan"), "expected minutes >= 0, got nan"),
    ],
)
def test_wrong_options_are_one_line(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said, errors = command(*words, code=2)
    assert said == ""
    assert len([line for line in errors if line.startswith("error: ")]) == 1
    assert says in errors[-1]
    assert list(tmp_path.iterdir()) == []


def test_options_change_a_preset():
    found = read_jobs({"preset_name": "gpu", "size": ["2048"], "rounds": 1, "budget": [4096]})
    assert {j.sizes for j in found} == {((2048, 2048),)}
    assert {j.rounds for j in found} == {1}
    assert all("budget 4096" in j.methods for j in found)


def test_a_skeleton_of_a_tiny_shape_is_the_model_itself():
    """Otherwise the tests above would be about something else."""
    shape = shapes.find_shape("tiny-unet").on_meta()
    want = on_meta(tiny.shallow_unet())
    assert [tuple(p.shape) for p in shape.parameters()] == [
        tuple(p.shape) for p in want.parameters()
    ]
