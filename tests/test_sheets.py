"""Methods by name, and ``tokendown compare``: pictures, numbers and files."""

from __future__ import annotations

import json
import statistics
from dataclasses import fields, replace
from importlib import metadata

import numpy
import pytest
import tomesd
import torch
from PIL import Image
from tests import tiny
from tests.test_cli import pixels, run, run_for_error

from tokendown import (
    ConfigError,
    NothingPatchedError,
    PatchConfig,
    UnsupportedModelError,
    captions,
    is_patched,
    quality,
    sheets,
)
from tokendown.generate import Request, make_picture, open_pipeline
from tokendown.methods import _READERS, DENSE, Method, parse_method
from tokendown.pictures import as_tensor, read_settings

# Methods


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("paper", PatchConfig(preset="paper")),
        ("auto", PatchConfig()),
        ("auto, budget=64, anchors=8", PatchConfig(budget=64, anchors=8)),
        ("factor=2,anchors=0", PatchConfig(factor=2, anchors=0)),
        ("factor=1:4+2:2", PatchConfig(factor={1: 4, 2: 2})),
        ("paper,method=mean,stop=0.5", PatchConfig(preset="paper", method="mean", stop=0.5)),
    ],
)
def test_patches_by_name(text, config):
    method = parse_method(text)
    assert method.config == config
    assert method.tomesd is None
    assert method == Method(text.replace(" ", ""))
    assert json.loads(json.dumps(method.to_dict()))["name"] == method.name
    assert len({method, parse_method(text)}) == 1


def test_dense_and_tomesd_by_name():
    assert parse_method("dense") == DENSE
    assert parse_method("tomesd=0.75").tomesd == (0.75, 2)
    assert parse_method("tomesd=0.5").tomesd == (0.5, 2)
    assert parse_method("tomesd=0.889").tomesd == (0.889, 3)  # eight of nine, rounded up
    assert parse_method("tomesd=0.9375").tomesd == (0.9375, 4)
    assert parse_method("tomesd=0.5,stride=4").tomesd == (0.5, 4)


def test_one_word_can_say_every_option_of_a_patch():
    assert set(_READERS) == {field.name for field in fields(PatchConfig)} - {"preset"}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("nonsense", "expected a method such as dense"),
        ("factor=two", "cannot read 'factor=two'"),
        ("factor=0", "integer factor >= 1"),
        ("factor=1:2+1:4", "cannot read 'factor=1:2\\+1:4'"),
        ("auto,paper", "with 'paper'"),
        ("controlnet=yes", "cannot read"),
        ("tomesd", "expected a method"),
        ("tomesd=1", "between 0 and 1"),
        ("tomesd=0.9,stride=2", "stride=4 or more"),
    ],
)
def test_methods_that_cannot_be_read(text, part):
    with pytest.raises(ConfigError, match=part):
        parse_method(text)


# Pictures and numbers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    tiny.sd_pipeline(place / "tokenizer-files").save_pretrained(place / "pipe")
    return place / "pipe"


@pytest.fixture(scope="module")
def opened(folder):
    request = Request("a cat", model=str(folder), width=40, height=24, steps=2, seed=3)
    return open_pipeline(replace(request, config=None))


def rows_of(opened, *names, requests=None):
    pipe, request = opened
    methods = [DENSE, *map(parse_method, names)]
    return list(sheets.make_rows(pipe, requests or [request], methods))


def test_pictures_are_those_of_generate_and_the_pipeline_is_as_before(opened):
    pipe, request = opened
    names = ("factor=2,anchors=3", "tomesd=0.5")
    [row] = rows_of(opened, *names)
    dense, patched, merged = (numpy.array(p.image) for p in row.pictures.values())
    assert numpy.array_equal(dense, numpy.array(make_picture(pipe, request).image))
    config = PatchConfig(factor=2, anchors=3)
    alone = make_picture(pipe, replace(request, config=config)).image
    assert numpy.array_equal(patched, numpy.array(alone))
    torch.manual_seed(request.seed)
    tomesd.apply_patch(pipe, ratio=0.5)
    alone = make_picture(pipe, request).image
    tomesd.remove_patch(pipe)
    assert numpy.array_equal(merged, numpy.array(alone))
    assert len({dense.tobytes(), patched.tobytes(), merged.tobytes()}) == 3


def test_tomesd_is_repeatable_and_leaves_the_random_state_alone(opened):
    state = torch.get_rng_state()
    first, again = (rows_of(opened, "tomesd=0.5")[0].numbers for _ in range(2))
    assert first == again
    assert torch.equal(torch.get_rng_state(), state)


