"""Loading, sampling and saving: exact repetition, and one clear error for what goes wrong."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import diffusers
import numpy
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import save_file
from tests import tiny
from tests.compat.ldm import original_names

from tokendown import (
    ConfigError,
    NothingPatchedError,
    PatchConfig,
    captions,
    is_patched,
    pictures,
)
from tokendown._errors import LoadError, RunError
from tokendown.calls import check_pipeline
from tokendown.generate import Request, compare, describe, make_picture, open_pipeline
from tokendown.models import blueprint, loading
from tokendown.models.sources import kind_of, pick_device, pick_dtype
from tokendown.sizes import fitting_size
from tokendown.summary import summary

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline folder with sharp random weights; 2 pixels a latent pixel, native size 32."""
    place = tmp_path_factory.mktemp("model")
    tiny.sd_pipeline(place / "tokenizer-files").save_pretrained(place / "pipe")
    return place / "pipe"


@pytest.fixture(scope="module")
def opened(folder):
    request = Request("a cat", model=str(folder), steps=2, config=PatchConfig(factor=2))
    return open_pipeline(replace(request, width=40, height=24))


def pixels(image):
    return numpy.array(image)


# Requests


def test_a_request_survives_json():
    request = Request("é", width=16, height=8, guidance=3.0, config=PatchConfig(factor={1: 4}))
    assert Request.from_dict(json.loads(json.dumps(request.to_dict()))) == request
    dense = Request(config=None)
    assert Request.from_dict(json.loads(json.dumps(dense.to_dict()))) == dense


@pytest.mark.parametrize("damage", [{"seed": "7"}, {"prompt": None}, {"model": 3}, {"config": 1}])
def test_damaged_settings_are_named(damage):
    with pytest.raises(LoadError, match=f"no usable {next(iter(damage))}"):
        Request.from_dict({**Request("a").to_dict(), **damage})


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"seed": -1}, {"width": 8}])
def test_requests_out_of_range(wrong):
    with pytest.raises(ConfigError):
        Request(**wrong)


# Pictures


def test_defaults_are_filled_in(folder):
    _, request = open_pipeline(Request("a cat", model=str(folder)))
    assert (request.width, request.height) == (32, 32)
    assert (request.steps, request.guidance) == (50, 7.5)
    assert (request.device, request.dtype) == (str(pick_device()), "float32")


def test_the_same_request_gives_the_same_pixels_and_the_patch_is_gone(opened):
    pipe, request = opened
    first, again = make_picture(pipe, request), make_picture(pipe, request)
    assert first.image.size == (40, 24)
    assert numpy.array_equal(pixels(first.image), pixels(again.image))
    assert not is_patched(pipe)
    for other in (replace(request, seed=1), replace(request, config=None)):
        assert not numpy.array_equal(pixels(first.image), pixels(make_picture(pipe, other).image))


def test_progress_and_seconds(opened):
    pipe, request = opened
    told = []
    picture = make_picture(pipe, request, lambda done, steps: told.append((done, steps)))
    assert told == [(1, 2), (2, 2)]
    assert 0 < picture.denoising_seconds < picture.seconds


def test_comparison_is_the_dense_and_the_patched_picture(opened):
    pipe, request = opened
    told = []
    result = compare(pipe, request, lambda *done: told.append(done))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    dense = make_picture(pipe, replace(request, config=None))
    assert numpy.array_equal(pixels(result.dense.image), pixels(dense.image))
    patched = make_picture(pipe, request)
    assert numpy.array_equal(pixels(result.patched.image), pixels(patched.image))
    assert result.predicted_speedup == pytest.approx(result.summary.predicted_speedup)
    assert result.summary.predicted_speedup > 1
    assert not is_patched(pipe)
    window = replace(request, config=PatchConfig(factor=2, start=0.5))  # one of two steps
    plan = summary(pipe, window.config, height=window.height, width=window.width)
    result = replace(result, patched=replace(patched, request=window), summary=plan)
    whole = result.summary.predicted_speedup
    assert result.predicted_speedup == pytest.approx(2 / (1 + 1 / whole))


def test_nothing_to_patch(opened):
    pipe, request = opened
    with pytest.raises(NothingPatchedError, match="no self-attention at downsampling 16"):
        make_picture(pipe, replace(request, config=PatchConfig(factor={16: 2})))
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare(pipe, replace(request, config=None))


