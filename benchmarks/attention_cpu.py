"""What one patched self-attention layer costs beside its FLOPs, and the ways to weigh its keys.

    python benchmarks/attention_cpu.py                       # [2, 8, 65536, 40], 1024 + 32 keys
    python benchmarks/attention_cpu.py --queries 16384 --head-dim 80 --rounds 7

The layer is the finest one of Stable Diffusion 1.5 at 2048 pixels. Candidates and parts take turns.
All but the first two candidates compute the same, and are checked against float64 before they are
timed. GFLOP/s count matrix products only, as the predictions do: where they are lower than those
of a projection, the layer costs more than its FLOPs say. Prints a table, and as the last line JSON.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional

from tokendown.attention import fold_bias, vector_norm
from tokendown.bench.machine import hardware, software
from tokendown.bench.measure import measure
from tokendown.flops import attention_flops, projection_flops
from tokendown.grid import Grid
from tokendown.select import select

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # returns the log-sum-exp
Candidate = Callable[["Layer"], Tensor]


@dataclass(frozen=True)
class Layer:
    """Tensors of one layer.

    Attributes:
        tokens: [B, N, heads * d], before the projections.
        query: [B, heads, N, d], a transposed view as diffusers' processors have it.
        key: [B, heads, grid keys + anchors, d], likewise.
        value: likewise.
        multiplicity: [grid keys + anchors].
        anchors: how many of the last keys have multiplicity 1.
        grid: of the tokens.
        factor: linear.
    """

    tokens: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    multiplicity: Tensor
    anchors: int
    grid: Grid
    factor: int

    @property
    def bias(self) -> Tensor:
        return self.multiplicity.log()

    @property
    def scale(self) -> float:
        return float(self.query.shape[-1] ** -0.5)


def make_layer(options: argparse.Namespace) -> Layer:
    """Noise of unit size; a few keys are long, as attention sinks are."""
    side = math.isqrt(options.queries)
    grid = Grid(side, options.queries // side)
    factor = grid.factor_for(options.budget)
    coarse, width = grid.coarse(factor).tokens, options.heads * options.head_dim
    generator = torch.Generator().manual_seed(0)

    def noise(tokens: int) -> Tensor:
        return torch.randn(options.batch, tokens, width, generator=generator)

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (options.heads, options.head_dim)).transpose(1, 2)

    key = noise(coarse + options.anchors)
    key[:, coarse:] *= 3
    multiplicity = torch.full((coarse + options.anchors,), float(factor**2))
    multiplicity[coarse:] = 1.0
    return Layer(
        noise(grid.tokens), heads(noise(grid.tokens)), heads(key),
        heads(noise(coarse + options.anchors)), multiplicity, options.anchors, grid, factor,
    )  # fmt: skip


# Candidates


def no_bias(layer: Layer) -> Tensor:
    """Another result; what the others would cost if weighing keys were free."""
    return functional.scaled_dot_product_attention(layer.query, layer.key, layer.value)


def grid_alone(layer: Layer) -> Tensor:
    """Another result; tells what the anchors cost where a kernel works on blocks of 512 keys."""
    keys = slice(0, layer.key.shape[-2] - layer.anchors)
    return functional.scaled_dot_product_attention(
        layer.query, layer.key[..., keys, :], layer.value[..., keys, :]
    )


def broadcast_mask(layer: Layer) -> Tensor:
    """[1, 1, 1, keys]."""
    mask = layer.bias[None, None, None]
    return functional.scaled_dot_product_attention(layer.query, layer.key, layer.value, mask)


def mask_of_the_processor(layer: Layer) -> Tensor:
    """[B, heads, 1, keys], as diffusers' processor makes it of [B, 1, keys]: what is done today."""
    batch, heads = layer.query.shape[:2]
    mask = layer.bias.expand(batch, 1, -1).repeat_interleave(heads, dim=0)
    mask = mask.view(batch, heads, -1, mask.shape[-1])
    return functional.scaled_dot_product_attention(layer.query, layer.key, layer.value, mask)


def extra_channel(layer: Layer, multiple: int = 1) -> Tensor:
    """log m in one more channel of the keys."""
    size = layer.query.shape[-1]
    query, key, value = fold_bias(
        layer.query, layer.key, layer.value, layer.bias, scale=layer.scale, multiple=multiple
    )
    out = functional.scaled_dot_product_attention(query, key, value, scale=layer.scale)
    return out[..., :size]


def extra_channel_padded(layer: Layer) -> Tensor:
    """The same, padded to a multiple of 8 channels."""
    return extra_channel(layer, 8)


def weighted_values(layer: Layer) -> Tensor:
    """Values times m, and m itself in one more channel; the result is divided by that channel.

    sum(m e v) / sum(m e) is the quotient of two plain softmax averages. No bias, and in half
    precision exact for factors that are powers of two.
    """
    weights = layer.multiplicity[:, None] / layer.multiplicity.max()
    value = torch.cat([layer.value * weights, weights.expand(*layer.value.shape[:-1], 1)], dim=-1)
    query, key = functional.pad(layer.query, (0, 1)), functional.pad(layer.key, (0, 1))
    out = functional.scaled_dot_product_attention(query, key, value, scale=layer.scale)
    return out[..., :-1] / out[..., -1:]


def two_calls(layer: Layer) -> Tensor:
    """Grid and anchors apart, merged by their log-sum-exp."""
    coarse = layer.key.shape[-2] - layer.anchors
    parts = []
    for keys in (slice(0, coarse), slice(coarse, None)):
        out, total = ATTENTION(layer.query, layer.key[..., keys, :], layer.value[..., keys, :])
        parts.append((out, total))
    (grid, grid_total), (anchors, anchors_total) = parts
    share = torch.sigmoid(grid_total + 2 * math.log(layer.factor) - anchors_total)
    share = share.to(grid.dtype).unsqueeze(-1)
    return torch.lerp(anchors, grid, share)