def test_numbers_are_the_distances_to_the_dense_picture(opened):
    [row] = rows_of(opened, "factor=2,anchors=0")
    method = parse_method("factor=2,anchors=0")
    x, y = (as_tensor(row.pictures[m].image) for m in (method, DENSE))
    numbers = row.numbers[method]
    assert numbers["mse"] == pytest.approx(((x - y) ** 2).mean().item(), rel=1e-5)
    assert numbers["hpf"] == pytest.approx(quality.hpf(x).item(), rel=1e-5)
    assert numbers["hpf_dense"] == row.numbers[DENSE]["hpf"]
    assert numbers["ms_ssim"] is None  # 24 pixels are too few
    assert row.numbers[DENSE] | {"hpf": 0, "hpf_dense": 0} == {
        "mse": 0, "psnr_db": None, "ssim": 1, "ms_ssim": None, "lpips": None, "hpf": 0,
        "hpf_dense": 0,
    }  # fmt: skip
    assert sheets.words(numbers, method)[-1].startswith("HPF")
    assert sheets.words(row.numbers[DENSE], parse_method("paper"))[0] == "equal to dense"


def test_what_cannot_work_is_said_before_anything_is_drawn(opened, monkeypatch):
    pipe, request = opened
    monkeypatch.setattr(sheets, "sample", lambda *_: pytest.fail("it has drawn"))
    with pytest.raises(NothingPatchedError):
        sheets.plan(pipe, request, [parse_method("factor=16:2")])
    plans = sheets.plan(pipe, request, [parse_method("factor=2"), parse_method("tomesd=0.5")])
    dense, patched, merged = plans.values()
    assert next(iter(plans)) == DENSE
    assert dense is None
    assert merged is None
    assert patched.predicted_speedup > 1


def test_tomesd_is_for_unets(opened):
    class Pipe:
        transformer = tiny.pixart()

    with pytest.raises(UnsupportedModelError, match="U-Nets only"):
        sheets.plan(Pipe(), opened[1], [parse_method("tomesd=0.5")])


# The command


