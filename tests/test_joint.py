"""Patched joint-attention and video transformers against the written-out reference."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch

import joint_pipelines
import joint_reference
import reference
import tiny
import tiny_transformers
from joint_reference import Want
from tokendown import GridError, UnsupportedModelError, apply_patch, summary
from tokendown.adapters.families import installed_plan
from transformer_inputs import padded_text

KINDS = sorted(joint_reference.WHERE)
VIDEO = [
    "wan",
    "wan_i2v",
    "wan_vace",
    "hunyuan_video",
    "hunyuan_video_15",
    "hunyuan_video_15_text",
    "kandinsky5",
    "skyreels",
    "chrono_edit",
    "wan_animate",
    "ltx",
    "ltx2",
    "ltx23",
    "cogvideox",
    "consisid",
    "easyanimate",
    "cosmos",
    "cosmos_controlnet",
    "anyflow",
    "allegro",
    "mochi",
    "motif_video",
    "motif_decoder",
]


@cache
def built(kind: str) -> Any:
    """Shared among tests: patches leave no trace, says test_joint_remove.py."""
    return getattr(tiny_transformers, kind)().double()


def run(kind: str, model: Any, size: tuple[int, int], **options: Any) -> torch.Tensor:
    return tiny_transformers.run(kind, model, *size, **options)


def shapes(kind: str, size: tuple[int, int]) -> tuple[tuple[int, int, int], ...]:
    frames = tiny_transformers.FRAMES if kind in VIDEO else 1
    return ((frames, *size),)


def wanted(kind: str, model: Any, size: tuple[int, int], **options: Any) -> torch.Tensor:
    """The output of a copy of the model that follows the formula; proves that it is used."""
    model = copy.deepcopy(model)
    processors = joint_reference.coarsen(model, kind, Want(shapes(kind, size), **options))
    output = run(kind, model, size)
    assert processors
    assert all(processor.calls == 1 for processor in processors)
    return output


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_at_factor_one_is_the_host(kind):
    """Otherwise the reference proves nothing."""
    dense = run(kind, built(kind), (6, 9))
    got = wanted(kind, built(kind), (6, 9), factor=1)
    # some hosts rotate in float32
    torch.testing.assert_close(got, dense, rtol=0, atol=2e-6)


@pytest.mark.parametrize("anchors", [0, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_families_follow_the_formula(kind, anchors):
    model, size = built(kind), (7, 10)
    dense = run(kind, model, size)
    want = wanted(kind, model, size, anchors=anchors)
    assert (want - dense).abs().max() > 1e-3  # otherwise this test proves nothing
    with apply_patch(model, factor=2, anchors=anchors):
        got = run(kind, model, size)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * want.abs().max().item())


@pytest.mark.parametrize("size", [(6, 6), (15, 17), (16, 16), (1, 9)], ids=str)
@pytest.mark.parametrize("factor", [2, 3])
def test_hidream_with_and_without_padding(size, factor):
    """A square picture has none, and any other as much as the largest has room for."""
    model = built("hidream")
    dense = run("hidream", model, size)
    want = wanted("hidream", model, size, factor=factor, anchors=3)
    assert (want - dense).abs().max() > 1e-4
    with apply_patch(model, factor=factor, anchors=3):
        got = run("hidream", model, size)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * want.abs().max().item())
    assert torch.equal(run("hidream", model, size), dense)


@pytest.mark.parametrize("kind", KINDS)
def test_factor_one_is_dense_bit_for_bit(kind):
    dense = run(kind, built(kind), (5, 6))
    with apply_patch(built(kind), factor=1):
        assert torch.equal(run(kind, built(kind), (5, 6)), dense)


@pytest.mark.parametrize("kind", ["flux", "sd35", "wan"])
@pytest.mark.parametrize("size", [(1, 9), (9, 1), (4, 6), (5, 5)], ids=str)
@pytest.mark.parametrize("factor", [3, 8])
def test_odd_sizes_and_factors(kind, size, factor):
    model = built(kind)
    want = wanted(kind, model, size, factor=factor, anchors=2)
    with apply_patch(model, factor=factor, anchors=2):
        got = run(kind, model, size)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * want.abs().max().item())


@pytest.mark.parametrize("kind", ["wan", "hunyuan_video", "hunyuan_video_15", "kandinsky5", "ltx2"])
def test_a_temporal_factor_drops_frames(kind):
    model, size = built(kind), (4, 6)
    want = wanted(kind, model, size, temporal=2, anchors=3)
    spatial = wanted(kind, model, size, anchors=3)
    with apply_patch(model, factor=2, anchors=3, temporal_factor=2):
        got = run(kind, model, size)
    assert (want - spatial).abs().max() > 1e-3
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * want.abs().max().item())


@pytest.mark.parametrize("kind", ["flux", "sd3", "hunyuan_video", "hunyuan_video_15"])
def test_multiplicity_can_be_turned_off(kind):
    model, size = built(kind), (6, 6)
    want = wanted(kind, model, size, counted=False, anchors=2)
    with apply_patch(model, factor=2, anchors=2):
        counted = run(kind, model, size)
    with apply_patch(model, factor=2, anchors=2, multiplicity=False):
        got = run(kind, model, size)
    assert (want - counted).abs().max() > 1e-3
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * want.abs().max().item())


# Text keeps its weight


def constant_cells(height: int, width: int, factor: int, channels: int) -> torch.Tensor:
    """[2, tokens, channels], all tokens of a cell alike; partial cells have fewer of them."""
    generator = torch.Generator().manual_seed(0)
    coarse = (-(-height // factor), -(-width // factor))
    cells = torch.randn(2, *coarse, channels, generator=generator, dtype=torch.float64)
    full = cells.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    return full[:, :height, :width].flatten(1, 2)


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize(
    ("kind", "with_text"),
    [
        ("flux", True), ("flux", False), ("sd35", True), ("sd35", False),
        ("hunyuan_video_15", True), ("kandinsky5", False),
    ],
)  # fmt: skip
def test_duplicated_tokens_give_exactly_the_dense_result(kind, with_text, factor):
    """An image that is constant within each cell loses nothing, and text gains nothing."""
    model, (height, width) = built(kind), (2 * factor, 3 * factor)
    path, name, *_ = joint_reference.WHERE[kind][0 if with_text else -1]
    attention = getattr(getattr(model, path)[0], name)
    tokens = constant_cells(height, width, factor, tiny_transformers.DIM)
    text = torch.randn(2, 5, tiny_transformers.DIM, dtype=torch.float64)
    arguments = {"hidden_states": tokens}
    if with_text:
        arguments["encoder_hidden_states"] = text
        if kind == "hunyuan_video_15":
            arguments["attention_mask"] = padded_text(2)

    def out() -> torch.Tensor:
        return tiny.flatten(attention(**arguments))

    dense = out()
    with apply_patch(model, factor=factor, anchors=0) as patch:
        patch.set_grid((height, width))
        kept = out()
    assert not torch.equal(kept, dense)  # it was computed another way
    torch.testing.assert_close(kept, dense, rtol=0, atol=1e-12)
    with apply_patch(model, factor=factor, anchors=0, multiplicity=False) as patch:
        patch.set_grid((height, width))
        if with_text:
            assert (out() - dense).abs().max() > 1e-3


def test_sparse_attention_is_refused_when_it_runs():
    """Kandinsky 5 puts tokens in another order then; other calls of the model are patched."""
    model, size = built("kandinsky5"), (8, 16)
    arguments = tiny_transformers.inputs("kandinsky5", model, *size)
    sparse = {"to_fractal": True, "sta_mask": torch.ones(1, 1, 6, 6, dtype=torch.bool), "P": 0.9}
    want = wanted("kandinsky5", model, size)
    with apply_patch(model, factor=2, anchors=0):
        with pytest.raises(GridError, match=r"sparse_params.*remove_patch"):
            model(**arguments, sparse_params=sparse)
        got = run("kandinsky5", model, size)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * want.abs().max().item())
    model = tiny_transformers.kandinsky5(attention_type="nabla")
    with pytest.raises(UnsupportedModelError, match="sparse attention"):
        summary(model, height=128, width=128)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_queries_that_may_see_nothing_stay_finite(dtype):
    """Those of padded text in HunyuanVideo 1.5: a NaN would reach the film one block later."""
    model = copy.deepcopy(built("hunyuan_video_15_text")).to(dtype)
    arguments = tiny_transformers.inputs("hunyuan_video_15_text", model, 4, 6)
    arguments["encoder_attention_mask_2"].zero_()  # no words in quotes
    texts = []
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda _, args, outputs: texts.append(outputs[1]))
    with apply_patch(model, factor=2, anchors=3), torch.no_grad():
        film = tiny.flatten(model(**arguments))
    assert len(texts) == 2
    assert all(x.isfinite().all() for x in (*texts, film))


@pytest.mark.parametrize("anchors", [None, torch.tensor([[1], [5]])], ids=["grid", "anchors"])
def test_a_mask_that_is_expanded_over_heads_and_queries_stays_small(anchors):
    """Lumina-Next expands one to heads x queries x keys; a copy of that would be huge."""
    from tokendown.adapters.dispatch import Call
    from tokendown.sequence import Box, Sequence

    sequence = Sequence((Box(1, 3, 4, factor=2),), before=2, anchors=anchors)
    mask = torch.rand(2, 1, 1, 14) > 0.3
    kept = Call(sequence, counted=True).mask(mask.expand(2, 6, 9, 14))
    assert kept.shape == (2, 1, 1, sequence.kept)
    assert torch.equal(kept, sequence.take(mask, 3))


@pytest.mark.parametrize(("step", "at"), [(None, (0, 0)), (0, (1, 1)), (3, (0, 0))])
def test_anchors_of_a_film_are_its_longest_tokens_and_not_on_its_grid(step, at):
    from tokendown.jitter import Place
    from tokendown.sequence import Box, Sequence

    place = None if step is None else Place.at(step)
    box = Box(3, 5, 7, factor=2, temporal=2)
    scores = torch.rand(2, box.tokens, generator=torch.Generator().manual_seed(0))
    bias = reference.with_anchors(scores, reference.cells((3, 5, 7), 2, 2, at), 8, 9)
    sequence = Sequence((box,), before=2).with_anchors(scores, 9, place)
    x = torch.rand(2, sequence.tokens, 3)
    kept = sequence.take(x, 1)
    assert kept.shape[1] == 2 + 2 * 3 * 4 + 9
    assert torch.equal(sequence.take(sequence.put(kept), 1), kept)
    assert torch.equal(sequence.put(kept)[:, 2:].any(-1), bias.isfinite())
    weights = torch.zeros(2, sequence.tokens).scatter_add_(
        1,
        sequence.take(torch.arange(sequence.tokens).expand(2, -1), 1),
        torch.tensor([m for n, m in sequence.runs() for _ in range(n)]).float().expand(2, -1),
    )
    assert torch.allclose(weights[:, 2:].double(), bias.exp())


# Where the grid comes from


def test_equal_token_counts_are_told_apart():
    model = built("flux")
    patch = apply_patch(model, factor=2, anchors=0)
    got = {size: run("flux", model, size) for size in [(4, 9), (9, 4), (6, 6), (4, 9)]}
    patch.remove()
    for size, output in got.items():
        want = wanted("flux", model, size)
        torch.testing.assert_close(output, want, rtol=0, atol=1e-5)


def test_positions_are_read_once_a_tensor(monkeypatch):
    from tokendown.adapters.positions import IdGrid

    model, reads = built("flux"), []
    read = IdGrid.read
    monkeypatch.setattr(IdGrid, "read", lambda self, ids: reads.append(1) or read(self, ids))
    arguments = tiny_transformers.inputs("flux", model, 4, 9)
    with apply_patch(model, factor=2), torch.no_grad():
        for _ in range(3):
            model(**arguments)
        assert len(reads) == 1
        arguments["img_ids"].copy_(tiny_transformers.position_ids(9, 4))  # in place
        changed = tiny.flatten(model(**arguments))
        assert len(reads) == 2
    with apply_patch(model, factor=2), torch.no_grad():
        assert torch.equal(tiny.flatten(model(**arguments)), changed)


def test_positions_of_references_are_read_apart():
    """FLUX.3 has an argument for them: a change of those alone is noticed."""
    model, size = built("flux3"), (6, 4)
    arguments = tiny_transformers.inputs("flux3", model, *size)
    arguments |= with_reference("flux3", arguments, size, (5, 7))
    ids = arguments["image_cond_ids"]
    with apply_patch(model, factor=2, references=2) as patch, torch.no_grad():
        model(**arguments)
        assert patch._plans[0].shapes == ((1, 6, 4), (1, 5, 7))
        ids[:, :3] = tiny_transformers.position_ids(7, 5, picture=1)
        model(**arguments)
        assert patch._plans[0].shapes == ((1, 6, 4), (1, 7, 5))
        del arguments["image_cond_hidden_states"], arguments["image_cond_ids"]
        model(**arguments)
        assert patch._plans[0].shapes == ((1, 6, 4),)


def test_positions_of_references_are_checked_apart():
    model, size = copy.deepcopy(built("flux3")).to("meta"), (6, 4)
    arguments = tiny_transformers.inputs("flux3", built("flux3"), *size)
    arguments |= with_reference("flux3", arguments, size, (5, 7))
    arguments = {name: value.to("meta") for name, value in arguments.items()}
    with apply_patch(model, factor=2, references=2) as patch, torch.no_grad():
        patch.set_grid(size, (5, 7))
        model(**arguments)
        for wrong in ([size], [size, (5, 6)], [(5, 4), (5, 7)]):
            patch.set_grid(*wrong)
            with pytest.raises(GridError, match="set_grid"):
                model(**arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(300, 2), (3, 400), (1, 5), (5, 1)], ids=str)
def test_positions_are_understood_in_low_precision(size, dtype):
    from tokendown.adapters.positions import IdGrid

    ids = tiny_transformers.position_ids(*size).to(dtype)
    assert IdGrid().read(ids) == ((1, *size),)
    assert IdGrid().read(ids[None].expand(2, -1, -1)) == ((1, *size),)


def test_positions_that_are_no_grid_are_refused():
    from tokendown.adapters.positions import IdGrid

    ids = tiny_transformers.position_ids(4, 6)
    shuffled = ids[torch.randperm(24, generator=torch.Generator().manual_seed(0))]
    for wrong in (shuffled, ids[:-1]):
        with pytest.raises(GridError, match="row-major"):
            IdGrid().read(wrong)
    with pytest.raises(GridError, match="one layout"):
        IdGrid().read(torch.stack([ids, tiny_transformers.position_ids(6, 4)]))


def test_bfloat16_rows_beyond_256_are_read_right_or_refused():
    """Neighbouring rows round to one value there: never a wrong grid."""
    from tokendown.adapters.positions import IdGrid

    ids = tiny_transformers.position_ids(400, 3).bfloat16()
    assert IdGrid().read(ids) == ((1, 400, 3),)


def coordinates(frames: list[int], height: int, width: int) -> torch.Tensor:
    """[2, 3, tokens], as LTX's pipelines make them."""
    axes = (torch.tensor(frames), 32 * torch.arange(height), 32 * torch.arange(width))
    places = torch.cartesian_prod(*axes).float()
    return places.T[None].repeat(2, 1, 1)


