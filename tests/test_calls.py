"""What goes into a pipeline beside the prompt: pictures, known by their content, and arguments by
name. Nothing that was asked for is dropped in silence."""

from __future__ import annotations

import numpy
import pytest
from PIL import Image
from tests import tiny, tiny_pipelines
from tests.test_cli import run, run_for_error
from tests.test_films import frames_of, generate

from tokendown import ConfigError, captions, pictures
from tokendown.calls import check_pipeline
from tokendown.cli.generate import parse_parameters
from tokendown.request import Request

# Pictures that go in


def test_an_edit_and_the_same_again(saved, originals, tmp_path):
    words = ("a cat", "--model", saved("pix2pix"), "--steps", 2, "--factor", 2)
    words = (*words, "--set", "image_guidance_scale=2")
    assert "give --image FILE" in run_for_error("generate", *words, "--out", tmp_path)
    generate(*words, "--image", originals / "in.png", "--out", tmp_path)
    made = tmp_path / "a-cat-0.png"
    assert frames_of(made).shape == (1, 24, 40, 3)  # the picture's own size
    settings = pictures.read_settings(made)
    assert len(settings["image_sha256"]) == 64
    assert settings["parameters"] == {"image_guidance_scale": 2}
    generate("--from", made, "--out", tmp_path / "again")
    assert numpy.array_equal(frames_of(tmp_path / "again" / made.name), frames_of(made))
    _, notes = run(
        "generate", "--from", made, "--image", originals / "other.png", "--out", tmp_path
    )
    assert "made with another image" in notes[0]
    assert not numpy.array_equal(frames_of(tmp_path / "a-cat-0-2.png"), frames_of(made))
    generate(
        *words, "--image", originals / "in.png", "--size", "32x16", "--out", tmp_path / "small"
    )
    assert frames_of(tmp_path / "small" / made.name).shape == (1, 16, 32, 3)


def test_a_repeat_with_another_file_is_refused(saved, originals, tmp_path):
    copy = tmp_path / "mine.png"
    copy.write_bytes((originals / "in.png").read_bytes())
    words = (
        "a",
        "--model",
        saved("pix2pix"),
        "--steps",
        1,
        "--dense",
        "--out",
        tmp_path / "out",
    )
    generate(*words, "--image", copy)
    copy.write_bytes((originals / "other.png").read_bytes())
    again = ("generate", "--from", tmp_path / "out" / "a-0.png", "--out", tmp_path / "again")
    line = run_for_error(*again)
    assert "mine.png is not the file that was used" in line
    assert "--image" in line
    copy.unlink()
    assert "no such file" in run_for_error(*again)
    assert not (tmp_path / "again").exists()
    generate(*again[1:], "--image", originals / "in.png")  # the same content under another name
    made, repeat = (frames_of(tmp_path / part / "a-0.png") for part in ("out", "again"))
    assert numpy.array_equal(repeat, made)


def test_inpainting_takes_a_mask(saved, originals, tmp_path):
    def make(files):
        return tiny.sd_pipeline(files, kind="StableDiffusionInpaintPipeline")

    words = (
        "a",
        "--model",
        saved("inpaint", make),
        "--steps",
        2,
        "--dense",
        "--size",
        "40x24",
    )
    words = (*words, "--image", originals / "in.png", "--out", tmp_path)
    assert "--mask FILE" in run_for_error("generate", *words)
    record = generate(*words, "--mask", originals / "mask.png", "--set", "strength=0.6")
    assert record["request"]["mask_sha256"] != record["request"]["image_sha256"]
    original = numpy.array(Image.open(originals / "in.png")).astype(int)
    everything = tmp_path / "all.png"
    Image.new("L", (40, 24), 255).save(everything)
    generate(*words, "--mask", everything, "--set", "strength=0.6")
    part, whole = (frames_of(tmp_path / f"a-0{tail}.png")[0].astype(int) for tail in ("", "-2"))
    assert not numpy.array_equal(part[:, :16], whole[:, :16])  # kept by the mask
    assert part.shape == original.shape


