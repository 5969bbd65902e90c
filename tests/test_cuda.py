"""What only a CUDA card can show: attention and U-Nets. See also the other test_cuda files."""

from __future__ import annotations

import copy
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy
import pytest
import torch
from diffusers import attention_backend
from torch.nn.attention import SDPBackend, sdpa_kernel

import reference
import tiny
from device import (
    DEVICE,
    check_two_calls,
    distance,
    moved,
    needs_cuda,
    needs_device,
    peak,
    two_calls,
    waits,
)
from test_cli import pixels, run
from tokendown import apply_patch, attend, is_patched, pictures, remove_patch
from tokendown.bench.cells import read_cells
from tokendown.grid import Grid
from tokendown.jitter import Place

pytestmark = needs_device
HALF = [torch.float16, torch.bfloat16]
SIZE = (16, 12)
PATCH = {"factor": {1: 2, 2: 2}, "anchors": 3}


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch):
    """float32 means float32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def wide_unet(**options):
    """One level with two heads of 64 channels, which every kernel takes."""
    return tiny.shallow_unet(
        block_out_channels=(128,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        mid_block_type=None,
        attention_head_dim=2,
        norm_num_groups=8,
        **options,
    )


def latents_of(model, size=SIZE, dtype=torch.float32):
    """Arguments of a call on the device."""
    return moved(tiny.inputs(model, *size), DEVICE, dtype)


@torch.no_grad()
def output(model, call):
    return tiny.flatten(model(**call))


# The formula


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize(("anchors", "exact"), [(0, 0), (5, 0), (5, 3)])
def test_attend(dtype, anchors, exact):
    height, width, factor = 9, 10, 2
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, 2, height * width + extra, 64, generator=generator).to(dtype)
        for extra in (0, exact, exact)
    )
    got = attend(
        *moved((query, key, value)), Grid(height, width), factor=factor, anchors=anchors,
        exact=exact,
    )  # fmt: skip
    assert got.dtype == dtype
    query, key, value = query.double(), key.double(), value.double()
    on_grid = reference.kept_keys(height, width, factor)
    lengths = key[..., : height * width, :].norm(dim=-1).masked_fill(on_grid, -math.inf)
    bias = torch.full(key.shape[:-1], -math.inf, dtype=torch.float64)
    bias[..., : height * width][..., on_grid] = 2 * math.log(factor)
    bias[..., height * width :] = 0
    bias.scatter_(-1, lengths.topk(anchors).indices, 0.0)
    logits = query @ key.mT / 8 + bias[..., None, :]
    want = logits.softmax(-1) @ value
    assert distance(got, want) < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("kind", ["sd_unet", "sdxl_unet"])
def test_unets_in_float32(kind):
    model = getattr(tiny, kind)()
    level = 2 if kind == "sdxl_unet" else 1
    call = tiny.inputs(model, *SIZE)
    exact = copy.deepcopy(model).double()
    reference.coarsen(exact, kind, SIZE, {level: 2, 2 * level: 2}, anchors=3)
    want = output(exact, moved(call, torch.device("cpu"), torch.float64))
    model.to(DEVICE)
    dense = output(model, moved(call))
    with apply_patch(model, factor={level: 2, 2 * level: 2}, anchors=3):
        got = output(model, moved(call))
    assert distance(dense, want) > 1e-2
    assert distance(got, want) < 1e-4


@pytest.mark.parametrize("channels_last", [False, True], ids=["", "channels last"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("kind", ["sd_unet", "sdxl_unet"])
def test_unets_in_half_precision(kind, dtype, channels_last):
    """As near to the exact result as the dense model is."""
    model = getattr(tiny, kind)().to(dtype)
    exact = copy.deepcopy(model).double()
    call = moved(tiny.inputs(model, *SIZE), dtype=dtype)
    precise = moved(call, torch.device("cpu"), torch.float64)
    dense = output(exact, precise)
    level = 2 if kind == "sdxl_unet" else 1
    reference.coarsen(exact, kind, SIZE, {level: 2}, anchors=3)
    want = output(exact, precise)
    model.to(DEVICE)
    if channels_last:
        model.to(memory_format=torch.channels_last)
        call["sample"] = call["sample"].to(memory_format=torch.channels_last)
    usual = distance(output(model, call), dense)
    with apply_patch(model, factor={level: 2}, anchors=3):
        got = output(model, call)
    assert distance(got, want) < max(1e-2, 2 * usual)


# Attention kernels


@needs_cuda
@pytest.mark.parametrize("kernel", ["FLASH_ATTENTION", "CUDNN_ATTENTION"])
def test_a_grid_alone_goes_through_kernels_without_masks(kernel):
    model = wide_unet().to(DEVICE, torch.float16)
    call = latents_of(model, dtype=torch.float16)
    with apply_patch(model, factor=2, anchors=0):
        usual = output(model, call)
        with sdpa_kernel(getattr(SDPBackend, kernel)):
            assert distance(output(model, call), usual) < 1e-2


@needs_cuda
def test_anchors_need_a_mask_unless_the_backend_is_chosen_in_diffusers():
    model = wide_unet().to(DEVICE, torch.float16)
    call = latents_of(model, dtype=torch.float16)
    with apply_patch(model, factor=2, anchors=3), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        with pytest.raises(RuntimeError, match="No available kernel"):
            output(model, call)
        with attention_backend("_native_flash"):
            output(model, call)


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("_native_flash", marks=needs_cuda),
        pytest.param("_native_cudnn", marks=needs_cuda),
        pytest.param("_native_efficient", marks=needs_cuda),
        "_native_math",
        "flex",
    ],
)
def test_a_chosen_backend_on_a_unet(backend):
    model = wide_unet().to(DEVICE, torch.float16)
    call = latents_of(model, dtype=torch.float16)
    with apply_patch(model, factor=4, anchors=3):
        usual = output(model, call)
        with attention_backend(backend):
            got = output(model, call)
    with apply_patch(model, factor=4, anchors=3, multiplicity=False):
        uncounted = distance(output(model, call), usual)
    assert distance(got, usual) < uncounted / 6  # log m is there


@needs_cuda
@pytest.mark.parametrize("backend", ["native", "_native_flash", "_native_cudnn"])
def test_two_calls_on_a_unet(backend, monkeypatch):
    model = wide_unet().to(DEVICE, torch.float16)
    call = latents_of(model, dtype=torch.float16)
    check_two_calls(lambda: output(model, call), model, backend, monkeypatch)


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_attend_in_two_calls(dtype, monkeypatch):
    query, key, value = (
        torch.randn(2, 3, 24 * 26, 40, device=DEVICE, dtype=dtype) for _ in range(3)
    )
    wide = query.double(), key.double(), value.double()
    want = attend(*wide, Grid(24, 26), factor=2, anchors=8)
    calls = two_calls(monkeypatch)
    assert distance(attend(query, key, value, Grid(24, 26), factor=2, anchors=8), want) < 1e-2
    assert len(calls) == 2


# No waiting


@needs_cuda
def test_waiting_is_noticed():
    one = torch.ones(1, device=DEVICE)
    assert len(waits(lambda: one.item())) == 1
    assert len(waits(lambda: [one.item() for _ in range(3)])) == 3
    assert waits(lambda: one + 1) == []


@needs_cuda
def test_a_cuda_graph_has_an_index_of_its_own():
    model = wide_unet().to(DEVICE)
    call, options = latents_of(model), {**PATCH, "factor": 2}
    with apply_patch(model, **options) as patch:
        patch.set_progress(1, 4)
        want = output(model, call)  # from here on the index of this step is remembered
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = output(model, call)
        patch.set_progress(2, 4)  # from here on it is gone
        other = output(model, call)
        overwritten = [torch.zeros(48, dtype=torch.long, device=DEVICE) for _ in range(64)]
        graph.replay()
        assert distance(got, want) < 1e-4 < distance(other, want)
        assert distance(output(model, call), other) < 1e-4
    del overwritten


@needs_cuda
def test_streams_have_an_index_each():
    place, stream = Place.at(1), torch.cuda.Stream()
    device = torch.zeros(1, device=DEVICE).device
    first = place.index(8, 12, 4, device)
    with torch.cuda.stream(stream):
        second = place.index(8, 12, 4, device)
        assert place.index(8, 12, 4, device) is second
    assert second is not first
    assert place.index(8, 12, 4, device) is first
    torch.cuda.synchronize()
    assert torch.equal(first, second)


@needs_cuda
@pytest.mark.parametrize("options", [{}, {"anchors": 0}, {"method": "jitter"}, {"method": "mean"}])
def test_a_patched_unet_does_not_wait(options):
    model = tiny.sd_unet().to(DEVICE)
    call = latents_of(model)
    output(model, call)
    assert waits(lambda: output(model, call)) == []
    with apply_patch(model, **{**PATCH, **options}) as patch:
        for step in range(3):
            patch.set_progress(step, 4)
            output(model, call)  # warm
            assert waits(lambda: output(model, call)) == []


@needs_cuda
@pytest.mark.parametrize("options", [{}, {"start": 0.25, "stop": 0.75}, {"method": "jitter"}])
def test_a_pipeline_waits_as_often_as_without(tmp_path, options):
    pipe = tiny.sd_pipeline(tmp_path).to(DEVICE)
    tiny.image_of(pipe)
    dense = waits(lambda: tiny.image_of(pipe, steps=4))
    with apply_patch(pipe, **PATCH, **options):
        tiny.image_of(pipe)
        assert Counter(waits(lambda: tiny.image_of(pipe, steps=4))) <= Counter(dense)


# Nothing else changes


def random_states():
    states = [torch.get_rng_state()]
    if DEVICE.type == "cuda":
        states.append(torch.cuda.get_rng_state())
    return states


@pytest.mark.parametrize("method", ["nearest", "jitter", "mean"])
def test_the_same_again_and_no_random_state_is_touched(tmp_path, method):
    pipe = tiny.sd_pipeline(tmp_path).to(DEVICE)
    dense = tiny.image_of(pipe, steps=3)
    before = random_states()
    with apply_patch(pipe, **PATCH, method=method):
        first, again = (tiny.image_of(pipe, steps=3) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, dense)
    assert torch.equal(tiny.image_of(pipe, steps=3), dense)
    assert all(torch.equal(*pair) for pair in zip(before, random_states(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_round_trips_are_exact(dtype):
    model = tiny.sd_unet().to(DEVICE, dtype)
    call = latents_of(model, dtype=dtype)
    dense = output(model, call)
    with apply_patch(model, **PATCH):
        assert not torch.equal(output(model, call), dense)
    assert torch.equal(output(model, call), dense)
    with pytest.raises(TypeError), apply_patch(model, **PATCH):
        model(call["sample"], surprise=1)
    assert not is_patched(model)
    assert torch.equal(output(model, call), dense)


@needs_cuda
@pytest.mark.parametrize("kernel", ["FLASH_ATTENTION", "MATH"])
def test_memory(kernel):
    """With the math kernel the logits are nearly all; flash never has them."""
    model = wide_unet().to(DEVICE, torch.float16)
    call = latents_of(model, (96, 96), torch.float16)
    kernels = [getattr(SDPBackend, kernel)]
    if kernel == "FLASH_ATTENTION":  # anchors need a mask
        kernels.append(SDPBackend.EFFICIENT_ATTENTION)
    with sdpa_kernel(kernels):
        dense = peak(lambda: output(model, call))
        with apply_patch(model, factor=2):
            patched = peak(lambda: output(model, call))
    assert patched <= dense * (1.01 if kernel == "FLASH_ATTENTION" else 0.5)


def test_two_pipelines_in_two_threads(tmp_path):
    pipes = [tiny.sd_pipeline(tmp_path).to(DEVICE) for _ in range(2)]
    apply_patch(pipes[0], **PATCH, method="jitter")
    apply_patch(pipes[1], factor=4, anchors=0)
    alone = [tiny.image_of(pipe, steps=3) for pipe in pipes]
    barrier = Barrier(2, timeout=60)

    def work(pipe):
        barrier.wait()
        return [tiny.image_of(pipe, steps=3) for _ in range(2)]

    with ThreadPoolExecutor(2) as pool:
        for made, want in zip(pool.map(work, pipes), alone, strict=True):
            assert all(distance(image, want) < 1e-5 for image in made)


# Weights that live elsewhere between calls


def model_offload(pipe):
    pipe.enable_model_cpu_offload(device=DEVICE)


def sequential_offload(pipe):
    pipe.enable_sequential_cpu_offload(device=DEVICE)


def group_offload(pipe, **options):
    pipe.text_encoder.to(DEVICE)
    pipe.vae.to(DEVICE)
    pipe.unet.enable_group_offload(
        onload_device=DEVICE, offload_device=torch.device("cpu"), offload_type="leaf_level",
        **options,
    )  # fmt: skip


def streamed_offload(pipe):
    group_offload(pipe, use_stream=True)


@pytest.mark.parametrize("patched_first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(
    "offload",
    [
        model_offload,
        pytest.param(sequential_offload, marks=needs_cuda),
        group_offload,
        pytest.param(streamed_offload, marks=needs_cuda),
    ],
)
def test_offload(tmp_path, offload, patched_first):
    pipe = tiny.sd_pipeline(tmp_path).to(DEVICE)
    dense = tiny.image_of(pipe, steps=3)
    with apply_patch(pipe, **PATCH):
        want = tiny.image_of(pipe, steps=3)
    pipe.to("cpu")
    if patched_first:
        apply_patch(pipe, **PATCH)
        offload(pipe)
    else:
        offload(pipe)
        apply_patch(pipe, **PATCH)
    assert distance(tiny.image_of(pipe, steps=3), want) < 1e-5
    remove_patch(pipe)
    assert distance(tiny.image_of(pipe, steps=3), dense) < 1e-5
    assert distance(want, dense) > 1e-4


# Commands


def test_generate_and_the_same_again(tmp_path):
    words = ("generate", "a cat", "--device", DEVICE.type, "--steps", 2, "--size", "256x256")
    run(*words, "--factor", 2, "--out", tmp_path / "made")
    made = tmp_path / "made" / "a-cat-0.png"
    assert pictures.read_settings(made)["device"].startswith(DEVICE.type)
    run("generate", "--from", made, "--out", tmp_path / "again")
    assert numpy.array_equal(pixels(tmp_path / "again" / made.name), pixels(made))


def test_bench(tmp_path):
    words = ("bench", "--device", DEVICE.type, "--size", "256x256", "--rounds", 1)
    run(*words, "--method", "factor=2", "--backend", "best", "--out", tmp_path / "a.jsonl")
    measured = [cell for cell in read_cells(tmp_path / "a.jsonl") if cell["outcome"] == "measured"]
    assert len(measured) >= 2
    for cell in measured:
        assert cell["seconds"] > 0
        assert cell["kernel"] in {"flash", "cudnn", "efficient", "math"}
        assert cell["device"].startswith(DEVICE.type)