def test_compare_writes_a_sheet_and_every_number(folder, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dog\n\n")
    words = ("compare", "a cat", "--prompts", prompts, "--count", 2, "--seed", 5, "--model", folder)
    words += ("--steps", 1, "--size", "40x24", "--method", "factor=2,anchors=0", "--method")
    words += ("tomesd=0.5", "--out", tmp_path / "out", "--json")
    said, notes = run(*words)
    record = json.loads(said)
    paths = record.pop("paths")
    assert [path.rsplit("/", 1)[1] for path in paths] == ["compare-sheet.png", "compare.json"]
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == record
    asked = [(row["request"]["prompt"], row["request"]["seed"]) for row in record["rows"]]
    assert asked == [("a cat", 5), ("a cat", 6), ("a dog", 5), ("a dog", 6)]
    names = [method["name"] for method in record["methods"]]
    assert names == ["dense", "factor=2,anchors=0", "tomesd=0.5"]
    for method in record["methods"][1:]:
        errors = [row["methods"][method["name"]]["mse"] for row in record["rows"]]
        assert method["means"]["mse"] == pytest.approx(statistics.mean(errors), rel=1e-4)
        assert method["means"]["mse"] > 0
    assert record["methods"][1]["predicted_speedup"] > 1
    assert record["versions"]["torch"] == metadata.version("torch")
    assert not notes
    width = pixels(paths[0]).shape[1]
    assert width > 3 * 176


def test_compare_keeps_pictures_on_request_and_says_what_changes_nothing(folder, tmp_path):
    words = ("compare", "a cat", "--model", folder, "--steps", 1, "--size", "40x24", "--method")
    table, notes = run(*words, "paper", "--keep", "--out", tmp_path)
    assert "paper changes nothing at 40x24" in notes[0]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["compare-0-0-dense-0.png", "compare-0-1-paper-0.png", "compare-sheet.png",
                     "compare.json"]  # fmt: skip
    assert read_settings(tmp_path / names[1])["method"]["config"]["preset"] == "paper"
    assert "1 picture a method" in table
    run(*words, "paper", "--out", tmp_path)
    assert (tmp_path / "compare-2.json").exists()


def test_every_picture_is_kept_where_names_are_long(folder, tmp_path):
    words = ("compare", "a", "--model", folder, "--steps", 1, "--size", "40x24", "--keep")
    for start in (0.25, 0.75):
        words += ("--method", f"factor=2,anchors=0,multiplicity=0,start={start}")
    run(*words, "--out", tmp_path)
    kept = [read_settings(path) for path in tmp_path.glob("compare-0-*.png")]
    starts = [each["method"]["config"]["start"] for each in kept if each["method"]["config"]]
    assert sorted(starts) == [0.25, 0.75]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "expected a prompt"),
        (("a", "--method", "tomesd=2"), "between 0 and 1"),
        (("a", "--method", "factor=16:2"), "no self-attention"),
        (("a", "--lpips", "missing.safetensors"), "no such file"),
        (("--prompts", "missing.txt"), "missing.txt: not a readable text file"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(folder, tmp_path, words, part):
    error = run_for_error("compare", *words, "--model", folder, "--out", tmp_path / "out")
    assert part in error
    assert not (tmp_path / "out").exists()


def test_interrupted_while_drawing(folder, tmp_path, monkeypatch):
    real, calls = sheets.sample, []

    def sample(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(sheets, "sample", sample)
    words = ("compare", "a", "--model", folder, "--steps", 1, "--size", "24", "--out", tmp_path)
    _, lines = run(*words, "--method", "factor=2", code=130)
    assert "nothing is half-written" in lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_interrupted_after_the_first_row(folder, tmp_path, monkeypatch):
    """What is finished is saved, and the command ends as an interrupted one does."""
    real, calls = sheets.sample, []

    def sample(*arguments):
        calls.append(1)
        if len(calls) in (4, 8):
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(sheets, "sample", sample)
    words = ("compare", "a", "b", "--model", folder, "--steps", 1, "--size", "24", "--keep")
    words = (*words, "--method", "factor=2", "--out", tmp_path)
    table, lines = run(*words, code=130)
    assert "1 picture a method" in table
    assert "stopped after 1 of 2 rows" in lines[-2]
    record = json.loads((tmp_path / "compare.json").read_text())
    assert [row["request"]["prompt"] for row in record["rows"]] == ["a"]
    assert "stopped after 1 of 2 rows, which are saved" in record["notes"]
    assert len(list(tmp_path.glob("compare-0-*.png"))) == 2
    said, _ = run(*words, "--json", code=130)
    assert len(json.loads(said)["rows"]) == 1


def test_a_window_counts_in_the_predicted_speed_up(folder, tmp_path):
    words = ("compare", "a", "--model", folder, "--steps", 4, "--size", "40x24", "--json")
    for window in ("", ",start=0.5", ",start=0.9"):
        words = (*words, "--method", f"factor=2{window}")
    said, notes = run(*words, "--out", tmp_path)
    always, half, never = (each["predicted_speedup"] for each in json.loads(said)["methods"][1:])
    assert half == pytest.approx(2 / (1 + 1 / always), rel=1e-4)
    assert never == 1
    assert any("factor=2,start=0.9 is active at none of the 4 steps" in note for note in notes)


# The sheet


def test_cells_stand_in_their_columns_and_large_pictures_are_shrunk():
    colours = ["red", "lime", "blue"]
    cells = [captions.Cell(Image.new("RGB", (300, 150), c), c, ["one", "two"]) for c in colours]
    sheet = captions.contact_sheet([("first", cells), ("second", cells[:2])], ["foot"], limit=200)
    array = numpy.array(sheet).astype(int)
    for column, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        found = (array == colour).all(axis=2)
        assert found.sum() == 200 * 100 * (2 if column < 2 else 1)
        columns = numpy.nonzero(found.any(axis=0))[0]
        assert columns[0] == column * 208
        assert columns[-1] == column * 208 + 199


def test_narrow_pictures_get_room_for_their_text():
    cell = captions.Cell(Image.new("RGB", (20, 30), "red"), "method", ["PSNR 30.0 dB"])
    array = numpy.array(captions.contact_sheet([("t", [cell])], ["foot"])).astype(int)
    red = (array == (255, 0, 0)).all(axis=2)
    assert red.sum() == 600
    assert abs(numpy.nonzero(red.any(axis=0))[0].mean() - 175 / 2) < 1


def test_a_patch_inside_a_method_is_taken_off_after_an_error(opened):
    pipe, _ = opened

    def fail():
        with parse_method("factor=2").on(pipe):
            assert is_patched(pipe)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not is_patched(pipe)


def test_a_film_is_measured_in_all_frames():
    values = numpy.random.default_rng(0).integers(0, 255, (4, 16, 12, 3), dtype="uint8")
    frames = [Image.fromarray(each) for each in values]
    one = [sheets.measure([x], [y]) for x, y in (frames[:2], frames[2:])]
    film = sheets.measure(frames[::2], frames[1::2])
    for name in ("mse", "ssim", "hpf", "hpf_dense"):
        want = statistics.mean(numbers[name] for numbers in one)
        assert film[name] == pytest.approx(want, rel=1e-5), name
    error = ((values[::2] / 255.0 - values[1::2] / 255.0) ** 2).mean()
    assert film["psnr_db"] == pytest.approx(-10 * numpy.log10(error), rel=1e-5)
    assert sheets.measure(frames[:2], frames[:2])["psnr_db"] is None