@pytest.mark.parametrize("size", [(3, 4), (1, 4), (4, 1), (1, 1)], ids=str)
def test_a_video_is_found_behind_the_frames_of_its_conditions(size):
    from tokendown.adapters.positions import CoordinateGrid

    grid = CoordinateGrid("video_coords")
    video = coordinates([0, 1, 9], *size)
    assert grid.read(video) == ((3, *size),)
    before = [coordinates([8, 16], *size), coordinates([5], 2, 5)]
    both = torch.cat([*before, video], dim=2)
    assert grid.read(both) == ((3, *size),)
    grid.check(both, ((3, *size),))
    if size == (3, 4):
        with pytest.raises(RuntimeError, match="another grid"):
            grid.check(both, ((3, 4, 3),))
        with pytest.raises(GridError, match="row-major"):
            grid.read(both[..., :-1])


@pytest.mark.parametrize("conditions", [0, 12])
def test_ranks_do_not_share_a_film_with_the_frames_of_its_conditions(conditions):
    model = built("ltx")
    frames = [8, 0, 1, 9] if conditions else [0, 1, 9]
    arguments = tiny_transformers.inputs("ltx", model, 3, 4)
    latent = arguments["hidden_states"]
    arguments["hidden_states"] = latent.new_zeros(2, 36 + conditions, latent.shape[-1])
    arguments["video_coords"] = coordinates(frames, 3, 4).to(latent.dtype)
    for name in ("num_frames", "height", "width"):
        arguments[name] = None
    with apply_patch(model, factor=2):
        model(**arguments)
        plan = installed_plan(model)
        assert (plan.shapes, plan.others) == (((3, 3, 4),), conditions)
        assert plan.boxes(plan.layers[0], plan.shapes, 1)
        if conditions:
            with pytest.raises(GridError, match="12 tokens of conditions"):
                plan.boxes(plan.layers[0], plan.shapes, 3)
        else:
            assert plan.boxes(plan.layers[0], plan.shapes, 3)[0].tokens == 12


