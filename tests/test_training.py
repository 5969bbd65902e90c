"""The training code, on sizes small enough to say whether it is right but not whether it learns."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("PIL")
pytest.importorskip("tokenizers")

from training import captions, data, evaluate, export, model, sample, state, train
from training.config import CPU, GPU, Stage, TextConfig, UnetConfig
from training.latents import Latents

TINY = dataclasses.replace(
    CPU,
    unet=UnetConfig(channels=(16, 16, 16, 16), head_dim=(16, 16, 16, 16)),
    text=TextConfig(vocabulary=600, width=16, layers=1, heads=1, length=8),
)
ENTRY = {
    "name": "WAVING HAND SIGN",
    "short_name": "wave",
    "short_names": ["wave"],
    "unified": "1F44B",
    "category": "People & Body",
    "subcategory": "hand-fingers-open",
    "skin_variations": {"1F3FB": {"unified": "1F44B-1F3FB"}},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return model.build_tokenizer(TINY, ["a dog", "blue"], tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def concepts(tmp_path):
    path = tmp_path / "emoji.json"
    path.write_text(json.dumps([ENTRY]))
    return captions.read_concepts(path, {"1f44b.webp", "1f44b-1f3fb.webp"}, everything=True)


def test_skin_tones_are_variants_of_one_concept_and_spelled_out(concepts):
    (wave,) = concepts
    assert [v.file for v in wave.variants] == ["1f44b.webp", "1f44b-1f3fb.webp"]
    text = captions.caption(wave, wave.variants[1], "blue", random.Random(0))
    assert "light skin tone" in text
    assert "blue background" in text


def test_only_the_default_background_goes_without_saying(concepts):
    rng = random.Random(0)
    for colour in captions.COLOURS:
        texts = [
            captions.caption(concepts[0], captions.Variant(""), colour, rng) for _ in range(40)
        ]
        named = [f"{colour} background" in text for text in texts]
        assert any(named)
        assert all(named) is (colour != captions.PLAIN_COLOUR)


def test_focus_names_are_unique():
    words = captions.Path(captions.__file__).with_name("focus.txt").read_text().split()
    assert len(words) == len(captions.FOCUS) > 50


def test_over_mixes_by_alpha():
    rgba = torch.tensor([255, 0, 0, 51], dtype=torch.uint8)[:, None, None]
    mixed = (data.over(rgba, torch.tensor([0.0, 0.0, 1.0])) + 1) / 2
    assert mixed.flatten().tolist() == pytest.approx([0.2, 0, 0.8], abs=1e-6)


def test_half_size_pictures_have_the_noise_of_averaged_full_size_ones():
    full, half = model.alphas()[:-1], model.alphas(door=True)[:-1]
    snr = (half / (1 - half)) / (full / (1 - full))
    assert snr[10:990].tolist() == pytest.approx([4.0] * 980, rel=1e-2)
    assert model.alphas()[-1] == model.alphas(door=True)[-1] == 0


@pytest.mark.parametrize(("size", "door"), [(64, False), (32, True), (64, True)])
def test_all_go_through_the_same_inner_levels(tokenizer, size, door):
    painter = model.Painter(TINY, tokenizer)
    tokens = model.to_tokens(tokenizer, ["a dog"])
    out = painter(torch.randn(1, 4, size, size), torch.tensor([500]), tokens, door)
    assert out.shape == (1, 4, size, size)
    out.square().mean().backward()
    assert painter.unet.mid_block.resnets[0].conv1.weight.grad.abs().sum() > 0
    top = painter.unet.down_blocks[0].attentions[0].proj_in.weight.grad
    assert (top is not None and bool(top.abs().sum() > 0)) is not door


def test_written_out_attention_is_the_same_function(tokenizer):
    unet = model.build_unet(TINY).eval()
    inputs = torch.randn(1, 4, 64, 64), torch.tensor([3]), torch.randn(1, 8, 16)
    with torch.no_grad():
        before = unet(*inputs).sample
        model.quick_on_cpu(unet)
        torch.testing.assert_close(unet(*inputs).sample, before, atol=1e-4, rtol=1e-3)


def test_prompts_are_padded_and_no_character_is_unknown(tokenizer):
    tokens = model.to_tokens(tokenizer, ["", "a dog, 7 #"])
    assert tokens.shape == (2, 8)
    assert tokens[0].tolist() == [tokenizer.bos_token_id] + [tokenizer.eos_token_id] * 7
    assert "7</w>" in tokenizer.tokenize("7")


def test_checkpoints_come_back_whole_from_small_files(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "SHARD_BYTES", 100)
    tensors = {str(i): torch.randn(10) for i in range(9)}
    for step in (1, 2):
        state.save(tmp_path / "c", tensors, {"step": step})
    back, meta = state.load(tmp_path / "c")
    assert meta == {"step": 2}
    assert len(list((tmp_path / "c").glob("*.safetensors"))) == 5
    assert all(torch.equal(back[k], v) for k, v in tensors.items())
    assert state.load(tmp_path / "none") == ({}, {})


def test_a_pause_lasts_as_long_as_its_file_and_a_kill_ends_it(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "PAUSE", tmp_path / "PAUSE")
    monkeypatch.setattr(state.time, "sleep", lambda _: state.PAUSE.unlink())
    state.PAUSE.touch()
    state.wait_while_paused(lambda: True)
    assert state.PAUSE.exists()
    state.wait_while_paused(lambda: False)
    assert not state.PAUSE.exists()


def test_stages_follow_one_another():
    stages = (Stage(10, 1, 1, ()), Stage(5, 1, 1, ()))
    config = dataclasses.replace(CPU, stages=stages)
    assert train.stage_at(config, 9) == (stages[0], 0.9)
    assert train.stage_at(config, 10) == (stages[1], 0.0)
    assert train.stage_at(config, 15) is None


@pytest.mark.parametrize("config", [CPU, GPU], ids=lambda config: config.name)
def test_what_ships_is_within_its_limit(tokenizer, config):
    with torch.device("meta"):
        parts = [model.build_unet(config), model.build_text_encoder(config, tokenizer)]
    words = config.text.vocabulary * config.text.width
    weights = sum(map(model.parameters_millions, parts)) * 1e6 + words
    autoencoder, vocabulary = 3e6, 0.5e6
    assert 2 * weights + autoencoder + vocabulary < export.LIMIT_BYTES


def test_sampling_ends_at_the_picture_that_a_perfect_model_sees(tokenizer):
    clean = torch.randn(1, 4, 32, 32)

    def perfect(x, t, tokens, door):
        a = model.alphas(door)[t[0]]
        noise = (x - a.sqrt() * clean) / (1 - a).sqrt()
        return a.sqrt() * noise - (1 - a).sqrt() * clean

    out = sample.sample(perfect, tokenizer, ["a dog"], size=32, door=True, steps=4)
    torch.testing.assert_close(out, clean, atol=1e-3, rtol=1e-3)


def test_shares_of_a_stage_add_up_and_the_first_trains_what_the_last_ships():
    for config in (CPU, GPU):
        for stage in config.stages:
            assert sum(batch.share for batch in stage.batches) == pytest.approx(1)
        assert all(batch.door for batch in config.stages[0].batches)
        assert any(
            not batch.door and batch.size == model.FULL for batch in config.stages[-1].batches
        )


def test_held_out_pairs_are_never_drawn(monkeypatch):
    concepts = [
        captions.Concept((f"thing {i}",), "", "", (captions.Variant("x"),)) for i in range(9)
    ]
    out = {(c, k) for c in concepts for k in captions.COLOURS if captions.held_out(c, k)}
    assert 0 < len(out) < 40
    assert all(colour != "white" for _, colour in out)
    pictures = object.__new__(data.Pictures)
    pictures.concepts, pictures.index = concepts, {"x": 0}
    seen = set()
    monkeypatch.setattr(pictures, "pick", lambda c, k, rng: seen.add((c, k)) or (0, k, ""))
    rng = random.Random(0)
    for _ in range(3000):
        pictures.draw(rng)
    assert not seen & out
    assert len(seen) == len(concepts) * len(captions.COLOURS) - len(out)


def test_background_is_read_from_the_corners():
    rgb = torch.tensor([captions.PALETTE["teal"], captions.PALETTE["pink"]], dtype=torch.uint8)
    pixels = rgb[:, :, None, None].repeat(1, 1, 256, 256)
    pixels[:, :, 40:200, 40:200] = 0
    assert evaluate.background(pixels) == ["teal", "pink"]


def test_latents_are_encoded_once(monkeypatch):
    class Pictures:
        def on(self, picture, colour):
            return torch.zeros(3, 256, 256)

    from training.autoencoder import build

    latents = Latents(Pictures(), build(CPU).requires_grad_(False))
    first = latents.batch([(0, "red"), (0, "red")], 32)
    monkeypatch.setattr(latents, "_encode", None)
    assert torch.equal(latents.batch([(0, "red")], 32)[0], first[1])
    assert first.shape == (2, 4, 32, 32)
