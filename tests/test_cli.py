"""The commands as people and machines run them: output, exit codes, one line for an error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields

import numpy
import pytest
from PIL import Image
from tests import tiny, tiny_transformers
from typer.testing import CliRunner

from tokendown import LayerChoice, PatchConfig, TunedPlan, doctor, pictures
from tokendown import generate as gen
from tokendown.adapters.families import make_plan
from tokendown.bench.machine import busy
from tokendown.cli import main, options
from tokendown.cli.app import app
from tokendown.cli.options import parse_factor, parse_size, patch_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    tiny.sd_pipeline(place / "tokenizer-files").save_pretrained(place / "pipe")
    return place / "pipe"


def run(*words, code=0):
    """stdout, and stderr as lines."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr.splitlines()


def run_for_error(*words, code=2):
    """The one line."""
    said, lines = run(*words, code=code)
    assert said == ""
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def pixels(path):
    with Image.open(path) as image:
        return numpy.array(image)


def png_names(place):
    return sorted(path.name for path in place.iterdir()) if place.exists() else []


# Options


def test_sizes():
    assert parse_size(None) == (None, None)
    assert parse_size("1024x768") == (1024, 768)
    assert parse_size("512") == (512, 512)
    for wrong in ("", "big", "1024x", "-4x4", "1x2x3", "1e3"):
        with pytest.raises(ValueError, match="expected a size such as"):
            parse_size(wrong)


def test_factors():
    assert parse_factor("3") == 3
    assert parse_factor("1:4, 2:2") == {1: 4, 2: 2}
    for wrong in ("", "two", "1:", "1:4;2:2", "1.5"):
        with pytest.raises(ValueError, match="expected a factor such as"):
            parse_factor(wrong)


def test_the_options_are_the_fields_of_the_config():
    library = {"controlnet"}  # generate makes no ControlNet pipelines
    assert {*options.PATCH_OPTIONS} | library == {field.name for field in fields(PatchConfig)}


def test_patch_options():
    assert patch_config({}) == PatchConfig()
    assert patch_config({"preset": "paper", "anchors": None}) == PatchConfig(preset="paper")
    assert patch_config({"dense": True}) is None
    with pytest.raises(ValueError, match="--factor has no use"):
        patch_config({"dense": True, "factor": "2"})
    with pytest.raises(ValueError, match="--no-multiplicity has no use"):
        patch_config({"dense": True, "multiplicity": False})
    with pytest.raises(ValueError, match="--temporal-factor has no use"):
        patch_config({"plan": "a.json", "temporal_factor": 2})


def test_the_patch_options_of_joint_and_video_models(folder, tmp_path):
    tiny_transformers.wan().save_config(tmp_path / "transformer")
    words = ("summary", "--model", tmp_path, "--size", "96x96", "--factor", 2, "--json")
    more = ("--no-multiplicity", "--references", 2, "--temporal-factor", 3)
    usual, chosen = (json.loads(run(*words, *rest)[0])["config"] for rest in ((), more))
    assert chosen == usual | {"multiplicity": False, "references": 2, "temporal_factor": 3}
    assert usual["multiplicity"] is True
    words = ("summary", "--model", folder, *more)
    assert "references has no use here" in run_for_error(*words[:-2])
    assert "temporal_factor has no use here" in run_for_error(*words)


# generate


