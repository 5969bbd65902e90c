"""The ways to weigh kept keys on a CUDA card: what log m costs in each of PyTorch's kernels.

    python benchmarks/attention_cuda.py --out benchmarks/results/attention-cuda.json
    python benchmarks/attention_cuda.py --device cpu --small       # tries the script

Layers of published models with the keys that are kept of them, random values, one attention call
each; dense attention beside it tells what a kernel can do. Ways take turns within a round. Each is
compared with float64 for some queries before it is timed; one that a kernel refuses says so. A
bias goes in as a mask, in one more head channel (``fold_bias``), through FlexAttention, or not at
all: two calls, over grid keys and exact keys, are merged by their log-sum-exp (``multiplicity``).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tokendown.attention import fold_bias
from tokendown.bench.machine import hardware, software
from tokendown.bench.measure import measure
from tokendown.flops import attention_flops
from tokendown.multiplicity import kernel_for, merged

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@dataclass(frozen=True)
class Case:
    """One layer.

    Args:
        name: model and size.
        heads, size: of the heads.
        queries: tokens, text included.
        grid: kept image keys, each counting ``factor`` squared.
        exact: anchors and text.
    """

    name: str
    batch: int
    heads: int
    size: int
    queries: int
    grid: int
    exact: int
    factor: int = 2


CASES = (
    Case("sd15 1024, auto", 2, 8, 40, 16384, 1024, 32, 4),
    Case("sd15 2048, paper", 2, 8, 40, 65536, 4096, 32, 4),
    Case("sdxl 2048", 2, 10, 64, 16384, 4096, 32),
    Case("sd35 2048", 2, 24, 64, 16384 + 333, 4096, 333 + 32),
    Case("flux 2048", 1, 24, 128, 16384 + 512, 4096, 512 + 32),
    Case("wan-14b 720p", 1, 40, 128, 75600, 18900, 32),
)
SMALL = (Case("small", 2, 3, 16, 144, 36, 5),)


@dataclass(frozen=True)
class Layer:
    """[B, N, heads, d] transposed, as processors have them; ``dense`` are all the keys."""

    case: Case
    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor

    @property
    def scale(self) -> float:
        return float(self.case.size**-0.5)


def make_layer(case: Case, device: torch.device, dtype: torch.dtype) -> Layer:
    """Noise of unit size."""
    generator = torch.Generator(device).manual_seed(0)

    def noise(tokens: int) -> Tensor:
        shape = case.batch, tokens, case.heads, case.size
        return torch.randn(shape, generator=generator, device=device, dtype=dtype).transpose(1, 2)

    keys = case.grid + case.exact
    bias = torch.zeros(keys, device=device, dtype=dtype)
    bias[: case.grid] = 2 * math.log(case.factor)
    return Layer(case, noise(case.queries), noise(keys), noise(keys), bias)


# Ways


def plain(layer: Layer) -> Tensor:
    """Another result: what the others would cost if weighing keys were free."""
    return sdpa(layer.query, layer.key, layer.value)


def broadcast_mask(layer: Layer) -> Tensor:
    """[1, 1, 1, keys]: what is done today on PyTorch's default."""
    return sdpa(layer.query, layer.key, layer.value, layer.bias[None, None, None])


def expanded_mask(layer: Layer) -> Tensor:
    """[B, heads, queries, keys] without memory of its own."""
    shape = (*layer.query.shape[:3], layer.key.shape[2])
    return sdpa(layer.query, layer.key, layer.value, layer.bias.expand(shape))


def extra_channel(layer: Layer) -> Tensor:
    """log m in one more channel, padded to a multiple of 8: what is done on chosen backends."""
    query, key, value = fold_bias(
        layer.query, layer.key, layer.value, layer.bias, scale=layer.scale
    )
    return sdpa(query, key, value, scale=layer.scale)[..., : layer.case.size]


