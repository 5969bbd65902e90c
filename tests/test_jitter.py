"""Another token of each cell at every step: which, exactly what is computed, and what stays put."""

from __future__ import annotations

import copy
import logging
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import reference
import test_joint
import tiny
import tiny_transformers
from device import moved
from older import needs_compiler
from tokendown import ConfigError, PatchConfig, apply_patch, jitter
from tokendown.adapters.families import installed_plan
from tokendown.jitter import Place, order

CPU = torch.device("cpu")
# Bayer's matrix as it is published: step 0 takes the place with the number 1, and so on.
BAYER = [[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]
PLACES = {number - 1: (r, c) for r, row in enumerate(BAYER) for c, number in enumerate(row)}
# Of a cell with side 3, by hand: the centre, a corner, the corner across, and so on.
THIRDS = [(1, 1), (0, 0), (2, 2), (0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)]


@pytest.mark.parametrize("step", range(-1, 15))
def test_the_order_is_bayers(step):
    index = Place.at(step).index(8, 12, 4, torch.device("cpu"))
    assert torch.equal(index, reference.kept_keys(8, 12, 4, PLACES[step]).nonzero()[:, 0])


@pytest.mark.parametrize("factor", range(1, 17))
def test_as_many_steps_as_tokens_take_every_token_of_a_cell(factor):
    for first in (0, factor**2):
        places = [Place.at(first + step).index(factor, factor, factor, CPU).item()
                  for step in range(factor**2)]  # fmt: skip
        assert sorted(places) == list(range(factor**2))


def test_an_odd_cell_goes_from_the_centre_to_what_is_farthest():
    """By hand: of the other eight the corners are farthest, and after one the opposite one."""
    assert order(3) == tuple(THIRDS)
    assert order(6)[:5] == ((3, 3), (0, 3), (3, 0), (1, 1), (4, 4))
    for factor in (5, 7):
        assert order(factor)[0] == (factor // 2, factor // 2)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 9), st.integers(0, 300))
def test_every_cell_keeps_one_token_of_its_own(height, width, factor, step):
    index = Place.at(step).index(height, width, factor, torch.device("cpu"))
    cells = [(i // width // factor, i % width // factor) for i in index.tolist()]
    rows, columns = -(-height // factor), -(-width // factor)
    assert cells == [(row, column) for row in range(rows) for column in range(columns)]


def test_it_is_the_default_of_auto_and_not_of_paper():
    assert PatchConfig().method == "jitter"
    assert PatchConfig(factor=2).method == "jitter"
    assert PatchConfig(preset="paper").method == "nearest"
    assert PatchConfig(preset="paper", method="jitter").method == "jitter"
    with pytest.raises(ConfigError, match="'jitter'"):
        PatchConfig(method="dither")  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("anchors", [0, 5])
def test_a_unet_keeps_the_tokens_of_the_step(factor, anchors):
    unet, size = tiny.shallow_unet().double(), (9, 14)
    dense, outputs = tiny.run(unet, *size), []
    patch = apply_patch(unet, factor=factor, anchors=anchors)
    for step in range(6):
        patch.set_progress(step, 6)
        outputs.append(tiny.run(unet, *size))
    patch.remove()
    assert torch.equal(tiny.run(unet, *size), dense)
    for step, got in enumerate(outputs):
        model = copy.deepcopy(unet)
        for processor in reference.coarsen(model, "shallow_unet", size, {1: factor}, anchors):
            row, column = PLACES[step]
            processor.at = (
                THIRDS[step] if factor == 3 else (row * factor // 4, column * factor // 4)
            )
        want = tiny.run(model, *size)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * want.abs().max().item())
    different = [(a - outputs[0]).abs().max().item() for a in outputs[1:4]]
    assert min(different) > 1e-3


# One for each way of taking keys: rows of a rotary table, places between zeros, fused projections,
# a layer that sees the picture alone, masks.
@pytest.mark.parametrize(
    "kind",
    [
        "flux",
        "flux2",
        "sd35",
        "qwen_image",
        "wan",
        "z_image",
        "hunyuan_video",
        "cogvideox",
        "hunyuan_video_15",
        "kandinsky5",
    ],
)
@pytest.mark.parametrize("anchors", [0, 4])
def test_a_transformer_keeps_the_tokens_of_the_step(kind, anchors):
    model = getattr(tiny_transformers, kind)().double()
    size = (7, 10)
    patch = apply_patch(model, factor=4, anchors=anchors)
    patch.set_progress(5, 20)
    got = tiny_transformers.run(kind, model, *size)
    patch.remove()
    want = {at: test_joint.wanted(kind, model, size, factor=4, anchors=anchors, at=at)
            for at in ((0, 0), PLACES[5])}  # fmt: skip
    assert (want[0, 0] - want[PLACES[5]]).abs().max() > 1e-3
    got_scale = got.abs().max().item()
    torch.testing.assert_close(got, want[PLACES[5]], rtol=0, atol=1e-5 * got_scale)


def test_masks_follow_the_kept_tokens():
    torch.manual_seed(0)
    unet = tiny.shallow_unet().double()
    layer = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    x, mask = torch.randn(2, 54, layer.query_dim).double(), torch.randn(2, 1, 54).double()
    patch = apply_patch(unet, factor=2, anchors=0)
    tiny.run(unet, 6, 9)  # the grid is read
    patch.set_progress(0, 4)
    got = layer(x, attention_mask=mask)
    patch.remove()
    dropped = ~reference.kept_keys(6, 9, 2, (1, 1))
    want = layer(x, attention_mask=mask.masked_fill(dropped, -torch.inf))
    torch.testing.assert_close(got, want)


class Seen:
    """Which tokens a patched layer gives to ``to_k``, told by their values."""

    def __init__(self, pipe) -> None:
        attention = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
        attention.to_q.register_forward_pre_hook(self.note_all)
        attention.to_k.register_forward_pre_hook(self.note_kept)
        self.places: list[int] = []

    def note_all(self, _, args) -> None:
        self.tokens = args[0][0]

    def note_kept(self, _, args) -> None:
        first = args[0][0, 0]
        self.places.append((self.tokens == first).all(-1).nonzero()[0, 0].item())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer")


def test_a_pipeline_goes_through_the_places_and_begins_anew(folder):
    pipe = tiny.sd_pipeline(folder, "DDIMScheduler", unet=tiny.shallow_unet())
    seen = Seen(pipe)

    def picture(steps):
        generator = torch.Generator().manual_seed(0)
        return pipe("a", num_inference_steps=steps, generator=generator, output_type="latent")[0]

    with apply_patch(pipe, factor=2, anchors=0):
        first = picture(5)
        width = math.isqrt(len(seen.tokens))
        assert seen.places == [width + 1, 1, width, 0, width + 1]
        assert torch.equal(picture(5), first)
        fresh = tiny.run(pipe.unet, width, width)
    with apply_patch(pipe, factor=2, anchors=0):
        assert torch.equal(tiny.run(pipe.unet, width, width), fresh)
    with apply_patch(pipe, factor=2, anchors=0, method="nearest"):
        assert not torch.equal(picture(5), first)


def test_a_copy_and_a_pickle_move_too():
    unet, size = tiny.shallow_unet(), (6, 6)
    patch = apply_patch(unet, factor=2, anchors=0)
    patch.set_progress(1, 4)
    want = tiny.run(unet, *size)
    for other in (copy.deepcopy(unet), pickle.loads(pickle.dumps(unet))):
        assert torch.equal(tiny.run(other, *size), want)


def test_steps_may_be_told_in_and_out_of_inference_mode():
    unet, size = tiny.shallow_unet(), (6, 6)
    with torch.inference_mode():
        patch = apply_patch(unet, factor=2)
        patch.set_progress(1, 4)
        want = tiny.run(unet, *size)
    assert torch.equal(tiny.run(unet, *size), want)
    patch.set_progress(1, 4)
    with torch.enable_grad():
        tiny.flatten(unet.requires_grad_()(**tiny.inputs(unet, *size))).sum().backward()


@needs_compiler
@torch.no_grad()
def test_a_compiled_model_needs_one_graph_for_all_places():
    torch._dynamo.reset()
    counter = CompileCounter()
    unet, size = tiny.shallow_unet(), (8, 8)
    patch = apply_patch(unet, factor=2, anchors=3)
    compiled = torch.compile(unet, fullgraph=True, backend=counter)
    for step in range(5):
        patch.set_progress(step, 5)
        got = tiny.flatten(compiled(**tiny.inputs(unet, *size)))
        want = tiny.run(unet, *size)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * want.abs().max().item())
        assert counter.frame_count == 1
    torch._dynamo.reset()


# One index a step for all layers on a grid


class Ranges(TorchDispatchMode):
    """Counts ranges: an index takes one for its rows and one for its columns."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket is torch.ops.aten.arange
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def ranges(model, call) -> int:
    with Ranges() as counted:
        model(**call)
    return counted.count


@pytest.mark.parametrize("kind", ["unet", "flux", "wan"])
def test_an_index_is_computed_once_a_step_and_grid(kind):
    if kind == "unet":
        model, options, grids, each = tiny.sd_unet(), {"factor": {1: 4, 2: 2}}, 2, 2
        calls = [tiny.inputs(model, *size) for size in ((8, 12), (12, 8))]
    else:  # one grid; a film also has a range for its frames
        model, options, grids = getattr(tiny_transformers, kind)(), {"factor": 2}, 1
        each = 3 if kind == "wan" else 2
        calls = [tiny_transformers.inputs(kind, model, *size) for size in ((4, 6), (6, 4))]
    for call in calls:
        model(**call)  # what a model computes at its first call only
    dense = [ranges(model, call) for call in calls]
    each += 6  # the tokens of all cells, for where an anchor is on the grid
    with apply_patch(model, **options, anchors=4) as patch:
        assert len(installed_plan(model).patched) > grids
        for step in range(3):
            patch.set_progress(step, 3)
            for expected in (grids * each, 0):  # conditional and unconditional call, for example
                for call, own in zip(calls, dense, strict=True):
                    assert ranges(model, call) - own == expected


@pytest.fixture
def forgetful(monkeypatch):
    """Runs a function without what places remember."""

    def run(function, *args):
        with monkeypatch.context() as patched:
            patched.setattr(jitter, "_capturing", lambda device: True)
            return function(*args)

    return run


def test_nothing_is_shared_among_steps_sizes_and_types(forgetful):
    unet = tiny.shallow_unet()
    patch = apply_patch(unet, factor={1: 4, 2: 3}, anchors=2)

    @torch.no_grad()
    def outputs():
        found = []
        for dtype in (torch.float32, torch.float64):
            for size in ((6, 9), (9, 6), (12, 12), (6, 9)):
                call = moved(tiny.inputs(unet, *size), "cpu", dtype)
                for step in (0, 1, 0, 3):
                    patch.set_progress(step, 4)
                    found += [tiny.flatten(unet.to(dtype)(**call)) for _ in range(2)]
        return found

    wanted = forgetful(outputs)
    assert not torch.equal(wanted[0], wanted[2])
    assert all(map(torch.equal, outputs(), wanted))


def test_every_argument_of_an_index_counts():
    place = Place.at(2)
    grids = [{}, {"height": 12}, {"width": 8}, {"factor": 3}, {"frames": 3}, {"frames": 4},
             {"frames": 4, "temporal": 2}, {"device": torch.device("meta")}]  # fmt: skip
    for changed in [*grids, *reversed(grids)]:
        asked = {"height": 8, "width": 12, "factor": 4, "device": CPU, **changed}
        got, want = place.index(**asked), Place.at(2).index(**asked)
        assert got.device == asked["device"]
        assert got.shape == want.shape
        assert got.is_meta or torch.equal(got, want)
        assert place.index(**asked) is got


def test_copies_and_pickles_remember_nothing():
    place = Place.at(3)
    fresh = pickle.dumps(place)
    index = place.index(8, 12, 4, CPU)
    assert pickle.dumps(place) == fresh
    for other in (copy.copy(place), copy.deepcopy(place), pickle.loads(fresh)):
        assert not other._known
        assert torch.equal(other.index(8, 12, 4, CPU), index)
        assert other.index(8, 12, 4, CPU) is not index


def test_any_number_of_sizes():
    place = Place.at(1)
    for side in [*range(4, 104), *range(4, 104)]:
        index = place.index(side, 2, 2, CPU)
        assert torch.equal(index, Place.at(1).index(side, 2, 2, CPU))
        assert len(place._known) <= 32


def test_an_index_of_inference_mode_serves_training():
    unet, size = tiny.shallow_unet().requires_grad_(), (6, 6)
    patch = apply_patch(unet, factor=2)
    patch.set_progress(1, 4)
    with torch.inference_mode():
        want = tiny.run(unet, *size)
    got = tiny.flatten(unet(**tiny.inputs(unet, *size)))
    assert torch.equal(got, want)
    got.sum().backward()


def test_what_is_traced_or_captured_is_not_remembered(monkeypatch):
    place = Place.at(1)
    with FakeTensorMode(allow_non_fake_inputs=True):
        place.index(8, 12, 4, CPU)
    real = place.index(8, 12, 4, CPU)
    assert type(real) is torch.Tensor
    monkeypatch.setattr(jitter, "_capturing", lambda device: True)
    captured = place.index(8, 12, 4, CPU)
    assert captured is not real  # nor is an index of another time a part of the graph
    place.index(4, 4, 4, CPU)
    assert len(place._known) == 1
    monkeypatch.undo()
    assert place.index(8, 12, 4, CPU) is real


def test_two_patched_models_in_two_threads(forgetful):
    def patched(size):
        unet = tiny.shallow_unet()
        return apply_patch(unet, factor=4, anchors=2), unet, tiny.inputs(unet, *size)

    @torch.no_grad()
    def outputs(parts):
        patch, unet, call = parts
        found = []
        for step in range(12):
            patch.set_progress(step, 12)
            found.append(tiny.flatten(unet(**call)))
        return found

    models = [patched(size) for size in ((6, 9), (9, 6))]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(outputs, models))
    for parts, found in zip(models, together, strict=True):
        assert all(map(torch.equal, found, forgetful(outputs, parts)))


UNTOLD = "patch.set_progress(step, steps)"


@pytest.mark.parametrize(
    ("method", "said"), [("jitter", True), ("nearest", False)], ids=["jitter", "nearest"]
)
def test_a_denoiser_without_a_pipeline_is_told_that_tokens_stay(caplog, method, said):
    caplog.set_level(logging.INFO, "tokendown")
    apply_patch(tiny.sd_unet(), factor=2, method=method)
    assert (UNTOLD in caplog.text) == said


def test_a_pipeline_that_shares_the_denoiser_but_no_scheduler_is_told_once(tmp_path, caplog):
    caplog.set_level(logging.INFO, "tokendown")
    pipe = tiny.sd_pipeline(tmp_path)
    apply_patch(pipe, factor=2, method="jitter")
    tiny.image_of(pipe, steps=2)
    assert UNTOLD not in caplog.text
    other = type(pipe).from_pipe(pipe)
    other.scheduler = tiny.scheduler("EulerDiscreteScheduler")
    for _ in range(2):
        tiny.image_of(other, steps=2)
    assert caplog.text.count(UNTOLD) == 1


def test_a_loop_that_tells_the_step_is_told_nothing(tmp_path, caplog):
    caplog.set_level(logging.INFO, "tokendown")
    pipe = tiny.sd_pipeline(tmp_path)
    patch = apply_patch(pipe, factor=2, method="jitter")
    patch.set_progress(0, 2)
    pipe.unet(**tiny.inputs(pipe.unet))
    assert UNTOLD not in caplog.text