# What a pipeline needs


def test_sizes(folder):
    pipe, request = open_pipeline(Request("a", model=str(folder)))
    with pytest.raises(ConfigError, match="multiples of 8, such as 32x24"):
        fitting_size(pipe, replace(request, width=33, height=26))
    with pytest.raises(ConfigError, match="such as 8x8"):
        fitting_size(pipe, replace(request, width=0, height=8))


def test_sizes_of_a_transformer_with_patches():
    class Pipe:
        def __call__(self, prompt=None, width=None, height=None): ...

    pipe = Pipe()
    pipe.transformer, pipe.vae_scale_factor = tiny.pixart(), 8
    assert fitting_size(pipe, Request()) == (128, 128)
    with pytest.raises(ConfigError, match="multiples of 16"):
        fitting_size(pipe, Request(width=24, height=32))


def test_a_pipeline_that_takes_less_than_was_asked_for():
    class Bare:
        def __call__(self, prompt=None, clip_skip=None): ...

    for extra in ({"negative_prompt": "x"}, {"guidance": 2.0}, {"steps": 2}, {"image": "x.png"}):
        with pytest.raises(ConfigError, match=r"takes no .*; it takes prompt, clip_skip$"):
            check_pipeline(Bare(), Request("a", **extra))


@pytest.mark.parametrize(
    "error",
    [torch.cuda.OutOfMemoryError("x"), MemoryError(), RuntimeError("can't allocate memory")],
)
def test_out_of_memory_says_the_size_and_what_to_try(opened, monkeypatch, error):
    pipe, request = opened

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(type(pipe.unet), "forward", fail)
    with pytest.raises(RunError, match=r"40x24 as float32 on cpu; try a smaller --size, --dt"):
        make_picture(pipe, request)
    assert not is_patched(pipe)


def test_any_other_failure_of_a_pipeline_is_one_line(opened):
    pipe, request = opened
    with pytest.raises(RunError, match=r"Pipeline failed with IndexError: index 1000"):
        make_picture(pipe, replace(request, steps=1000))  # steps_offset=1 asks for step 1000


def test_devices_and_dtypes():
    with pytest.raises(ConfigError, match=r"no device 'toaster' here; found: .*cpu"):
        pick_device("toaster")
    with pytest.raises(ConfigError, match="expected a dtype of float32"):
        pick_dtype("float8", torch.device("cpu"))
    assert pick_dtype("auto", torch.device("cuda")) == torch.float16


# Loading


@pytest.mark.parametrize("name", ["model.ckpt", "pytorch_model.bin", "x.pt", "a/b.pth"])
def test_formats_that_can_run_code_are_refused(name):
    with pytest.raises(LoadError, match="can run code"):
        kind_of(name)


def test_kinds_of_models(tmp_path):
    assert kind_of("owner/name-1.5") == "hub"
    assert kind_of(str(tmp_path)) == "folder"
    for wrong in ("no such thing", "a/b/c", "../x", "gone.safetensors", "a/gone.safetensors"):
        with pytest.raises(LoadError, match="no such file or folder"):
            kind_of(wrong)


def test_a_folder_that_is_no_pipeline(tmp_path):
    with pytest.raises(LoadError, match=r"no model_index\.json"):
        loading.load_pipeline(str(tmp_path), **CPU)


def copy_of(folder, tmp_path):
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.save_pretrained(tmp_path / "copy")
    return tmp_path / "copy"


def test_a_broken_checkpoint_is_one_line(folder, tmp_path):
    broken = copy_of(folder, tmp_path)
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(LoadError, match="cannot load the model") as caught:
        loading.load_pipeline(str(broken), **CPU)
    assert "\n" not in str(caught.value)


