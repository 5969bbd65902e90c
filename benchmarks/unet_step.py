"""One U-Net step at the published shapes, with random weights: what each method costs.

    python benchmarks/unet_step.py --shape sd15 --size 1024 --rounds 3

Methods take turns in every round, so that a slow minute of the machine hits them all; what counts
is the ratio within a round. Prints a table, and as the last line one JSON record.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import tokendown
from tokendown.adapters.inputs import denoiser_inputs

SHAPES: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
FINEST = {"sd15": 1, "sdxl": 2}  # downsampling of the finest level that has self-attention


class MinimalToDo(AttnProcessor2_0):
    """The least that ToDo can cost: a hand-written processor that knows its grid beforehand."""

    def __init__(self, height: int, width: int, factor: int) -> None:
        super().__init__()
        self.height, self.width, self.factor = height, width, factor

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        batch, _, channels = hidden_states.shape
        cells = hidden_states.view(batch, self.height, self.width, channels)
        kept = cells[:, :: self.factor, :: self.factor].reshape(batch, -1, channels)
        return super().__call__(attn, hidden_states, kept)


class NoAttention(nn.Module):
    """What would be left if self-attention were free."""

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        return torch.zeros_like(hidden_states)


@contextlib.contextmanager
def patched(unet: nn.Module, **options: Any) -> Iterator[None]:
    with tokendown.apply_patch(unet, **options):
        yield


@contextlib.contextmanager
def minimal(unet: Any, level: int, size: int, factor: int) -> Iterator[None]:
    """The hand-written processor on every layer of one level."""
    side = size // 8 // level
    before = dict(unet.attn_processors)
    plan = tokendown.adapters.families.make_plan(unet, None)
    names = {f"{layer.name}.processor" for layer in plan.layers if layer.downsample == level}
    unet.set_attn_processor(
        {k: MinimalToDo(side, side, factor) if k in names else v for k, v in before.items()}
    )
    try:
        yield
    finally:
        unet.set_attn_processor(before)


@contextlib.contextmanager
def tome(unet: nn.Module, ratio: float, stride: int, level: int) -> Iterator[None]:
    import tomesd

    tomesd.apply_patch(unet, ratio=ratio, sx=stride, sy=stride, max_downsample=level)
    try:
        yield
    finally:
        tomesd.remove_patch(unet)


@contextlib.contextmanager
def without_self_attention(unet: nn.Module) -> Iterator[None]:
    blocks = [m for m in unet.modules() if type(m).__name__ == "BasicTransformerBlock"]
    kept = [block.attn1 for block in blocks]
    for block in blocks:
        block.attn1 = NoAttention()
    try:
        yield
    finally:
        for block, attention in zip(blocks, kept, strict=True):
            block.attn1 = attention


def methods(shape: str, size: int, budgets: list[int]) -> dict[str, Callable[[Any], Any]]:
    level = FINEST[shape]
    factor = math.ceil(size / 8 / level / 64) if size // 8 // level > 64 else 2
    equal = 1 - 1 / factor**2
    found: dict[str, Callable[[Any], Any]] = {
        "dense": lambda _: contextlib.nullcontext(),
        "paper" if level == 1 else f"grid, factor {factor}": lambda unet: patched(
            unet, factor={level: factor}, anchors=0
        ),
        "minimal ToDo": lambda unet: minimal(unet, level, size, factor),
    }
    for budget in budgets:
        found[f"auto, budget {budget}"] = lambda unet, b=budget: patched(unet, budget=b)
    found[f"tomesd {equal:.4g}, stride {factor}"] = lambda unet: tome(unet, equal, factor, level)
    found["tomesd 0.5, stride 2"] = lambda unet: tome(unet, 0.5, 2, level)
    found["self-attention removed"] = without_self_attention
    return found


def random_unet(shape: str, dtype: torch.dtype, device: str) -> UNet2DConditionModel:
    """Built on meta, then filled: normal weights of the usual scale, nothing denormal."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SHAPES[shape])
    unet = unet.to(dtype).to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in unet.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 1 / math.sqrt(parameter[0].numel()), generator=generator)
        else:
            parameter.data.fill_(1.0 if name.endswith("weight") else 0.0)
    return unet