def test_captions_of_several_lengths_in_a_batch_are_refused():
    """Lumina 2 puts every image right behind its own caption, so each would start elsewhere."""
    model = built("lumina2")
    arguments = tiny_transformers.inputs("lumina2", model, 4, 6)
    arguments["encoder_attention_mask"][0, -2:] = False
    dense = tiny.flatten(model(**arguments))
    with (
        apply_patch(model, factor=2),
        pytest.raises(GridError, match=r"one length in a batch, got \[3, 5\].*once a caption"),
    ):
        model(**arguments)
    assert torch.equal(tiny.flatten(model(**arguments)), dense)
    alone = {name: value[:1] for name, value in arguments.items()}
    with apply_patch(model, factor=2):  # padding behind a single caption does no harm
        assert not torch.equal(tiny.flatten(model(**alone)), dense[: dense.shape[0] // 2])


def test_gists_of_several_lengths_in_a_batch_are_refused():
    """Bria FIBO 2 would put them behind the image, and pad them there."""
    model = built("bria_fibo2")
    arguments = tiny_transformers.inputs("bria_fibo2", model, 4, 6)
    arguments["encoder_attention_mask"][0, -2:] = False
    dense = tiny.flatten(model(**arguments))
    with (
        apply_patch(model, factor=2),
        pytest.raises(GridError, match=r"captions of \[3, 5\] tokens.*once a caption"),
    ):
        model(**arguments)
    assert torch.equal(tiny.flatten(model(**arguments)), dense)


def test_a_picture_is_found_behind_text_at_the_origin():
    from tokendown.adapters.positions import JoinedIdGrid

    grid = JoinedIdGrid("position_ids")
    for height, width in [(4, 6), (1, 5), (5, 1), (1, 1)]:
        image = tiny_transformers.position_ids(height, width)
        for text in (0, 1, 7):
            ids = torch.cat([torch.zeros(text, 3), image])
            assert grid.read(ids) == ((1, height, width),)
            grid.check(ids, ((1, height, width),))
    ids = torch.cat([torch.zeros(7, 3), tiny_transformers.position_ids(4, 6)])
    for wrong in (ids[:-1], ids + 1):
        with pytest.raises(GridError, match="row-major"):
            grid.read(wrong)
    with pytest.raises(RuntimeError, match="another grid"):
        grid.check(ids, ((1, 6, 4),))


def test_a_picture_is_found_behind_padding_and_text():
    """Ideogram 4: texts of a batch have several lengths, pictures have one place."""
    from diffusers import Ideogram4Pipeline

    from tokendown.adapters.positions import OffsetIdGrid

    grid = OffsetIdGrid()

    def positions(lengths: list[int], *size: int) -> torch.Tensor:
        return Ideogram4Pipeline._prepare_ids(lengths, *size, 7, "cpu")[0]

    for size in [(4, 6), (1, 5), (5, 1), (1, 1)]:
        ids = positions([7, 3], *size)
        for given in (ids, ids[:, 7:]):  # without text
            assert grid.read(given) == ((1, *size),)
            grid.check(given, ((1, *size),))
    ids = positions([7, 3], 4, 6)
    for size in [(6, 4), (2, 6), (2, 12)]:
        with pytest.raises(RuntimeError, match="another grid"):
            grid.check(ids, ((1, *size),))
    with pytest.raises(GridError, match="row-major"):
        grid.read(ids[:, :-1])
    text_behind, two = ids.roll(3, 1), torch.cat([ids, ids], 1)
    for wrong in (text_behind, two, two[:, 7:], torch.cat([ids, ids[:, 7:]], 1), ids[:, :7]):
        with pytest.raises(GridError, match="one picture at the end"):
            grid.read(wrong)


def z_image_controlnet(model):
    """With refiners of the transformer."""
    from diffusers import ZImageControlNetModel

    net = tiny._build(
        lambda: ZImageControlNetModel(
            control_layers_places=[0],
            control_refiner_layers_places=[0],
            control_in_dim=4,
            dim=tiny_transformers.DIM,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            add_control_noise_refiner="control_noise_refiner",
        )
    )
    return ZImageControlNetModel.from_transformer(net, model)


@torch.no_grad()
def test_a_controlnet_that_runs_refiners_of_the_transformer_needs_the_grid():
    """Z-Image's runs them before the transformer, which reads the grid, is called."""
    model = tiny_transformers.z_image()
    net = z_image_controlnet(model)
    arguments = tiny_transformers.inputs("z_image", model, 6, 8)
    condition = [x.flip(-1) for x in arguments["x"]]

    def out() -> torch.Tensor:
        return tiny.flatten(net(**arguments, control_context=condition))

    dense = out()
    with apply_patch(model, factor=2) as patch:
        with pytest.raises(GridError, match="set_grid"):
            out()
        patch.set_grid((6, 8))
        coarse = out()
        model(**arguments)
        assert torch.equal(out(), coarse)
    assert not torch.equal(coarse, dense)
    assert torch.equal(out(), dense)


@torch.no_grad()
def test_a_pipeline_with_such_a_controlnet_is_read_there():
    """Also where the size changes between two calls, to one with as many tokens."""
    model = tiny_transformers.z_image()
    net, vae = z_image_controlnet(model), joint_pipelines.vae()
    pipe = joint_pipelines.assemble("ZImageControlNetPipeline", model, vae=vae, controlnet=net)
    nets = (pipe.transformer, pipe.controlnet)
    hooks = [len(module._forward_pre_hooks) for each in nets for module in each.modules()]

    def coarse(height, width):
        call = tiny_transformers.inputs("z_image", pipe.transformer, height, width)
        condition = [x.flip(-1) for x in call["x"]]
        samples = net(**call, control_context=condition)
        return tiny.flatten(pipe.transformer(**call, controlnet_block_samples=samples))

    sizes, want = ((6, 8), (8, 6), (10, 8)), []
    for size in sizes:
        with apply_patch(pipe, factor=2, anchors=3) as patch:
            patch.set_grid(size)
            want.append(coarse(*size))
    with apply_patch(pipe, factor=2, anchors=3) as patch:
        for size, wanted in zip(sizes, want, strict=True):
            assert torch.equal(coarse(*size), wanted)
    assert hooks == [len(module._forward_pre_hooks) for each in nets for module in each.modules()]


# Reference pictures


def with_reference(
    kind: str, arguments: dict[str, Any], size: tuple[int, int], other: tuple[int, int]
) -> dict[str, Any]:
    """The arguments of a call that change where a second picture goes in."""
    extra = torch.randn(2, other[0] * other[1], 4, dtype=torch.float64)
    second = tiny_transformers.position_ids(*other, picture=1)
    if kind == "bria_fibo2":
        return {"context_latents": [torch.randn(2, 4, *(2 * side for side in other)).double()]}
    if kind == "flux3":
        ids = torch.cat([second, torch.zeros(len(second), 1)], 1)
        return {"image_cond_hidden_states": extra, "image_cond_ids": ids}
    hidden = {"hidden_states": torch.cat([arguments["hidden_states"], extra], 1)}
    if kind == "flux":  # as Kontext appends them
        return {**hidden, "img_ids": torch.cat([arguments["img_ids"], second])}
    return {**hidden, "img_shapes": [[(1, *size), (1, *other)]] * 2}


@pytest.mark.parametrize("references", [1, 2])
@pytest.mark.parametrize("kind", ["flux", "flux3", "qwen_image", "bria_fibo2"])
def test_reference_pictures_have_their_own_grids_and_factor(kind, references):
    model, size, other = built(kind), (6, 4), (5, 7)
    arguments = tiny_transformers.inputs(kind, model, *size)
    arguments |= with_reference(kind, arguments, size, other)
    copied = copy.deepcopy(model)
    want = Want(((1, *size), (1, *other)), anchors=3, references=references)
    joint_reference.coarsen(copied, kind, want)
    with torch.no_grad():
        expected = tiny.flatten(copied(**arguments))
        with apply_patch(model, factor=2, anchors=3, references=references):
            got = tiny.flatten(model(**arguments))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