def two_calls(names: dict[bool, str]) -> Callable[[Layer], Tensor]:
    """Grid keys and exact keys apart.

    Args:
        names: of the kernels, for many keys (True) and for few.
    """

    def run(layer: Layer) -> Tensor:
        def kernel(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Any:
            chosen = kernel_for(query, key, value, names[key.shape[2] == layer.case.grid])
            assert chosen is not None
            return chosen(query, key, value, scale)

        runs = (layer.case.grid, layer.case.factor**2), (layer.case.exact, 1)
        return merged(layer.query, layer.key, layer.value, runs, kernel)

    return run


def flex(layer: Layer) -> Tensor:
    """FlexAttention, compiled."""
    return _flex()(layer.query, layer.key, layer.value, layer.bias)


@cache
def _flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Any:
        def weigh(score: Tensor, b: Any, h: Any, q: Any, k: Tensor) -> Tensor:
            return score + bias[k]

        return flex_attention(query, key, value, score_mod=weigh)

    return torch.compile(attend, dynamic=False)


def within(kernel: SDPBackend, way: Callable[[Layer], Tensor]) -> Callable[[Layer], Tensor]:
    """A way, on one kernel."""

    def run(layer: Layer) -> Tensor:
        with sdpa_kernel([kernel]):
            return way(layer)

    return run


def ways(device: torch.device, flexible: bool) -> dict[str, Callable[[Layer], Tensor]]:
    """Name to what is timed; those without a bias have another result."""
    found: dict[str, Callable[[Layer], Tensor]] = {}
    sorts = {"no bias": plain, "mask": broadcast_mask, "expanded mask": expanded_mask,
             "channel": extra_channel}  # fmt: skip
    for sort, way in sorts.items():
        found[f"{sort}, default"] = way
        if device.type == "cuda":
            found |= {f"{sort}, {name}": within(k, way) for name, k in KERNELS.items()}
    if device.type == "cuda":
        for name in ("cudnn", "flash"):
            found[f"two calls, {name}"] = two_calls({True: name, False: name})
        found["two calls, cudnn and flash"] = two_calls({True: "cudnn", False: "flash"})
    if flexible:
        found["flex"] = flex
    return found


# Measuring


def error(layer: Layer, way: Callable[[Layer], Tensor]) -> float:
    """Norm of the error over that of the first queries of the first item, in float64."""
    few = slice(0, 64)
    logits = layer.query[:1, :, few].double() @ layer.key[:1].double().transpose(-1, -2)
    weights = (logits * layer.scale + layer.bias.double()).softmax(dim=-1)
    want = weights @ layer.value[:1].double()
    return float((way(layer)[:1, :, few].double() - want).norm() / want.norm())


def measure_case(
    case: Case, device: torch.device, dtype: torch.dtype, rounds: int, flexible: bool
) -> dict[str, dict[str, Any]]:
    """Rows of one layer; seconds of dense attention on each kernel beside them."""
    layer = make_layer(case, device, dtype)
    dense = Layer(case, layer.query, layer.query.clone(), layer.query.clone(), layer.bias)
    calls = {name: partial(way, layer) for name, way in ways(device, flexible).items()}
    if device.type == "cuda":
        calls |= {f"dense, {name}": partial(within(k, plain), dense) for name, k in KERNELS.items()}
    rows: dict[str, dict[str, Any]] = {}
    for name in list(calls):
        row: dict[str, Any] = {"seconds": []}
        try:
            if name.startswith(("dense", "no bias")):
                calls[name]()
            else:
                row["error"] = float(f"{error(layer, calls[name].func):.2g}")
        except Exception as reason:  # a kernel that refuses the shape, in any of many ways
            row = {"refused": f"{type(reason).__name__}: {str(reason).splitlines()[0][:120]}"}
            del calls[name]
        rows[name] = row
    names = list(calls)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            timing = measure(lambda name=name: [calls[name](), {}][1], device, warmup=1)
            rows[name]["seconds"].append(round(timing.median, 7))
    return rows


def report(case: Case, rows: dict[str, dict[str, Any]]) -> None:
    """One table."""
    free = [row for name, row in rows.items() if name.startswith("no bias") and "seconds" in row]
    best = min(median(row["seconds"]) for row in free)
    print(f"\n{case}\n{'':26} {'ms':>9} {'of best':>8} {'TFLOP/s':>8} {'error':>8}")
    for name, row in rows.items():
        if "refused" in row:
            print(f"{name:26} {row['refused']}")
            continue
        keys = case.queries if name.startswith("dense") else case.grid + case.exact
        flops = case.batch * attention_flops(case.queries, keys, case.heads, case.size)
        taken = median(row["seconds"])
        row |= {"of_best": round(taken / best, 3), "tflops": round(flops / taken / 1e12, 1)}
        print(f"{name:26} {1e3 * taken:9.3f} {row['of_best']:8.3f} {row['tflops']:8.1f} "
              f"{row.get('error', ''):>8}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--small", action="store_true", help="tiny layers; tells nothing")
    parser.add_argument("--no-flex", action="store_true", help="its compilation takes a while")
    parser.add_argument("--case", action="append", help="first word of a layer; default: all")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    found = {}
    with torch.no_grad():
        for case in SMALL if options.small else CASES:
            if options.case and case.name.split()[0] not in options.case:
                continue
            found[case.name] = measure_case(
                case, device, dtype, options.rounds, not options.no_flex
            )
            report(case, found[case.name])
            if options.out:
                record = {"benchmark": "attention_cuda", "dtype": options.dtype,
                          "rounds": options.rounds, "hardware": hardware(device), **software(),
                          "cases": found}  # fmt: skip
                options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