def test_missing_weights_are_an_error(folder, tmp_path):
    broken = copy_of(folder, tmp_path)
    weights = dict(tiny.sd_unet().state_dict())
    del weights["conv_in.bias"]
    save_file(weights, broken / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(LoadError, match=r"conv_in\.bias|missing"):
        loading.load_pipeline(str(broken), **CPU)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_pickled_weights_are_not_opened(folder, tmp_path, part):
    pickled = copy_of(folder, tmp_path)
    [weights] = (pickled / part).glob("*.safetensors")
    torch.save({"x": torch.zeros(1)}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(LoadError, match="safetensors"):
        loading.load_pipeline(str(pickled), **CPU)


def test_a_hub_id_without_network(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host\nand a long story")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", offline)
    with pytest.raises(LoadError, match=r"^owner/name: no such folder here, and the Hub did not"):
        loading.load_pipeline("owner/name", **CPU)


def test_a_checkpoint_with_the_denoiser_alone(folder, tmp_path):
    weights = original_names(tiny.sd_unet(seed=5).state_dict(), 1)
    path = tmp_path / "other.safetensors"
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
    pipe = loading.load_pipeline(str(path), base=str(folder), **CPU)
    for name, value in tiny.sd_unet(seed=5).state_dict().items():
        assert torch.equal(pipe.unet.state_dict()[name], value)
    with pytest.raises(LoadError, match="--base"):
        loading.load_pipeline(str(path), base=str(tmp_path), **CPU)


def test_a_single_file_that_is_no_checkpoint(folder, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"not at all")
    with pytest.raises(LoadError, match="cannot load the model"):
        loading.load_pipeline(str(tmp_path / "x.safetensors"), base=str(folder), **CPU)


# LoRA


def lora_weights(prefix="unet", channels=8):
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k"
    return {
        f"{prefix}.{layer}.lora_A.weight": torch.ones(2, channels),
        f"{prefix}.{layer}.lora_B.weight": torch.ones(channels, 2),
    }


def test_a_lora_changes_the_weights(folder, tmp_path):
    save_file(lora_weights(), tmp_path / "lora.safetensors")
    plain = loading.load_pipeline(str(folder), **CPU)
    pipe = loading.load_pipeline(str(folder), lora=str(tmp_path / "lora.safetensors"), **CPU)
    assert loading.fingerprint(pipe) != loading.fingerprint(plain)
    assert not torch.equal(tiny.image_of(pipe), tiny.image_of(plain))


@pytest.mark.parametrize("weights", [lora_weights("elsewhere"), lora_weights(channels=5)])
def test_a_lora_of_another_model_is_an_error(folder, tmp_path, weights):
    save_file(weights, tmp_path / "lora.safetensors")
    with pytest.raises(LoadError, match="the LoRA"):
        loading.load_pipeline(str(folder), lora=str(tmp_path / "lora.safetensors"), **CPU)


# Architectures without weights


def test_blueprint_needs_the_configuration_only(folder, tmp_path):
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        text = (folder / part / "config.json").read_text()
        (tmp_path / part / "config.json").write_text(text)
    denoiser, scale = blueprint.load_skeleton(str(tmp_path))
    assert type(denoiser).__name__ == "UNet2DConditionModel"
    assert scale == 2
    assert all(weight.is_meta for weight in denoiser.parameters())
    _, scale = blueprint.load_skeleton(str(tmp_path / "unet"))
    assert scale is None


def test_blueprint_from_the_hub_stops_at_the_first_sign_of_no_network(folder, monkeypatch):
    asked = []

    def download(repository, name):
        asked.append(name)
        if name == "unet/config.json":
            raise EntryNotFoundError("no such file")
        if name == "vae/config.json":
            raise LocalEntryNotFoundError("no network")
        return str(folder / "unet" / "config.json")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(LoadError, match=r"did not give its vae/config.json \(LocalEntry"):
        blueprint.load_skeleton("owner/name")
    assert asked == ["unet/config.json", "transformer/config.json", "vae/config.json"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"_class_name": "os"}', "no model class os"),
        ('{"_class_name": "DiffusionPipeline"}', "no model class"),
        ("{", "config.json"),
        ('{"_class_name": "UNet2DConditionModel", "down_block_types": ["x"]}', "cannot build"),
    ],
)
def test_blueprint_of_a_wrong_configuration(tmp_path, text, match):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(LoadError, match=match):
        blueprint.load_skeleton(str(tmp_path))


def test_the_built_in_model_is_a_folder_like_another():
    denoiser, scale = blueprint.load_skeleton("built-in")
    assert (scale, denoiser.config.sample_size * scale) == (4, 256)
    assert blueprint.frame_scale("built-in") is None


# Files


