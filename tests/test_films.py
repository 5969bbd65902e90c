"""``tokendown generate`` and ``summary`` for films: exact repeats, files, sizes and lengths."""

from __future__ import annotations

import json
from importlib import util

import numpy
import pytest
from PIL import Image, ImageSequence
from tests import joint_pipelines, tiny, tiny_pipelines
from tests.test_cli import png_names, run, run_for_error
from torch import nn

from tokendown import pictures, summary, videos
from tokendown._errors import LoadError
from tokendown.models import blueprint


def frames_of(path):
    """[F, H, W, 3]; an equal neighbour is a longer frame in the file."""
    with Image.open(path) as image:
        shown = [
            (numpy.array(frame.convert("RGB")), frame.info.get("duration", 0))
            for frame in ImageSequence.Iterator(image)
        ]
    shortest = min(duration for _, duration in shown) or 1
    return numpy.stack(
        [frame for frame, duration in shown for _ in range(max(1, round(duration / shortest)))]
    )


def generate(*words, code=0):
    """The record of one command that prints JSON."""
    return json.loads(run("generate", *words, "--json", code=code)[0])


# Films


def test_a_film_and_the_same_again(saved, tmp_path):
    words = ("a cat", "-n", "blur", "--model", saved("animatediff"), "--steps", 2,
             "--size", "40x24", "--factor", 2, "--frames", 5, "--fps", 4)  # fmt: skip
    record = generate(*words, "--seed", 7, "--out", tmp_path / "made")
    made = tmp_path / "made" / "a-cat-7.png"
    assert record["images"][0]["path"] == str(made)
    assert frames_of(made).shape == (5, 24, 40, 3)
    with Image.open(made) as image:
        assert image.n_frames == 5
        assert image.info["duration"] == 250
    generate("--from", made, "--out", tmp_path / "again")
    again = tmp_path / "again" / "a-cat-7.png"
    assert numpy.array_equal(frames_of(again), frames_of(made))
    ours, theirs = (pictures.read_settings(path) for path in (again, made))
    assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    assert (ours["frames"], ours["fps"], ours["pipeline"]) == (5, 4, "AnimateDiffPipeline")
    assert set(ours["versions"]) == {"tokendown", "torch", "diffusers", "transformers"}
    generate("--from", made, "--dense", "--out", tmp_path / "dense")
    assert not numpy.array_equal(frames_of(tmp_path / "dense" / made.name), frames_of(made))


def test_the_film_is_what_the_pipeline_makes(saved, originals, tmp_path):
    """Against a call by hand of a pipeline that was never near tokendown."""
    generate("a cat", "--model", saved("animatediff"), "--steps", 2, "--size", "40x24",
             "--dense",
             "--frames", 3, "--guidance", 3, "--out", tmp_path)  # fmt: skip
    pipe = tiny_pipelines.animatediff(originals / "tokenizer")
    pipe.set_progress_bar_config(disable=True)
    [frames] = pipe(
        "a cat", num_frames=3, width=40, height=24, num_inference_steps=2, guidance_scale=3.0,
        generator=tiny.torch.Generator().manual_seed(0),
    ).frames  # fmt: skip
    expected = numpy.stack([numpy.array(frame) for frame in frames])
    assert numpy.array_equal(frames_of(tmp_path / "a-cat-0.png"), expected)


