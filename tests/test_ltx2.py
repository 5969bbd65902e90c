"""LTX-2: tokens behind the video, perturbed blocks, patches of the latent, and sound."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.pipelines.ltx2 import dfr_layout

import joint_reference
import tiny
import tiny_transformers
from joint_reference import Want
from test_joint import built
from tokendown import GridError, apply_patch, summary
from tokendown.adapters.positions import IntervalGrid

FRAMES, SIZE = tiny_transformers.FRAMES, (6, 8)
TOKENS = FRAMES * 6 * 8
GRID = IntervalGrid("video_coords")


def coordinates(frames: int, height: int, width: int, rate: float = 24.0) -> torch.Tensor:
    """[2, 3, tokens, 2], as the model makes them."""
    rope = built("ltx2").rope
    made: torch.Tensor = rope.prepare_video_coords(2, frames, height, width, "cpu", fps=rate)
    return made


def at(pixel_frame: int, height: int, width: int, rate: float = 24.0) -> torch.Tensor:
    """A picture at one frame of the film, as the pipelines append it."""
    made = coordinates(1, height, width, rate)
    made[:, 0, :, 0], made[:, 0, :, 1] = pixel_frame / rate, (pixel_frame + 1) / rate
    return made


@torch.no_grad()
def out(model: Any, arguments: dict[str, Any]) -> torch.Tensor:
    return tiny.flatten(model(**arguments))


def expected(kind: str, arguments: dict[str, Any], *blocks: int, **settings: Any) -> torch.Tensor:
    """Of a copy of the model whose blocks follow the formula; all of them, or these."""
    model = copy.deepcopy(built(kind))
    whole = model.transformer_blocks
    if blocks:
        model.transformer_blocks = torch.nn.ModuleList(whole[index] for index in blocks)
    joint_reference.coarsen(model, kind, Want(((FRAMES, *SIZE),), **settings))
    model.transformer_blocks = whole
    return out(model, arguments)


def assert_follows(got: torch.Tensor, want: torch.Tensor, dense: torch.Tensor) -> None:
    assert (want - dense).abs().max() > 1e-3
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * want.abs().max().item())


# Where the grid comes from


@pytest.mark.parametrize("size", [(1, 3, 4), (3, 3, 4), (4, 1, 4), (3, 4, 1), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("rate", [24.0, 29.97])
def test_a_video_is_found_before_what_it_is_conditioned_on(size, rate):
    frames, height, width = size
    video = coordinates(*size, rate)
    assert GRID.read(video) == (size,)
    last = 8 * (frames - 1)  # in pixels: within the last latent frame, and at its end
    for behind in (
        [at(last, height, width, rate)],  # a key frame
        [coordinates(*size, rate)],  # a film to follow
        [coordinates(frames, -(-height // 2), -(-width // 2), rate)],  # a smaller one
        [at(0, height, width, rate), at(last, 2, 5, rate)],
    ):
        both = torch.cat([video, *behind], 2)
        assert GRID.read(both) == (size,)
        GRID.check(both, (size,))


def test_tiles_of_a_film_are_found():
    """A tile keeps the tokens behind the video that it overlaps, and starts anew at zero."""
    canvas = (4, 26, 28)
    video = torch.cat([coordinates(*canvas), at(24, 26, 28), coordinates(4, 13, 14)], 2)
    tiles = dfr_layout.epilogue_tiles(canvas, 2, [2])
    plans = dfr_layout.video_tile_plan(tiles, video, *canvas)
    assert len(plans) > 4
    for tile, plan in zip(tiles, plans, strict=True):
        size = tuple(part.stop - part.start for part in (tile.frames, tile.heights, tile.widths))
        assert GRID.read(plan.coords) == (size,)
        GRID.check(plan.coords, (size,))


def test_what_is_no_grid_is_refused():
    video = coordinates(3, 3, 4)
    with pytest.raises(GridError, match="row-major"):
        GRID.read(video[:, :, :-1])
    with pytest.raises(GridError, match="one layout"):
        GRID.read(torch.cat([video[:1], coordinates(3, 4, 3)[:1]]))
    with pytest.raises(RuntimeError, match="another grid"):
        GRID.check(video, ((3, 4, 3),))
    with pytest.raises(GridError, match="set_grid"):
        GRID.check(video, ((3, 4, 4),))


@pytest.mark.parametrize("told", ["numbers", "coordinates", "both"])
@pytest.mark.parametrize("kind", ["ltx2", "ltx23"])
def test_tokens_behind_the_video_are_exact(kind, told):
    model = built(kind)
    arguments = tiny_transformers.inputs(kind, model, *SIZE)
    del arguments["num_frames"], arguments["height"], arguments["width"]
    arguments.pop("video_self_attention_mask", None)
    behind = torch.randn(2, 5 * 7, 4, generator=torch.Generator().manual_seed(2)).double()
    arguments["hidden_states"] = torch.cat([arguments["hidden_states"], behind], 1)
    arguments["video_coords"] = torch.cat([coordinates(FRAMES, *SIZE), at(16, 5, 7)], 2)
    numbers = {"num_frames": FRAMES, "height": SIZE[0], "width": SIZE[1]}
    told_so = {**arguments, **(numbers if told != "coordinates" else {})}
    dense, want = out(model, arguments), expected(kind, arguments, anchors=3)
    with apply_patch(model, factor=2, anchors=3) as patch:
        assert_follows(out(model, told_so), want, dense)
        assert patch._plans[0].shapes == ((FRAMES, *SIZE),)


def test_numbers_are_not_read_from_coordinates_as_well(monkeypatch):
    """Reading stalls a GPU, and pipelines tell both."""
    monkeypatch.setattr(IntervalGrid, "read", lambda *_: pytest.fail("was read"))
    model = built("ltx2")
    arguments = tiny_transformers.inputs("ltx2", model, *SIZE)
    with apply_patch(model, factor=2):
        out(model, {**arguments, "video_coords": coordinates(FRAMES, *SIZE)})


@pytest.mark.parametrize("patch_size", [(1, 2), (2, 1), (2, 2)], ids=str)
def test_numbers_are_those_of_the_latent(patch_size):
    """A token may be several of its places, and a last one may not be filled."""
    in_time, side = patch_size
    model = tiny_transformers.ltx2(patch_size=side, patch_size_t=in_time).double()
    arguments = tiny_transformers.inputs("ltx2", model, *SIZE)
    arguments |= {"num_frames": in_time * FRAMES - in_time + 1}
    arguments |= {"height": side * SIZE[0], "width": side * SIZE[1] - side + 1}
    dense, copied = out(model, arguments), copy.deepcopy(model)
    joint_reference.coarsen(copied, "ltx2", Want(((FRAMES, *SIZE),), anchors=3))
    with apply_patch(model, factor=2, anchors=3):
        assert_follows(out(model, arguments), out(copied, arguments), dense)


# Perturbed guidance


@pytest.mark.parametrize("mask", [None, [0.0, 1.0], [0.0, 0.0]], ids=str)
def test_perturbed_blocks_are_dense(mask):
    model = built("ltx23")
    arguments = tiny_transformers.inputs("ltx23", model, *SIZE)
    if mask is not None:
        arguments["perturbation_mask"] = torch.tensor(mask).double()
    perturbed = {**arguments, "spatio_temporal_guidance_blocks": [1]}
    dense, dense_perturbed = out(model, arguments), out(model, perturbed)
    assert (dense - dense_perturbed).abs().max() > 1e-3
    with apply_patch(model, factor=2, anchors=3):
        got, got_perturbed = out(model, arguments), out(model, perturbed)
    assert_follows(got, expected("ltx23", arguments, anchors=3), dense)
    want = expected("ltx23", perturbed, 0, anchors=3)  # the first block alone
    assert_follows(got_perturbed, want, dense_perturbed)


# Sound


def test_sound_and_what_joins_the_streams_are_left_alone():
    model = built("ltx2")
    lengths: dict[str, int] = {}

    def note(name):
        return lambda _, args: lengths.__setitem__(name, args[0].shape[1])

    handles = [
        module.register_forward_pre_hook(note(name))
        for name, module in model.transformer_blocks[0].named_modules()
        if name.endswith("to_k")
    ]
    with apply_patch(model, factor=2, anchors=3):
        out(model, tiny_transformers.inputs("ltx2", model, *SIZE))
    for handle in handles:
        handle.remove()
    sound, text = tiny_transformers.SOUND, tiny_transformers.TEXT
    assert lengths == {
        "attn1.to_k": TOKENS // 4 + 3,
        "audio_attn1.to_k": sound,
        "attn2.to_k": text,
        "audio_attn2.to_k": text,
        "audio_to_video_attn.to_k": sound,
        "video_to_audio_attn.to_k": TOKENS,
    }


def test_a_summary_names_the_attention_of_sound():
    rows = {layer.name: layer for layer in summary(built("ltx2"), height=64, width=64).layers}
    assert rows["transformer_blocks.0.attn1"].grid == (8, 8)
    assert rows["transformer_blocks.0.audio_attn1"].note == "its tokens are sound"
    assert len(rows) == 2 * len(built("ltx2").transformer_blocks)