def test_a_picture_and_the_same_again(folder, tmp_path):
    made = tmp_path / "made"
    words = ("generate", "a cat", "-n", "blur", "--model", folder, "--steps", 2, "--size", "40x24")
    record = json.loads(
        run(*words, "--factor", "1:2,2:2", "--seed", 7, "--count", 2, "--out", made, "--json")[0]
    )
    assert png_names(made) == ["a-cat-7.png", "a-cat-8.png"]
    assert [image["seed"] for image in record["images"]] == [7, 8]
    assert record["request"]["config"]["factor"] == {"1": 2, "2": 2}
    assert record["notes"] == []
    assert not numpy.array_equal(pixels(made / "a-cat-7.png"), pixels(made / "a-cat-8.png"))

    said, notes = run("generate", "--from", made / "a-cat-8.png", "--out", tmp_path / "again")
    assert notes == []
    assert "a-cat-8.png" in said.replace("\n", "")
    again = tmp_path / "again" / "a-cat-8.png"
    assert numpy.array_equal(pixels(again), pixels(made / "a-cat-8.png"))
    ours, theirs = (pictures.read_settings(path) for path in (again, made / "a-cat-8.png"))
    assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_repeating_with_a_change_and_with_other_versions(folder, tmp_path):
    settings = gen.Request("a cat", model=str(folder), steps=2, config=PatchConfig(budget=4))
    image = Image.new("RGB", (4, 4))
    recorded = {**settings.to_dict(), "versions": {"torch": "0.1"}, "weights": "x", "threads": 99}
    [source] = pictures.save(tmp_path, "old", {"": (image, recorded)})
    said, notes = run(
        "generate", "--from", source, "--factor", 2, "--device", "cpu", "--out", tmp_path, "--json"
    )
    request = json.loads(said)["request"]
    assert (request["prompt"], request["steps"]) == ("a cat", 2)
    assert request["config"] == PatchConfig(factor=2).to_dict()
    assert json.loads(said)["notes"] == [note.removeprefix("note: ") for note in notes]
    for index, part in enumerate(("made with torch 0.1, here", "other weights", "99 threads")):
        assert part in notes[index]


def test_compare(folder, tmp_path):
    words = ("generate", "a cat", "--model", folder, "--steps", 2, "--size", "40x24")
    words = (*words, "--out", tmp_path)
    said, _ = run(*words, "--factor", 2, "--anchors", 3, "--compare", "--json")
    [numbers] = json.loads(said)["images"]
    names = ["a-cat-0-compare.png", "a-cat-0-dense.png", "a-cat-0-patched.png"]
    assert png_names(tmp_path) == names
    assert numbers["keys"][0] == {"grid": "12x20", "layers": 3, "before": 240, "after": 63}
    assert numbers["predicted_speedup"] > 1
    assert numbers["measured_speedup"] == pytest.approx(
        numbers["denoising_seconds"]["dense"] / numbers["denoising_seconds"]["patched"], rel=0.2
    )
    assert 5 < numbers["psnr_db"] < 60
    assert 0 < numbers["ssim"] < 1
    run(*words, "--dense")
    assert numpy.array_equal(pixels(tmp_path / "a-cat-0.png"), pixels(tmp_path / names[1]))
    sheet = pixels(tmp_path / names[0])
    assert sheet.shape[1] > 2 * 40
    table, _ = run("generate", "--from", tmp_path / names[0], "--out", tmp_path / "again")
    assert table.rstrip().endswith("a-cat-0-compare.png")
    assert "240 -> 63 keys in 3 layers" in table
    assert png_names(tmp_path / "again") == names