class PeakMemory:
    """Largest resident (CPU) or allocated (CUDA) memory in a block, GiB."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.gib = 0.0

    def __enter__(self) -> PeakMemory:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._watch)
            self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.1):  # a busier watch would slow what it watches
            with open("/proc/self/statm") as statm:
                self.gib = max(self.gib, int(statm.read().split()[1]) * 4096 / 2**30)

    def __exit__(self, *exc: object) -> None:
        if self.cuda:
            self.gib = torch.cuda.max_memory_allocated() / 2**30
        else:
            self._stop.set()
            self._thread.join()


@dataclass
class Result:
    seconds: list[float]
    peak_gib: float
    flops: int


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def call(unet: nn.Module, inputs: dict[str, Any]) -> None:
    """tomesd reads the sample from the positional arguments."""
    rest = {name: value for name, value in inputs.items() if name not in ("sample", "timestep")}
    unet(inputs["sample"], inputs["timestep"], **rest)


@torch.no_grad()
def step(unet: nn.Module, inputs: dict[str, Any], device: str) -> tuple[float, float]:
    """Seconds and peak GiB of one call."""
    with PeakMemory(device) as memory:
        synchronize(device)
        start = time.perf_counter()
        call(unet, inputs)
        synchronize(device)
        seconds = time.perf_counter() - start
    return seconds, memory.gib


def counted_flops(shape: str, size: int, batch: int, method: Callable[[Any], Any]) -> int:
    """By torch's counter, on the meta device; 0 where a method cannot run there."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SHAPES[shape]).eval()
    inputs = denoiser_inputs(unet, size // 8, size // 8, batch=batch, device="meta")
    try:
        with method(unet), torch.no_grad(), FlopCounterMode(display=False) as counter:
            call(unet, inputs)
    except (NotImplementedError, RuntimeError):
        return 0
    return int(counter.get_total_flops())


def run(arguments: argparse.Namespace) -> dict[str, Result]:
    dtype = getattr(torch, arguments.dtype)
    unet = random_unet(arguments.shape, dtype, arguments.device)
    side = arguments.size // 8
    table = methods(arguments.shape, arguments.size, arguments.budget)
    if arguments.only:
        wanted = ("dense", *arguments.only)  # ratios are to dense
        table = {name: method for name, method in table.items() if name.startswith(wanted)}
    results = {
        name: Result([], 0.0, counted_flops(arguments.shape, arguments.size, arguments.batch, m))
        for name, m in table.items()
    }
    make = {"batch": arguments.batch, "device": arguments.device, "dtype": dtype}
    warm = denoiser_inputs(unet, side // 4, side // 4, **make)
    inputs = denoiser_inputs(unet, side, side, **make)
    for key in ("sample", "encoder_hidden_states"):
        inputs[key] = torch.randn_like(inputs[key])
    with table["dense"](unet):
        step(unet, warm, arguments.device)
    order = list(table)
    for turn in range(arguments.rounds):
        for name in order[turn:] + order[:turn]:  # nobody is always first, or always after dense
            with table[name](unet):
                seconds, gib = step(unet, inputs, arguments.device)
            results[name].seconds.append(seconds)
            results[name].peak_gib = max(results[name].peak_gib, gib)
            print(f"round {turn + 1}: {name}: {seconds:.2f} s", file=sys.stderr, flush=True)
    return results


def record(arguments: argparse.Namespace, results: dict[str, Result]) -> dict[str, Any]:
    dense = results["dense"]
    rows = {}
    for name, result in results.items():
        ratios = [d / s for d, s in zip(dense.seconds, result.seconds, strict=True)]
        rows[name] = {
            "seconds": [round(s, 3) for s in result.seconds],
            "median_s": round(statistics.median(result.seconds), 3),
            "speedup": round(statistics.median(ratios), 3),
            "speedup_range": [round(min(ratios), 3), round(max(ratios), 3)],
            "predicted_flop_ratio": round(dense.flops / result.flops, 3) if result.flops else None,
            "peak_gib": round(result.peak_gib, 2),
        }
    return {
        "benchmark": "unet_step",
        **{k: getattr(arguments, k) for k in ("shape", "size", "batch", "rounds", "dtype")},
        "device": device_name(arguments.device),
        "threads": torch.get_num_threads(),
        "versions": {
            name: __import__(name).__version__ for name in ("tokendown", "torch", "diffusers")
        },
        "python": platform.python_version(),
        "commit": commit(),
        "methods": rows,
    }


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as info:
        return next(line.split(":")[1].strip() for line in info if line.startswith("model name"))
    return platform.processor()


def commit() -> str | None:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    print(f"{'method':28} {'median s':>9} {'speed-up':>9} {'range':>13} {'FLOPs':>6} {'GiB':>6}")
    for name, row in rows.items():
        low, high = row["speedup_range"]
        flops = row["predicted_flop_ratio"]
        print(
            f"{name:28} {row['median_s']:9.2f} {row['speedup']:9.2f} {low:6.2f}-{high:<6.2f} "
            f"{'' if flops is None else format(flops, '.2f'):>6} {row['peak_gib']:6.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="sd15")
    parser.add_argument("--size", type=int, default=1024, help="pixels, square, multiple of 512")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=int, nargs="+", default=[tokendown.PatchConfig().budget])
    parser.add_argument("--only", nargs="+", help="methods whose names start with these")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", help="also write the JSON record to this file")
    arguments = parser.parse_args()
    result = record(arguments, run(arguments))
    print_table(result["methods"])
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump(result, file, indent=1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