def matmul_in_chunks(layer: Layer, chunk: int = 1024) -> Tensor:
    """Plain products and softmax, some queries at a time, so that the logits stay in the cache."""
    out = torch.empty_like(layer.query)
    keys = layer.key.transpose(-1, -2) * layer.scale
    for begin in range(0, layer.query.shape[-2], chunk):
        part = slice(begin, begin + chunk)
        logits = (layer.query[..., part, :] @ keys).add_(layer.bias)
        out[..., part, :] = logits.softmax(dim=-1) @ layer.value
    return out


def matmul_in_small_chunks(layer: Layer) -> Tensor:
    """128 queries at a time."""
    return matmul_in_chunks(layer, 128)


CANDIDATES: dict[str, Candidate] = {
    "no bias (another result)": no_bias,
    "grid keys alone (another result)": grid_alone,
    "mask, as the processor makes it": mask_of_the_processor,
    "mask, broadcast": broadcast_mask,
    "extra channel": extra_channel,
    "extra channel, padded to 8": extra_channel_padded,
    "values times m": weighted_values,
    "two calls, log-sum-exp": two_calls,
    "matmul and softmax, 1024 queries": matmul_in_chunks,
    "matmul and softmax, 128 queries": matmul_in_small_chunks,
}


OTHERS = tuple(CANDIDATES)[:2]


# What else a patched layer does


def parts_of(layer: Layer) -> dict[str, Callable[[], object]]:
    """Name to a call that does it."""
    width = layer.tokens.shape[-1]
    weight = torch.randn(width, width, generator=torch.Generator().manual_seed(1)) / width**0.5
    scores = vector_norm(layer.tokens)
    kept = select(scores, layer.grid, layer.factor, anchors=layer.anchors)
    result = no_bias(layer)
    return {
        "projection (to_q, to_out)": lambda: functional.linear(layer.tokens, weight),
        "layer norm": lambda: functional.layer_norm(layer.tokens, (width,)),
        "lengths of the tokens": lambda: vector_norm(layer.tokens),
        "choice of the anchors (top-k)": lambda: select(
            scores, layer.grid, layer.factor, anchors=layer.anchors
        ),
        "strides and gather": lambda: kept.take(layer.tokens),
        "heads back to channels": lambda: result.transpose(1, 2).flatten(2),
    }


def check(layer: Layer) -> dict[str, float]:
    """Largest error of every candidate, over the first queries, against float64."""
    few = slice(0, 64)
    logits = layer.query[..., few, :].double() @ layer.key.double().transpose(-1, -2)
    weights = (logits * layer.scale + layer.bias.double()).softmax(dim=-1)
    want = weights @ layer.value.double()
    errors = {
        name: float((candidate(layer)[..., few, :].double() - want).abs().max())
        for name, candidate in CANDIDATES.items()
    }
    wrong = {name: error for name, error in errors.items() if error > 1e-4 and name not in OTHERS}
    if wrong:
        raise SystemExit(f"these do not compute the weighted attention: {wrong}")
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=40)
    parser.add_argument("--queries", type=int, default=65536, help="a square number")
    parser.add_argument("--budget", type=int, default=1024, help="most grid keys")
    parser.add_argument("--anchors", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cpu = torch.device("cpu")
    layer = make_layer(options)
    with torch.no_grad():
        errors = check(layer)  # warms up as well
        calls: dict[str, Callable[[], object]] = {
            name: lambda candidate=candidate: candidate(layer)
            for name, candidate in CANDIDATES.items()
        }
        calls |= parts_of(layer)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        names = list(calls)
        for number in range(options.rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                timing = measure(lambda name=name: [calls[name](), {}][1], cpu)
                seconds[name].append(timing.median)
    report(options, layer, seconds, errors)


def report(
    options: argparse.Namespace,
    layer: Layer,
    seconds: dict[str, list[float]],
    errors: dict[str, float],
) -> None:
    """Table and JSON."""
    batch, heads, queries, size = layer.query.shape
    flops = dict.fromkeys(
        CANDIDATES, batch * attention_flops(queries, layer.key.shape[-2], heads, size)
    )
    width = heads * size
    flops["projection (to_q, to_out)"] = projection_flops(batch * queries, width, width)
    base = seconds["no bias (another result)"]
    rows = {}
    for name, values in seconds.items():
        ratios = [value / reference for value, reference in zip(values, base, strict=True)]
        rows[name] = {
            "seconds": [round(value, 5) for value in values],
            "median_s": round(median(values), 5),
            "over_no_bias": round(median(ratios), 4),
            "gflops": round(flops[name] / median(values) / 1e9, 1) if name in flops else None,
            "error": errors.get(name),
        }
    print(f"{'':34} {'median ms':>10} {'range':>17} {'of no bias':>10} {'GFLOP/s':>8}")
    for name, row in rows.items():
        low, high = (1e3 * f(row["seconds"]) for f in (min, max))
        print(
            f"{name:34} {1e3 * row['median_s']:10.1f} {low:8.1f}-{high:<8.1f} "
            f"{row['over_no_bias']:10.3f} {row['gflops'] or '':>8}"
        )
    record = {
        "benchmark": "attention_cpu", **vars(options), "factor": layer.factor,
        "hardware": hardware(torch.device("cpu")), "threads": torch.get_num_threads(),
        **software(), "rows": rows,
    }  # fmt: skip
    print(json.dumps(record))


if __name__ == "__main__":
    main()