def test_a_size_at_which_nothing_changes_is_said(tmp_path):
    _, notes = run("generate", "a", "--size", "64x32", "--steps", 1, "--out", tmp_path)
    assert "changes nothing at 64x32" in notes[0]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((), "expected a prompt"),
        (("a", "--size", "big"), "expected a size"),
        (("a", "--size", "40x25"), "multiples of 8, such as 40x24"),
        (("a", "--factor", "x"), "expected a factor"),
        (("a", "--factor", "1:4,1:2"), "every level once"),
        (("a", "--factor", "0"), "factor >= 1"),
        (("a", "--factor", "64:2"), "no self-attention at downsampling 64"),
        (("a", "--budget", "0"), "budget of at least 1"),
        (("a", "--preset", "magic"), "preset 'auto' or 'paper'"),
        (("a", "--dense", "--compare"), "nothing to compare"),
        (("a", "--steps", "0"), "at least 1 step"),
        (("a", "--guidance", "nan"), "a finite guidance"),
        (("a", "--size", "0x64"), "sides of 1 to 65536 pixels"),
        (("a", "--size", "999999"), "sides of 1 to 65536 pixels"),
        (("a", "--model", "[/x]"), "no such file or folder"),
        (("a", "--model", "~nobody/x"), "~nobody/x"),
        (("a", "--model", 5000 * "x"), "too long"),
        (("a", "--image", "~nobody/x.png"), "~nobody/x.png"),
        (("a", "--device", "toaster"), "no device 'toaster'"),
        (("a", "--dtype", "int7"), "expected a dtype"),
        (("a", "--lora", "gone.safetensors"), "no such file"),
        (("a", "--lora", "~nobody/x"), "~nobody/x"),
        (("a", "--model", "gone/or/not"), "no such file or folder"),
        (("a", "--model", "x.ckpt"), "can run code"),
        (("--from", "gone.png"), "no such file"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(folder, tmp_path, words, part):
    model = () if "--model" in words else ("--model", folder)
    line = run_for_error("generate", *words, *model, "--out", tmp_path / "out")
    assert part in line
    assert not (tmp_path / "out").exists()


def test_errors_for_machines(tmp_path):
    said, lines = run("summary", "--model", tmp_path, "--json", code=2)
    assert len(lines) == 1
    record = json.loads(said)
    assert "no unet/config.json" in record["error"]
    assert record["exit_code"] == 2


def test_out_of_memory_is_exit_code_one(folder, tmp_path, monkeypatch):
    def forward(self, sample, *_, **__):
        raise MemoryError

    monkeypatch.setattr(gen, "predict", lambda *_: None)  # which runs the network, too
    monkeypatch.setattr("diffusers.UNet2DConditionModel.forward", forward)
    line = run_for_error("generate", "a", "--model", folder, "--out", tmp_path / "out", code=1)
    assert "out of memory at 32x32" in line
    assert not (tmp_path / "out").exists()


def test_interrupted_between_pictures(folder, tmp_path, monkeypatch):
    real, calls = gen.make_picture, []

    def second_is_stopped(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(gen, "make_picture", second_is_stopped)
    words = ("generate", "a", "--model", folder, "--steps", 1, "--count", 3, "--out", tmp_path)
    _, lines = run(*words, code=130)
    assert lines[-1].startswith("error: interrupted")
    assert png_names(tmp_path) == ["a-0.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process there")
def test_ctrl_c_in_a_process_of_its_own(folder, tmp_path):
    words = ["generate", "a", "--model", str(folder), "--steps", "900", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-c", _TELLS_STEPS, *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "sampling\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, lines = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert lines.splitlines()[-1] == "error: interrupted; nothing is half-written"
    assert list(tmp_path.iterdir()) == []


_TELLS_STEPS = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background job ignores it
from tokendown import generate
from tokendown.cli import main
make = generate.make_picture
generate.make_picture = lambda *args: (print("sampling", flush=True), make(*args))[1]
main()
"""


def test_a_busy_machine_is_named(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for load, lines in ((0.5, 0), (3.5, 1)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert len(busy()) == lines


# summary, doctor, and the command itself


def test_summary_from_the_configuration_alone(folder, tmp_path):
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        text = (folder / part / "config.json").read_text()
        (tmp_path / part / "config.json").write_text(text)
    words = ("summary", "--model", tmp_path, "--size", "256x128", "--budget", 1024)
    record = json.loads(run(*words, "--json")[0])
    assert (record["width"], record["height"]) == (256, 128)
    finest = record["layers"][0]
    assert finest["grid"] == [64, 128]  # two pixels a latent pixel, says the VAE
    assert (finest["keys_before"], finest["keys_after"], finest["factor"]) == (8192, 946 + 32, 3)
    table, _ = run(*words)
    assert "8192 -> 978" in table
    assert f"predicted speed-up {record['predicted_speedup']:.2f}" in table


def test_pictures_that_are_too_small_for_ssim(folder, tmp_path):
    words = ("generate", "a", "--model", folder, "--size", "8", "--steps", 1, "--factor", 2)
    table, _ = run(*words, "--compare", "--out", tmp_path)
    assert "SSIM" not in table
    assert "PSNR" in table or "equal pictures" in table


def test_summary_of_a_dense_model(folder):
    record = json.loads(run("summary", "--model", folder, "--dense", "--json")[0])
    assert record["config"] is None
    assert record["predicted_speedup"] == 1
    assert record["width"] == 32


def test_doctor():
    record = json.loads(run("doctor", "--json")[0])
    assert record["installed"]["torch"]
    assert record["backends"]["native"] == "works"
    assert all("\n" not in text for text in record["backends"].values())
    assert set(record["self_check"].values()) == {True}
    said, _ = run("doctor")
    assert "FAIL" not in said


def test_doctor_sees_a_broken_patch(monkeypatch):
    monkeypatch.setattr(doctor, "apply_patch", lambda *_, **__: None)
    passed = list(doctor.self_check().values())
    assert passed == [False, False, True]
    said, _ = run("doctor", code=1)
    assert said.count("FAIL") == 2


def test_doctor_without_diffusers_still_says_what_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    said, lines = run("doctor", code=2)
    assert "torch" in said
    assert lines == [
        "error: this needs an extra: pip install 'tokendown[cli]' (diffusers is missing)"
    ]


def test_packages_that_do_not_go_together(monkeypatch, tmp_path):
    (tmp_path / "diffusers.py").write_text("raise ImportError('peft>=0.17.0 is required.')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "diffusers")
    said, lines = run("doctor", code=2)
    assert "peft" in said
    assert "cannot be imported: peft>=0.17.0 is required; pip install -U" in lines[-1]


def test_version_and_help():
    assert run("--version")[0].startswith("tokendown ")
    for command in ("generate", "summary", "doctor"):
        assert command in run("-h")[0]
        assert "--json" in run(command, "-h")[0]


def test_a_missing_extra_names_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    for name in [name for name in sys.modules if name.startswith("tokendown.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit) as caught:
        main()
    assert str(caught.value) == (
        "the command line needs an extra: pip install 'tokendown[cli]' (typer is missing)"
    )


# A plan, layer by layer


def test_a_plan_in_every_command(folder, tmp_path):
    unet = tiny.sd_unet()
    layers = [
        LayerChoice(layer.name, layer.channels, layer.heads, 1 + index % 3, anchors=index)
        for index, layer in enumerate(make_plan(unet, None).layers)
    ]
    plan = TunedPlan("UNet2DConditionModel", tuple(layers), sizes=((40, 24),))
    plan.save(tmp_path / "plan.json")
    words = ("--model", folder, "--size", "40x24", "--plan", tmp_path / "plan.json")
    rows = json.loads(run("summary", *words, "--json")[0])["layers"]
    assert [row["factor"] for row in rows] == [layer.factor for layer in layers]
    words = ("generate", "a cat", *words, "--steps", 2, "--out", tmp_path / "out")
    _, notes = run(*words)
    assert notes == []
    (tmp_path / "plan.json").unlink()  # the picture carries it
    run("generate", "--from", tmp_path / "out" / "a-cat-0.png", "--out", tmp_path / "again")
    again = pixels(tmp_path / "again" / "a-cat-0.png")
    assert numpy.array_equal(again, pixels(tmp_path / "out" / "a-cat-0.png"))
    run("generate", "a cat", "--model", folder, "--steps", 2, "--size", "40x24", "--dense",
        "--out", tmp_path / "dense")  # fmt: skip
    assert not numpy.array_equal(again, pixels(tmp_path / "dense" / "a-cat-0.png"))


def test_plans_that_do_not_suit(folder, tmp_path):
    path = tmp_path / "plan.json"
    said = ("generate", "a cat", "--model", folder, "--steps", 2, "--plan", path)
    assert "No such file" in run_for_error(*said)
    TunedPlan("PixArtTransformer2DModel", (LayerChoice("x", 1, 1, 2),), ((64, 64),)).save(path)
    assert "another architecture" in run_for_error(*said)
    assert "--factor has no use" in run_for_error(*said, "--factor", 2)
    assert "--plan has no use" in run_for_error(*said, "--dense")