def test_settings_come_back(opened, tmp_path):
    pipe, request = opened
    picture = make_picture(pipe, request)
    [path] = pictures.save(tmp_path / "new", "x", {"": (picture.image, describe(pipe, picture))})
    settings = pictures.read_settings(path)
    assert Request.from_dict(settings) == request
    assert settings["scheduler"] == "DDIMScheduler"
    assert set(settings["versions"]) == {"tokendown", "torch", "diffusers", "transformers"}
    assert numpy.array_equal(pixels(Image.open(path)), pixels(picture.image))


def test_nothing_is_overwritten(tmp_path):
    red, blue = (Image.new("RGB", (4, 4), name) for name in ("red", "blue"))
    assert pictures.save(tmp_path, "x", {"-a": (red, {})})[0].name == "x-a.png"
    both = pictures.save(tmp_path, "x", {"-a": (blue, {}), "-b": (blue, {})})
    assert [path.name for path in both] == ["x-2-a.png", "x-2-b.png"]
    assert Image.open(tmp_path / "x-a.png").getpixel((0, 0)) == (255, 0, 0)


def without_links(*_):
    raise OSError(1, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("meanwhile", [True, False])
def test_one_of_several_names_is_taken(tmp_path, monkeypatch, links, meanwhile):
    """From the start, or by another process after all names were looked up."""
    image, taken = Image.new("RGB", (4, 4), "red"), tmp_path / "x-b.png"
    real = os.chmod

    def chmod(draft, mode):
        if len(list(tmp_path.glob("x-a*"))) == 1:
            taken.write_text("theirs")
        real(draft, mode)

    if not links:
        monkeypatch.setattr(os, "link", without_links)
    if meanwhile and links:
        monkeypatch.setattr(os, "chmod", chmod)
    else:
        taken.write_text("theirs")
    both = pictures.save(tmp_path, "x", {"-a": (image, {"n": 1}), "-b": (image, {"n": 2})})
    assert [path.name for path in both] == ["x-2-a.png", "x-2-b.png"]
    assert [pictures.read_settings(path)["n"] for path in both] == [1, 2]
    assert sorted(tmp_path.iterdir()) == sorted([*both, taken])
    assert taken.read_text() == "theirs"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_save_that_fails_in_the_middle_leaves_nothing(tmp_path, monkeypatch, error):
    real = os.link

    def link(draft, name):
        if name.name == "x-b.png":
            raise error
        real(draft, name)

    def replace(*_):
        raise error

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "replace", replace)
    image = Image.new("RGB", (4, 4))
    with pytest.raises((KeyboardInterrupt, RunError)):
        pictures.save(tmp_path, "x", {"-a": (image, {}), "-b": (image, {})})
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", without_links)
    [path] = pictures.save(tmp_path, "x", {"": (Image.new("RGB", (4, 4)), {"a": 1})})
    assert pictures.read_settings(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_names_stay_in_the_folder():
    assert pictures.stem_for("../../etc/passwd\0", 7) == "etc-passwd-7"
    assert pictures.stem_for("火", 7) == "picture-7"
    assert len(pictures.stem_for("long " * 99, 7)) < 50


def test_folders_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        pictures.check_folder(tmp_path / "file" / "deeper")
    pictures.check_folder(tmp_path / "not" / "yet")
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize("kind", ["gone", "text", "plain", "damaged", "list"])
def test_pictures_without_settings(tmp_path, kind):
    path = tmp_path / "x.png"
    if kind == "text":
        path.write_text("hello")
    elif kind != "gone":
        info = {"plain": {}, "damaged": {pictures.CHUNK: "{"}, "list": {pictures.CHUNK: "[]"}}[kind]
        chunks = pictures.PngInfo()
        for key, value in info.items():
            chunks.add_text(key, value)
        Image.new("RGB", (2, 2)).save(path, pnginfo=chunks)
    with pytest.raises(LoadError, match=r"x\.png"):
        pictures.read_settings(path)


def test_captions_are_outside_the_picture():
    image = Image.new("RGB", (64, 32), "red")
    pair = captions.side_by_side((image, "a"), (image, "a much longer text " * 3), ["foot"])
    assert (pixels(pair) == (255, 0, 0)).all(axis=-1).sum() == 2 * 64 * 32