def test_comparison_of_films(saved, tmp_path):
    words = ("a cat", "--model", saved("animatediff"), "--steps", 2, "--size", "40x24",
             "--frames", 3, "--out", tmp_path)  # fmt: skip
    [numbers] = generate(*words, "--factor", 2, "--anchors", 3, "--compare")["images"]
    names = [f"a-cat-0-{part}.png" for part in ("compare", "dense", "patched")]
    assert png_names(tmp_path) == names
    sheet, dense, patched = (frames_of(tmp_path / name) for name in names)
    assert dense.shape == (3, 24, 40, 3)
    assert len(sheet) == 3
    assert sheet.shape[2] > 2 * 40
    error = ((dense / 255.0 - patched / 255.0) ** 2).mean()
    assert numbers["psnr_db"] == pytest.approx(-10 * numpy.log10(error), abs=0.01)
    assert len(numbers["frames"]["psnr_db"]) == 3
    assert numbers["ssim"] == pytest.approx(numpy.mean(numbers["frames"]["ssim"]), abs=1e-3)
    assert numbers["keys"][0] == {"grid": "12x20", "layers": 3, "before": 240, "after": 63}
    run("generate", "--from", tmp_path / names[0], "--out", tmp_path / "again")
    assert numpy.array_equal(frames_of(tmp_path / "again" / names[2]), patched)


def test_equal_frames_stay_exact(tmp_path):
    image = [Image.new("RGB", (4, 4), name) for name in ("red", "red", "blue", "blue", "red")]
    [path] = pictures.save(tmp_path, "x", {"": (image, {"a": 1})}, fps=16)
    expected = numpy.stack([numpy.array(frame) for frame in image])
    with Image.open(path) as file:
        durations = [frame.info["duration"] for frame in ImageSequence.Iterator(file)]
    assert sum(durations) == pytest.approx(5 * 62.5, abs=3)
    assert numpy.array_equal(expected[[0, 2, 4]], frames_of(path)[[0, 2, -1]])
    assert pictures.read_settings(path) == {"a": 1}


def test_wan_film(saved, tmp_path):
    words = ("a cat", "--model", saved("wan"), "--steps", 2, "--dense", "--out", tmp_path)
    generate(*words, "--frames", 5, "--size", "48x32")
    made = frames_of(tmp_path / "a-cat-0.png")
    assert made.shape == (5, 32, 48, 3)
    settings = pictures.read_settings(tmp_path / "a-cat-0.png")
    assert (settings["fps"], settings["guidance"]) == (16, 5)
    generate("--from", tmp_path / "a-cat-0.png", "--out", tmp_path / "again")
    assert numpy.array_equal(frames_of(tmp_path / "again" / "a-cat-0.png"), made)
    assert "4k + 1 frames, such as 5" in run_for_error("generate", *words, "--frames", 6)
    assert "multiples of 16, such as 48x32" in run_for_error("generate", *words, "--size", "50x30")


def test_wan_defaults_come_from_its_call(originals):
    from tokendown.request import Request
    from tokendown.sizes import fitting_fps, fitting_frames, fitting_size

    pipe = tiny_pipelines.wan(originals / "tokenizer")
    assert fitting_size(pipe, Request("a")) == (832, 480)
    assert fitting_frames(pipe, Request("a")) == 81
    assert fitting_fps(pipe, Request("a")) == 16
    tall = Request("a", image=str(originals / "mask.png"))  # 40 x 24: the area stays, not the shape
    assert fitting_size(pipe, tall) == (816, 496)


def test_too_many_frames_for_a_motion_model(saved, tmp_path):
    words = ("a", "--model", saved("animatediff"), "--frames", 9, "--out", tmp_path)
    assert "at most 8" in run_for_error("generate", *words)


