"""The training code, on sizes small enough to say whether it is right but not whether it learns."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("PIL")
pytest.importorskip("tokenizers")

from training import (
    autoencoder,
    captions,
    classifier,
    data,
    evaluate,
    export,
    graphs,
    judge,
    model,
    optimiser,
    sample,
    state,
    train,
    unpack,
)
from training.autoencoder import build
from training.config import CPU, GPU, Batch, Stage, TextConfig, UnetConfig
from training.latents import Latents

from device import needs_cuda
from older import release

TINY = dataclasses.replace(
    CPU,
    unet=UnetConfig(channels=(16, 32), head_dim=(16, 16)),
    text=TextConfig(vocabulary=600, width=24, layers=1, heads=1, length=8),
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
    return captions.read_concepts(path, {"1f44b.webp", "1f44b-1f3fb.webp"})


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


def test_names_in_the_lists_are_unique():
    folder = captions.Path(captions.__file__).parent
    words = [w for name in ("focus", "more") for w in (folder / f"{name}.txt").read_text().split()]
    assert len(words) == len(captions.short_names(("focus", "more"))) > 100


def test_lists_name_the_concepts_of_a_run(concepts, tmp_path, monkeypatch):
    path, files = tmp_path / "emoji.json", {"1f44b.webp"}
    assert captions.read_concepts(path, files, ("focus",)) == []
    monkeypatch.setattr(captions, "short_names", lambda subjects: frozenset({"wave"}))
    assert len(captions.read_concepts(path, files, ("focus",))) == 1


def test_over_mixes_by_alpha():
    rgba = torch.tensor([255, 0, 0, 51], dtype=torch.uint8)[:, None, None]
    mixed = (data.over(rgba, torch.tensor([0.0, 0.0, 1.0])) + 1) / 2
    assert mixed.flatten().tolist() == pytest.approx([0.2, 0, 0.8], abs=1e-6)


def test_half_size_pictures_have_the_noise_of_averaged_full_size_ones():
    full, half = model.alphas()[:-1], model.alphas(32)[:-1]
    snr = (half / (1 - half)) / (full / (1 - full))
    assert snr[10:990].tolist() == pytest.approx([4.0] * 980, rel=1e-2)
    assert model.alphas()[-1] == model.alphas(32)[-1] == 0
    assert torch.equal(model.alphas(128), model.alphas())  # as the pipeline samples them


def test_pixels_of_a_picture_meet_in_the_top_levels_self_attention_alone(tokenizer):
    unet = model.build_unet(TINY)
    looking = [
        name
        for name, part in unet.named_modules()
        if hasattr(part, "to_k") and part.to_k.in_features != TINY.text.width
    ]
    assert [name.split(".")[:2] for name in looking] == [
        ["down_blocks", "0"], ["up_blocks", "1"], ["up_blocks", "1"],
    ]  # fmt: skip
    assert all(name.endswith(".attn1") for name in looking)


@pytest.mark.parametrize("size", [32, 64])
def test_pictures_of_both_sizes_train_all_of_it(tokenizer, size):
    painter = model.Painter(TINY, tokenizer)
    tokens = model.to_tokens(tokenizer, ["a dog"])
    loss = train.v_loss(painter, torch.randn(1, 4, size, size), tokens, 1.0, Batch(size, 1, size))
    loss.backward()
    without = [n for n, p in painter.named_parameters() if p.grad is None]
    assert without == []


def test_a_window_is_drawn_from_little_noise_only(monkeypatch):
    seen = []

    def painter(x, t, tokens):
        seen.extend(t.tolist())
        return x

    torch.manual_seed(0)
    x = torch.randn(8, 4, 4, 4)
    for _ in range(20):
        train.v_loss(painter, x, None, 0.75, Batch(4, 8, 64, below=0.4))
    assert max(seen) < 400
    assert max(seen) > 350
    assert min(seen) < 50


def test_a_placed_subject_is_whole_and_of_the_asked_for_size():
    rgba = torch.zeros(4, 40, 40, dtype=torch.uint8)
    rgba[0], rgba[3] = 200, 255
    for side in (40, 20, 80):
        placed = data.Place(0.5, 1.0, 0.2).put(rgba, side)
        rows, columns = placed[3].any(dim=1).nonzero(), placed[3].any(dim=0).nonzero()
        assert placed.shape == (4, side, side)
        assert (rows.min(), rows.max()) == (side // 2, side - 1)
        assert (columns.min(), columns.max()) == (side // 10, side // 10 + side // 2 - 1)
        assert placed[0].unique().tolist() == [0, 200]
    assert torch.equal(data.Place(1.0, 0.3, 0.7).put(rgba, 40), rgba)


def test_a_placed_picture_is_laid_over_its_colour(shapes):
    there = data.Pictures.placed(shapes, 0, "teal", data.Place(1.0, 0.5, 0.5), 256)
    torch.testing.assert_close(there, shapes.on(0, "teal"), atol=0.005, rtol=0)


def test_places_differ_and_stay_within_their_bounds():
    rng = random.Random(0)
    places = [data.Place.draw(rng) for _ in range(200)]
    assert len(set(places)) == 200
    assert all(data.SCALES[0] <= p.scale <= data.SCALES[1] for p in places)
    assert all(0 <= side <= 1 for p in places for side in (p.down, p.right))


def test_written_out_attention_is_the_same_function(tokenizer):
    unet = model.build_unet(TINY).eval()
    inputs = torch.randn(1, 4, 64, 64), torch.tensor([3]), torch.randn(1, 8, 24)
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

    def perfect(x, t, tokens):
        a = model.alphas(32)[t[0]]
        noise = (x - a.sqrt() * clean) / (1 - a).sqrt()
        return a.sqrt() * noise - (1 - a).sqrt() * clean

    out = sample.sample(perfect, tokenizer, ["a dog"], size=32, steps=4)
    torch.testing.assert_close(out, clean, atol=1e-3, rtol=1e-3)


def test_shares_of_a_stage_add_up_and_the_last_trains_what_ships():
    for config in (CPU, GPU):
        for stage in config.stages:
            assert sum(batch.share for batch in stage.batches) == pytest.approx(1)
            assert all(batch.size <= batch.whole for batch in stage.batches)
            assert all(batch.below < 1 for batch in stage.batches if batch.size < batch.whole)
        assert any(b.size == b.whole == model.FULL for b in config.stages[-1].batches)


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
    assert judge.background(pixels) == ["teal", "pink"]


class Plain:
    """Pictures that are all of one colour."""

    def placed(self, picture, colour, place, side):
        return torch.zeros(3, side, side)

    def pairs(self):
        return [(0, "red"), (1, "blue")]


@pytest.fixture
def latents():
    return Latents(Plain(), build(CPU).requires_grad_(False))


def test_latents_are_encoded_once(latents, monkeypatch):
    rng, batch = random.Random(0), Batch(32, 2, 32)
    first = latents.batch([(0, "red")] * 200, batch, rng)
    assert first.shape == (200, 4, 32, 32)
    monkeypatch.setattr(latents, "_pixels", None)
    assert torch.equal(latents.batch([(0, "red")], batch, rng)[0], first[1])


def test_latents_can_be_encoded_ahead(latents, monkeypatch):
    batches = (Batch(32, 2, 32), Batch(32, 2, 64))
    latents.fill(batches)
    monkeypatch.setattr(latents, "_pixels", None)
    for batch in batches:
        latents.batch([(0, "red"), (1, "blue")] * 20, batch, random.Random(0))


@pytest.mark.parametrize(("whole", "pixels"), [(32, 128), (64, 256), (128, 512)])
def test_windows_are_of_the_latents_of_a_picture_of_that_size(latents, whole, pixels):
    drawn = latents.batch([(0, "red")] * 2, Batch(32, 2, whole), random.Random(0))
    assert drawn.shape == (2, 4, 32, 32)
    ((wanted, z),) = list(latents.known.items())[:1]
    assert (wanted.whole, z.shape) == (whole, (4, whole, whole))
    want = latents.autoencoder.encode(torch.zeros(1, 3, pixels, pixels)).latents[0]
    torch.testing.assert_close(z.float(), want, atol=2e-3, rtol=2e-3)


# Evaluation

SHAPES = ("disc", "bar", "ring")


class Shapes:
    """Three pictures that a classifier can tell apart, as ``data.Pictures`` has them."""

    def __init__(self):
        y, x = torch.meshgrid(torch.arange(256) - 128, torch.arange(256) - 128, indexing="ij")
        radius = (x**2 + y**2).sqrt()
        masks = [radius < 90, (x.abs() < 30) & (y.abs() < 110), (radius > 70) & (radius < 115)]
        self.rgba = torch.zeros(3, 4, 256, 256, dtype=torch.uint8)
        for picture, mask in zip(self.rgba, masks, strict=True):
            picture[0], picture[3] = 200, 255 * mask
        self.files = [f"{name}.webp" for name in SHAPES]
        self.index = {file: number for number, file in enumerate(self.files)}
        self.concepts = [
            captions.Concept((name,), category, "k", (captions.Variant(f"{name}.webp"),))
            for name, category in zip(SHAPES, ("round", "straight", "round"), strict=True)
        ]

    on, placed, pick = data.Pictures.on, data.Pictures.placed, data.Pictures.pick
    draw = data.Pictures.draw


@pytest.fixture(scope="module")
def shapes():
    return Shapes()


class Names:
    """Says of every picture what it is told to say, first, and the others after it."""

    def __init__(self, *numbers):
        self.numbers = numbers

    def ranking(self, pixels):
        return torch.tensor([sorted(range(3), key=lambda i: i != n) for n in self.numbers])


def asked_of(shapes, *pairs):
    phrasing = list(judge.PHRASINGS)
    return [
        (shapes.concepts[n], colour, phrasing[i % 2], "") for i, (n, colour) in enumerate(pairs)
    ]


def test_small_pictures_over_a_colour_are_the_large_ones_made_small(shapes):
    small = classifier.shrink(shapes.rgba, 32)
    rgb = torch.tensor([captions.PALETTE["teal"]]).expand(3, 3) / 255
    large = torch.stack([shapes.on(i, "teal") for i in range(3)])
    want = torch.nn.functional.avg_pool2d((large + 1) / 2, 8)
    torch.testing.assert_close(data.lay_over(small, rgb), want, atol=1e-5, rtol=0)


def test_distortions_are_never_alike_and_stay_in_range(shapes):
    small = classifier.shrink(shapes.rgba, 64)[[0, 0, 1]]
    x = classifier.augment(small, torch.Generator().manual_seed(0))
    assert x.shape == (3, 3, 64, 64)
    assert 0 <= x.min() < x.max() <= 1
    assert (x[0] - x[1]).abs().mean() > 0.05
    assert torch.equal(x, classifier.augment(small, torch.Generator().manual_seed(0)))


def test_the_classifier_learns_and_is_kept(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr("training.config.CACHE", tmp_path)
    monkeypatch.setattr(classifier, "STEPS_A_CONCEPT", 14)
    monkeypatch.setattr(classifier, "BATCH", 24)
    found, measured = classifier.trained(TINY, shapes)
    assert measured["right_on_training_pictures"] == 1
    assert measured["right_on_new_distortions_of_them"] > 0.6
    pixels = torch.stack([shapes.on(i, "pink") for i in (2, 0)])
    pixels = ((pixels + 1) * 127.5).byte()
    assert found.ranking(pixels)[:, 0].tolist() == [2, 0]
    monkeypatch.setattr(classifier, "train", None)  # it would be called otherwise
    again, _ = classifier.trained(TINY, shapes)
    assert torch.equal(again.ranking(pixels), found.ranking(pixels))
    shapes.concepts.append(shapes.concepts[0])
    try:
        with pytest.raises(TypeError):
            classifier.trained(TINY, shapes)
    finally:
        shapes.concepts.pop()


def test_judging_knows_right_from_wrong(shapes):
    asked = asked_of(shapes, (0, "red"), (1, "blue"), (2, "teal"), (2, "pink"))
    drawn = [(0, "red"), (1, "green"), (0, "teal"), (2, "pink")]
    pixels = evaluate.training_pictures(shapes, drawn)
    found = judge.judge(pixels, asked, shapes, Names(0, 1, 0, 2))
    assert found["background"] == 0.75
    assert found["subject"] == 0.75
    assert found["subject_in_top_5"] == 1
    assert found["category"] == 1  # a disc is as round as a ring
    assert found["subject_and_background"] == 0.5
    assert found["subject_seen_phrasing"] == 0.5
    assert found["subject_unseen_phrasing"] == 1
    nearest, own = (
        found[f"distance_to_{which}"]["p90"]
        for which in ("nearest_training_picture", "training_picture_of_the_subject")
    )
    assert nearest < own  # a disc was drawn where a ring was asked for


def test_memory_is_the_distance_to_the_nearest_training_picture_wherever_it_is(shapes):
    places = (data.Place(1.0, 0, 0), data.Place(0.7, 1.0, 0.2), data.Place(0.8, 0.1, 0.9))
    pixels = torch.stack([shapes.placed(1, "red", place, 256) for place in places])
    pixels = ((pixels + 1) * 127.5).round().byte()
    found = judge.distances(pixels, shapes, ["red"] * 3)
    assert found.shape == (3, 3)
    assert found.argmin(dim=1).tolist() == [1, 1, 1]
    assert found[:, 1].max() < 0.06  # edges are blurred another way
    assert found[:, [0, 2]].min() > 0.1
    empty = torch.zeros(1, 3, 256, 256, dtype=torch.uint8) + torch.tensor(
        captions.PALETTE["red"], dtype=torch.uint8
    ).view(3, 1, 1)
    assert judge.distances(empty, shapes, ["red"]).min() > 0.07


def test_questions_are_in_two_phrasings_one_of_them_new(shapes):
    asked = judge.questions(shapes.concepts, 24, seed=0)
    assert len(asked) == 24
    for concept, colour, *_ in asked:
        possible = [c for c in captions.COLOURS if captions.held_out(concept, c)]
        assert captions.held_out(concept, colour) or not possible
    assert all([q[0] for q in asked].count(c) == 8 for c in shapes.concepts)
    known = {
        p.format(noun=c.nouns[0], colour=k, kind=c.kind)
        for p in captions.PHRASES for c in shapes.concepts for k in captions.COLOURS
    }  # fmt: skip
    for _, _, phrasing, prompt in asked:
        assert (prompt in known) is (phrasing == "seen phrasing")


def test_switching_attention_off_is_silencing_its_output(tokenizer):
    class Pipeline:
        unet = model.build_unet(TINY).eval()

    inputs = torch.randn(1, 4, 64, 64), torch.tensor([3]), torch.randn(1, 8, 24)
    kept = {k: v.clone() for k, v in Pipeline.unet.state_dict().items()}
    with torch.no_grad():
        dense = Pipeline.unet(*inputs).sample
        top = [Pipeline.unet.down_blocks[0], Pipeline.unet.up_blocks[1]]
        for block in top:
            for attention in block.attentions:
                for part in attention.transformer_blocks:
                    part.attn1.to_out[0].weight.zero_()
                    part.attn1.to_out[0].bias.zero_()
        silent = Pipeline.unet(*inputs).sample
        Pipeline.unet.load_state_dict(kept)
        assert evaluate.switch_off_top_attention(Pipeline) == 3
        torch.testing.assert_close(Pipeline.unet(*inputs).sample, silent)
    assert not torch.allclose(dense, silent)


def test_fid_of_samples_beside_that_of_the_pictures_asked_for(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr("training.config.CACHE", tmp_path)
    monkeypatch.setattr(evaluate, "REFERENCE", 12)
    asked = asked_of(shapes, (0, "red"), (1, "blue"), (2, "teal"))
    noise = torch.randint(0, 256, (3, 3, 256, 256), dtype=torch.uint8)
    monkeypatch.setattr(evaluate, "INCEPTION", tmp_path / "none")
    assert evaluate.fid(TINY, noise, asked, shapes) is None

    def network(x, data_range):
        small = torch.nn.functional.adaptive_avg_pool2d(x.float() / data_range, 4)
        return small.flatten(1)

    monkeypatch.setattr(evaluate, "INCEPTION", tmp_path)
    monkeypatch.setattr(evaluate, "load_inception", lambda _: network)
    found = evaluate.fid(TINY, noise, asked, shapes)
    assert found["pictures"] == 3
    assert found["reference_pictures"] == 12
    assert found["samples"] > found["the_training_pictures_asked_for"]
    monkeypatch.setattr(evaluate, "training_pictures", lambda _, pairs, **__: noise[: len(pairs)])
    assert evaluate.fid(TINY, noise, asked, shapes)["samples"] == found["samples"]  # from the cache


@pytest.mark.skipif(release("transformers") < (5, 0), reason="tokenizers are made with 5")
def test_what_ships_can_be_trained_on(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("training.config.CACHE", tmp_path)
    monkeypatch.setattr(export, "read_names", lambda subjects: [])
    model.build_tokenizer(TINY, ["a dog", "blue"], TINY.folder / "tokenizer")
    torch.manual_seed(1)
    run = train.Run(TINY)
    run.save()
    state.save(
        TINY.folder / "autoencoder",
        {f"w.{k}": v for k, v in build(TINY).state_dict().items()},
        {"step": 1, "std": 2.0, "scaling_factor": 0.5},
    )
    export.export(TINY, tmp_path / "shipped")
    with pytest.raises(SystemExit, match="has a checkpoint"):
        unpack.unpack(TINY, tmp_path / "shipped")
    shutil.rmtree(TINY.folder)
    assert unpack.unpack(TINY, tmp_path / "shipped") == sum(
        stage.steps for stage in TINY.stages[:-1]
    )
    again = train.Run(TINY)
    assert train.stage_at(TINY, again.step) == (TINY.stages[-1], 0.0)
    for name, before, after in zip(run.names, run.weights, again.weights, strict=True):
        torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3, msg=name)
    assert torch.equal(again.ema[0], again.weights[0])
    assert train.load_trained(TINY).config.scaling_factor == 0.5
    batch = Batch(16, 2, 16)
    monkeypatch.setattr(again, "_pictures", lambda *_: (torch.randn(2, 4, 16, 16), tokens))
    tokens = model.to_tokens(again.tokenizer, ["a dog", "blue"])
    again.update(Stage(5, 1e-3, 1e-3, (batch,)), 0.0, None)  # without moments to go on from
    again.save()
    assert train.Run(TINY).step == again.step


@pytest.fixture
def trained_folder(shapes, tokenizer, tmp_path, monkeypatch):
    """A folder in which TINY can be trained on a few plain pictures."""
    monkeypatch.setattr("training.config.CACHE", tmp_path)
    monkeypatch.setattr(train, "Pictures", lambda _: shapes)
    monkeypatch.setattr(train, "tokenizer_of", lambda _: tokenizer)
    autoencoder.store(TINY, built := build(TINY), torch.optim.Adam(built.parameters()), 1, 1.0)
    return TINY.folder


def test_training_stops_and_goes_on_and_ends(trained_folder):
    one = dataclasses.replace(TINY, stages=tuple(_short(stage, 3) for stage in TINY.stages))
    train.train(one, minutes=10, steps=2)
    tensors, meta = state.load(trained_folder / "painter")
    assert meta == {"step": 2, "at": 2.0}
    train.train(one, minutes=0)
    assert state.load(trained_folder / "painter")[1] == meta
    train.train(one, minutes=10)
    ended, meta = state.load(trained_folder / "painter")
    assert meta["step"] == meta["at"] == 3 * len(TINY.stages)
    assert any(not torch.equal(ended[k], tensors[k]) for k in tensors if k.startswith("w."))
    assert all(ended[k].isfinite().all() for k in ended)


def test_a_run_that_is_given_minutes_goes_through_its_stages_in_them(trained_folder, monkeypatch):
    clock = iter(range(0, 10**6, 20))  # every look at the clock is twenty seconds after the last
    monkeypatch.setattr(train, "time", SimpleNamespace(time=lambda: float(next(clock))))
    stages = tuple(_short(stage, 50) for stage in TINY.stages)
    train.train(dataclasses.replace(TINY, stages=stages, minutes=6), minutes=1e9)
    meta = state.load(trained_folder / "painter")[1]
    assert meta["at"] >= 50 * len(stages)
    assert 2 < meta["step"] <= 6 * 60 / 20 + 1


def _short(stage, steps):
    batches = tuple(dataclasses.replace(batch, count=2) for batch in stage.batches)
    return dataclasses.replace(stage, steps=steps, batches=batches)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
def test_muon_turns_matrices_of_one_shape_together_as_pytorch_does_one_by_one():
    torch.manual_seed(0)
    shapes = [(16, 40), (16, 40), (48, 16), (20, 20)]
    ours = [torch.nn.Parameter(torch.randn(s)) for s in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    muon = optimiser.Muon(ours)
    oracle = torch.optim.Muon(theirs, weight_decay=0.01, adjust_lr_fn="match_rms_adamw", ns_steps=4)
    for lr in (0.1, 0.05, 0.02):
        for group in (*muon.param_groups, *oracle.param_groups):
            group["lr"] = lr
        for a, b in zip(ours, theirs, strict=True):
            b.grad = torch.randn_like(b)
            a.grad = b.grad.clone()
        before = [p.detach().clone() for p in theirs]
        muon.step()
        oracle.step()
        for a, b, old in zip(ours, theirs, before, strict=True):
            assert (a - b).norm() < 0.03 * (b - old).norm()  # bfloat16 in another order
    saved = muon.state_dict()["state"]
    assert {k: v.keys() for k, v in saved.items()} == {
        k: v.keys() for k, v in oracle.state_dict()["state"].items()
    }


def test_the_card_says_what_was_measured():
    """All of it in words, none as a Python value."""
    found = json.loads(export.EVALUATION.read_text())
    lines = dict(export.measures(found))
    assert lines["subject"] == str(found["samples"]["subject"])
    assert lines["distance to nearest training picture"].startswith(
        str(found["samples"]["distance_to_nearest_training_picture"]["median"])
    )
    assert not any("{" in value for value in lines.values())
    assert sum("FID" in name or "without" in name for name in lines) == 2


@needs_cuda
def test_a_recorded_step_has_the_gradients_of_an_eager_one():
    """For every kind of batch, with the input of the moment."""
    layer = torch.nn.Linear(4, 3).cuda()

    def loss(batch, x, tokens):
        return (layer(x) * batch.below - tokens).square().mean()

    weights = list(layer.parameters())
    eager, recorded = graphs.Eager(loss, weights), graphs.Graphs(loss, weights)
    for below in (1.0, 0.5, 1.0):
        batch = Batch(1, 2, 1, below)
        x, tokens = torch.randn(2, 4).cuda(), torch.arange(6).view(2, 3).cuda()
        found = []
        for way in (eager, recorded):
            for weight in weights:
                weight.grad = None
            found.append([way.of(batch, x, tokens), *(w.grad.clone() for w in weights)])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b)