@pytest.mark.parametrize("kind", ["Img2Img", "Inpaint"])
def test_a_text_to_image_model_starts_from_a_picture_by_its_sibling(
    saved, originals, tmp_path, kind
):
    def make(kind):
        return lambda files: tiny.sd_pipeline(files, kind=f"StableDiffusion{kind}Pipeline")

    words = ("a", "--image", originals / "in.png", "--size", "48x32", "--steps", 4, "--factor", 2)
    words = (*words, "--set", "strength=0.5")
    if kind == "Inpaint":
        words = (*words, "--mask", originals / "mask.png")
    models = saved("text to image", make("")), saved(f"sd {kind}", make(kind))
    for name, model in zip(("plain", "own"), models, strict=True):
        generate(*words, "--model", model, "--out", tmp_path / name)
    made, own = (frames_of(tmp_path / name / "a-0.png") for name in ("plain", "own"))
    assert made.shape == (1, 32, 48, 3)
    assert numpy.array_equal(made, own)
    generate("--from", tmp_path / "plain" / "a-0.png", "--out", tmp_path / "again")
    assert numpy.array_equal(frames_of(tmp_path / "again" / "a-0.png"), made)


def test_a_pipeline_without_such_a_sibling_says_so(saved, originals, tmp_path):
    words = ("a", "--model", saved("animatediff"), "--image", originals / "in.png")
    line = run_for_error("generate", *words, "--out", tmp_path / "o")
    assert "takes no image; it takes" in line
    assert not (tmp_path / "o").exists()


def test_comparison_from_a_picture(saved, originals, tmp_path, monkeypatch):
    def make(files):
        return tiny.sd_pipeline(files, kind="StableDiffusionImg2ImgPipeline")

    words = (
        "a",
        "--model",
        saved("img2img", make),
        "--image",
        originals / "in.png",
        "--steps",
        8,
    )
    words = (*words, "--set", "strength=0.3", "--out", tmp_path, "--compare")
    said = []

    def sheet(dense, patched, foot):
        said.append((dense[1], patched[1], foot[-1]))
        return dense[0]

    monkeypatch.setattr(captions, "side_by_side", sheet)
    generate(*words, "--budget", 64)
    [numbers] = generate(*words, "--factor", 2)["images"]
    assert len(numbers["step_seconds"]["dense"]) == 2  # of 8 steps the last 0.3
    assert numbers["psnr_db"] > 5
    inside = numbers["predicted_speedup"]
    [late] = generate(*words, "--factor", 2, "--start", 0.875)["images"]  # one of the two
    assert late["predicted_speedup"] == pytest.approx(2 / (1 + 1 / inside), abs=2e-3)
    assert all("2 of 8 steps" in foot for *_, foot in said)
    assert all(patched.startswith("factor 2, 32 anchors: ") for _, patched, _ in said)
    monkeypatch.setattr("tokendown.config.AUTO_BUDGET", 64)
    generate(*words)
    assert said[-1][1].startswith("auto (factor 2, 32 anchors): ")


def test_a_film_from_a_picture(saved, originals, tmp_path):
    words = (
        "--model",
        saved("svd"),
        "--image",
        originals / "in.png",
        "--steps",
        2,
        "--factor",
        2,
    )
    words = (*words, "--size", "32x24", "--frames", 3, "--out", tmp_path)
    generate(*words, "--set", "motion_bucket_id=20", "--set", "noise_aug_strength=0.1")
    made = tmp_path / "picture-0.png"
    assert frames_of(made).shape == (3, 24, 32, 3)
    assert pictures.read_settings(made)["fps"] == 7  # the pipeline's own, which it conditions on
    generate("--from", made, "--out", tmp_path / "again")
    assert numpy.array_equal(frames_of(tmp_path / "again" / made.name), frames_of(made))
    generate("--from", made, "--fps", 20, "--out", tmp_path / "fast")
    assert not numpy.array_equal(frames_of(tmp_path / "fast" / made.name), frames_of(made))
    assert "takes no prompt" in run_for_error("generate", "a cat", *words)
    assert "min_guidance_scale" in run_for_error("generate", *words, "--guidance", 3)


def test_pictures_that_are_none(saved, originals, tmp_path):
    (tmp_path / "text.png").write_text("hello")
    words = ("generate", "a", "--model", saved("pix2pix"), "--image")
    assert "not a readable picture" in run_for_error(*words, tmp_path / "text.png")
    assert "no such file" in run_for_error(*words, tmp_path / "gone.png")
    assert "give --image" in run_for_error("generate", "a", "--mask", originals / "mask.png")


# Joint attention, and what its pipelines call their arguments