def test_films_in_mp4_need_a_package(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    words = (
        "a",
        "--model",
        saved("animatediff"),
        "--format",
        "mp4",
        "--out",
        tmp_path / "out",
    )
    assert "pip install 'tokendown[video]'" in run_for_error("generate", *words)
    assert "expected a format of png, mp4" in run_for_error("generate", "a", "--format", "gif")
    assert not (tmp_path / "out").exists()


def test_settings_in_an_mp4_file(tmp_path):
    film = tmp_path / "x.mp4"
    film.write_bytes(_box(b"ftyp", b"isom" * 2) + _box(b"mdat", b"\0" * 50, wide=True))
    with pytest.raises(LoadError, match="no settings of tokendown"):
        pictures.read_settings(film)
    with film.open("ab") as file:
        file.write(_box(b"uuid", b"x" * 40) + videos.settings_box(json.dumps({"prompt": "é"})))
    assert pictures.read_settings(film) == {"prompt": "é"}
    film.write_bytes(film.read_bytes()[:-3])
    with pytest.raises(LoadError, match="not a readable"):
        pictures.read_settings(film)
    film.write_bytes(b"not at all a film")
    with pytest.raises(LoadError, match="not a readable"):
        pictures.read_settings(film)


def _box(kind, payload, wide=False):
    if wide:
        return (1).to_bytes(4, "big") + kind + (16 + len(payload)).to_bytes(8, "big") + payload
    return (8 + len(payload)).to_bytes(4, "big") + kind + payload


def test_mp4_files(saved, tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    words = ("a cat", "--model", saved("animatediff"), "--steps", 1, "--size", "40x24",
             "--dense",
             "--frames", 3)  # fmt: skip
    generate(*words, "--format", "mp4", "--out", tmp_path)
    film = tmp_path / "a-cat-0.mp4"
    assert film.read_bytes()[4:8] == b"ftyp"
    import imageio_ffmpeg

    assert imageio_ffmpeg.count_frames_and_secs(str(film))[0] == 3
    generate("--from", film, "--format", "png", "--out", tmp_path)
    generate(*words, "--out", tmp_path / "direct")
    again, direct = (frames_of(each / "a-cat-0.png") for each in (tmp_path, tmp_path / "direct"))
    assert numpy.array_equal(again, direct)


# summary


def test_summary_counts_the_frames(saved):
    words = (
        "summary",
        "--model",
        saved("svd"),
        "--size",
        "32x24",
        "--factor",
        2,
        "--json",
    )
    few, many = (json.loads(run(*words, "--frames", frames)[0]) for frames in (4, 8))
    assert (few["frames"], many["frames"]) == (4, 8)
    assert many["layers"][0]["flops_before"] == 2 * few["layers"][0]["flops_before"]
    assert many["layers"][0]["grid"] == few["layers"][0]["grid"] == [12, 16]


def test_scales_from_configurations_alone(saved):
    """Against what the pipelines of diffusers say of themselves."""
    ernie = joint_pipelines.case("ErnieImagePipeline").pipe
    assert ernie.vae_scale_factor == 4
    saved("ernie_image", lambda _: ernie)
    for name, expected in (("wan", (8, 4)), ("flux", (2, None)), ("ernie_image", (4, None))):
        _, spatial = blueprint.load_skeleton(str(saved(name)))
        assert (spatial, blueprint.frame_scale(str(saved(name)))) == expected


@pytest.mark.parametrize(
    ("vae", "expected"),
    [
        ("AutoencoderKLWan", (8, 4)),
        ("AutoencoderKLQwenImage", (8, None)),
        ("AutoencoderKLLTXVideo", (32, 8)),
        ("AutoencoderKLHunyuanVideo", (8, 4)),
        ("AutoencoderKLCogVideoX", (8, 4)),
        ("AutoencoderKLMochi", (8, 6)),
    ],
)
def test_scales_of_published_vaes(vae, expected):
    """A configuration may leave out what is a default of its class; numbers of the model cards."""
    levels = {"block_out_channels": (128, 256, 256, 512)} if vae.endswith("CogVideoX") else {}
    assert blueprint._vae_scales({"_class_name": vae, **levels}) == expected


def test_summary_of_a_pipeline_counts_latent_frames():
    class Pipe:
        unet = tiny.svd_unet()
        vae_scale_factor_spatial, vae_scale_factor_temporal = 2, 4

    result = summary(Pipe(), height=24, width=32, frames=9)
    alone = summary(tiny.svd_unet(), height=24, width=32, scale=2, frames=3)
    assert result.step_flops_before == alone.step_flops_before
    assert "9 frames" in str(result)
    assert isinstance(Pipe.unet, nn.Module)