def test_flux(saved, tmp_path):
    words = (
        "a cat",
        "--model",
        saved("flux"),
        "--steps",
        2,
        "--dense",
        "--out",
        tmp_path,
    )
    generate(*words, "--size", "32x24", "--guidance", 2, "--set", "prompt_2=a dog")
    made = tmp_path / "a-cat-0.png"
    assert frames_of(made).shape == (1, 24, 32, 3)
    generate("--from", made, "--out", tmp_path / "again")
    assert numpy.array_equal(frames_of(tmp_path / "again" / made.name), frames_of(made))
    generate("--from", made, "--guidance", 9, "--out", tmp_path / "more")
    assert not numpy.array_equal(frames_of(tmp_path / "more" / made.name), frames_of(made))
    line = run_for_error("generate", *words, "--size", "36x26")
    assert "multiples of 4, such as 36x24" in line or "such as 36x28" in line
    line = run_for_error("generate", *words, "-n", "blur")
    assert "no effect" in line
    assert "--set true_cfg_scale=4" in line
    line = run_for_error("generate", *words, "--set", "true_cfg_scale=4")
    assert "without a negative prompt" in line
    generate(*words, "--size", "32x24", "-n", "blur", "--set", "true_cfg_scale=4")
    assert not numpy.array_equal(frames_of(tmp_path / "a-cat-0-2.png"), frames_of(made))


def test_flux_without_guidance(saved, tmp_path):
    def make(files):
        return tiny_pipelines.flux(files, guidance_embeds=False)

    words = (
        "a",
        "--model",
        saved("schnell", make),
        "--steps",
        1,
        "--dense",
        "--size",
        "16x16",
    )
    words = (*words, "--out", tmp_path)
    assert "ignores guidance_scale" in run_for_error("generate", *words, "--guidance", 2)
    generate(*words)
    assert pictures.read_settings(tmp_path / "a-0.png")["guidance"] is None
    generate("--from", tmp_path / "a-0.png", "--out", tmp_path / "again")


def test_flux_kontext_makes_the_size_that_was_asked_for(saved, tmp_path):
    """Its call scales every size to a million pixels, unless it is told another area."""

    def make(files):
        return tiny_pipelines.flux(files, kind="FluxKontextPipeline")

    words = (
        "a",
        "--model",
        saved("kontext", make),
        "--steps",
        1,
        "--dense",
        "--size",
        "32x16",
    )
    generate(*words, "--out", tmp_path)
    assert frames_of(tmp_path / "a-0.png").shape == (1, 16, 32, 3)


def test_sd3(saved, tmp_path):
    words = ("a cat", "--model", saved("sd3"), "--steps", 2, "--dense", "--out", tmp_path)
    generate(*words, "-n", "blur")
    made = tmp_path / "a-cat-0.png"
    assert frames_of(made).shape == (1, 32, 32, 3)  # its native size
    generate("--from", made, "--out", tmp_path / "again")
    assert numpy.array_equal(frames_of(tmp_path / "again" / made.name), frames_of(made))
    assert "multiples of 4" in run_for_error("generate", *words, "--size", "30x32")
    assert "no effect" in run_for_error("generate", *words, "-n", "x", "--guidance", 1)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--set", "strength"), "expected --set NAME=VALUE"),
        (("--set", "strength=0.5"), "takes no strength; it takes prompt, prompt_2"),
        (("--set", "guidance_scale=2"), "that is --guidance"),
        (("--set", "output_type=latent"), "takes no output_type"),
        (("--set", "prompt_embeds=[1]"), "takes no prompt_embeds"),
        (("--set", "true_cfg_scale=much"), "expected a value such as 1.0"),
        (
            ("--set", "true_cfg_scale=NaN"),
            "true_cfg_scale: expected a finite number, got NaN",
        ),
        (("--set", "true_cfg_scale=1e999"), "expected a finite number, got 1e999"),
        (("--set", "true_cfg_scale={}"), "a number, text"),
        (("--frames", "3"), "makes still pictures"),
        (("--fps", "3"), "makes still pictures"),
        (("--frames", "0"), "at least 1 frame"),
        (("--fps", "0"), "more than 0"),
    ],
)
def test_what_a_call_does_not_take_is_refused(saved, tmp_path, words, part):
    line = run_for_error("generate", "a", "--model", saved("flux"), *words, "--out", tmp_path / "o")
    assert part in line
    assert not (tmp_path / "o").exists()


def test_a_star_of_a_call_is_no_argument():
    class Pipe:
        def __call__(self, prompt="", eta=0.0, **kwargs): ...

    with pytest.raises(ConfigError, match=r"Pipe takes no kwargs; it takes prompt, eta$"):
        check_pipeline(Pipe(), Request("a", parameters={"kwargs": 3}))


def test_values_are_read_as_json_or_as_text():
    assert parse_parameters(["a=1", "b=0.5", "c=true", "d=a = b", "e=[7, 8]", 'f="1"']) == {
        "a": 1, "b": 0.5, "c": True, "d": "a = b", "e": [7, 8], "f": "1",
    }  # fmt: skip
