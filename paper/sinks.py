"""Where a trained network's attention sinks are, and how few keys keep its output.

    python -m paper.sinks           # out/paper/sinks.json

Patches the 32 x 32 layers of the network in ``paper/terrain.py``, samples with the same noise, and
compares with dense attention: mean squared error over the variance of the dense output. Then
times what each way of scoring tokens costs beside attention of Stable Diffusion 1.5's size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from paper import terrain
from paper.report import OUT, environment, spread
from paper.terrain import Site
from torch import Tensor
from torch.nn import functional

from tokendown.grid import Grid
from tokendown.multiplicity import bias_of
from tokendown.select import Selection, select, select_tokens

TOKENS = 1024  # only the layers with a 32 x 32 grid are patched, the smaller ones stay dense
INPUT_NORM = "input norm"

# Scores: (site, query, key) -> [B, heads or 1, N]; the largest become anchors

Score = Callable[[Site, Tensor, Tensor], Tensor]


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1)


def _key_norm_per_head(site: Site, query: Tensor, key: Tensor) -> Tensor:
    return _norm(key)


def _key_norm_shared(site: Site, query: Tensor, key: Tensor) -> Tensor:
    return _norm(key.transpose(1, 2).flatten(2))[:, None]


def _input_norm(site: Site, query: Tensor, key: Tensor) -> Tensor:
    """Before the block's norm layer: the residual stream."""
    return _norm(site.block_input)[:, None]


def _normed_input_norm(site: Site, query: Tensor, key: Tensor) -> Tensor:
    """After the block's norm layer, which is a GroupNorm here and leaves tokens their length."""
    return _norm(site.normed_input)[:, None]


def _layer_normed_input_norm(site: Site, query: Tensor, key: Tensor) -> Tensor:
    """What would be left if the block had a LayerNorm; centred, else every norm is the same."""
    x = functional.layer_norm(site.block_input, site.block_input.shape[-1:])
    return _norm(x - x.mean(1, keepdim=True))[:, None]


def _mean_query(site: Site, query: Tensor, key: Tensor) -> Tensor:
    """Attention that the average query pays, summed over heads; one query, so nearly free."""
    logits = torch.einsum("bhd,bhnd->bhn", query.mean(2), key) / key.shape[-1] ** 0.5
    return logits.softmax(-1).sum(1, keepdim=True)


def _received(site: Site, query: Tensor, key: Tensor) -> Tensor:
    """Attention received from 64 queries on a strided grid, summed over heads."""
    logits = select_tokens(query, site.grid, 4) @ key.transpose(-1, -2) / key.shape[-1] ** 0.5
    return logits.softmax(-1).sum((1, 2))[:, None]


def _random(site: Site, query: Tensor, key: Tensor) -> Tensor:
    """The control: the same tokens in every step."""
    generator = torch.Generator().manual_seed(site.layer)
    return torch.rand(key.shape[0], 1, key.shape[2], generator=generator)


SCORES: dict[str, Score] = {
    "key norm, per head": _key_norm_per_head,
    "key norm, all heads": _key_norm_shared,
    INPUT_NORM: _input_norm,
    "normed input norm": _normed_input_norm,
    "layer-normed input norm": _layer_normed_input_norm,
    "mean query": _mean_query,
    "received, 64 queries": _received,
    "random": _random,
}

# One setting


@dataclass(frozen=True)
class Setting:
    """What is kept, and for how long.

    Args:
        factor: linear, of the grid.
        anchors: tokens kept besides the grid.
        score: a key of ``SCORES``.
        phase: "top-left" or "bottom-right" token of each cell, or the "mean" of its tokens.
        bias: whether log m is added to the logits.
        refresh: anchors are chosen in every ``refresh``-th step and reused in between.
        share: layers that use the anchors of the first of them: "none", those of one "stage"
            (encoder, decoder), or "all".
    """

    factor: int
    anchors: int = 0
    score: str = "key norm, per head"
    phase: str = "top-left"
    bias: bool = True
    refresh: int = 1
    share: str = "none"


@dataclass
class KeptKeys:
    """Attention to the keys of one setting, for :func:`paper.terrain.sample`."""

    setting: Setting
    chosen: dict[Any, Tensor] = field(default_factory=dict)
    history: list[tuple[int, int, Tensor]] = field(default_factory=list)
    step: int = 0

    def on_step(self, step: int) -> None:
        """Forgets the anchors at the start of a step that chooses them anew."""
        self.step = step
        if step % self.setting.refresh == 0:
            self.chosen.clear()

    def __call__(self, site: Site, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if site.grid.tokens != TOKENS:
            return terrain.dense(site, query, key, value)
        setting = self.setting
        if setting.phase == "bottom-right":  # the last token of a cell is the first of the reverse
            key, value = key.flip(-2), value.flip(-2)
        method = "mean" if setting.phase == "mean" else "nearest"
        kept = Selection(site.grid, setting.factor, method, self._anchors(site, query, key, method))
        bias = bias_of(kept.runs(), query) if setting.bias else None
        mask = None if bias is None else bias.view(1, 1, 1, -1)
        return functional.scaled_dot_product_attention(
            query, kept.take(key), kept.take(value), attn_mask=mask
        )

    def _anchors(self, site: Site, query: Tensor, key: Tensor, method: str) -> Tensor | None:
        setting = self.setting
        if not setting.anchors:
            return None
        # the network runs layers 0-3 on 32 x 32 tokens, then smaller grids, then layers 23-27
        groups = {"none": site.layer, "stage": site.layer < 14, "all": 0}
        group = groups[setting.share]
        if group not in self.chosen:
            scores = SCORES[setting.score](site, query, key).expand(key.shape[:-1])
            kept = select(scores, site.grid, setting.factor, anchors=setting.anchors, method=method)
            self.chosen[group] = kept.anchors
            self.history.append((self.step, site.layer, kept.anchors))
        return self.chosen[group]


def _settings() -> Iterator[tuple[str, Setting]]:
    """(experiment, setting); a setting may be part of several experiments, it runs once."""
    for factor in (2, 4, 8):
        for phase in ("top-left", "bottom-right", "mean"):
            yield "phase", Setting(factor, phase=phase)
        for anchors in (0, 1, 2, 4, 8, 16, 32, 64) if factor == 4 else (8, 16, 32):
            yield "anchors", Setting(factor, anchors)
        yield "no log m", Setting(factor, 32, bias=False)
    yield "phase", Setting(4, 32, phase="mean")
    for anchors in (8, 16, 32):
        for score in SCORES:
            yield "score", Setting(4, anchors, score)
    for anchors, score in ((32, INPUT_NORM), (16, INPUT_NORM), (32, "key norm, all heads")):
        for refresh in (2, 3, 5):
            yield "reuse over steps", Setting(4, anchors, score, refresh=refresh)
        for share in ("stage", "all"):
            yield "reuse over layers", Setting(4, anchors, score, share=share)
        yield "reuse over both", Setting(4, anchors, score, refresh=5, share="all")


def errors(seeds: int, steps: int) -> Iterator[list[dict[str, Any]]]:
    """After every seed, one record a setting with the relative errors so far."""
    net = terrain.load()
    settings = [*dict.fromkeys(_settings())]
    found: dict[Setting, list[float]] = {setting: [] for _, setting in settings}
    for seed in range(seeds):
        wanted = terrain.sample(net, seed=seed, steps=steps)
        for setting, runs in found.items():
            keys = KeptKeys(setting)
            output = terrain.sample(net, keys, seed=seed, steps=steps, on_step=keys.on_step)
            runs.append(terrain.relative_error(output, wanted))
        yield [
            {"experiment": name, **asdict(setting), **spread(found[setting])}
            for name, setting in settings
        ]


def overlap(steps: int, score: str) -> dict[str, Any]:
    """How far 32 anchors chosen in the first step, or layer, are those of the later ones."""
    keys = KeptKeys(Setting(4, 32, score))
    terrain.sample(terrain.load(), keys, batch=2, steps=steps, on_step=keys.on_step)
    chosen = {(step, layer): index[:, 0].tolist() for step, layer, index in keys.history}
    layers = sorted({layer for _, layer in chosen})

    def common(a: tuple[int, int], b: tuple[int, int]) -> float:
        pairs = zip(chosen[a], chosen[b], strict=True)
        return statistics.mean(len(set(x) & set(y)) / len(x) for x, y in pairs)

    return {
        "score": score,
        "with first step": [
            statistics.mean(common((0, layer), (step, layer)) for layer in layers)
            for step in range(steps)
        ],
        "with first layer": {
            layer: statistics.mean(common((s, layers[0]), (s, layer)) for s in range(steps))
            for layer in layers
        },
        "between images": statistics.mean(
            len(set(chosen[s, layer][0]) & set(chosen[s, layer][1])) / 32
            for s in range(steps)
            for layer in layers
        ),
    }


# Cost


def cost(rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of each score beside attention, at Stable Diffusion 1.5's size for 1024 pixels.

    16,384 tokens x 320 channels, 8 heads, batch 2 (guidance), float32; one of each per round.
    """
    batch, tokens, channels, heads = 2, 16384, 320, 8
    x = torch.randn(batch, tokens, channels)
    to_q, to_k = torch.randn(2, channels, channels) / channels**0.5

    def split(y: Tensor) -> Tensor:
        return y.unflatten(-1, (heads, -1)).transpose(1, 2)

    def attention(keys: int) -> Tensor:
        kept = key[:, :, : keys + 32]
        return functional.scaled_dot_product_attention(
            key, kept, kept, attn_mask=bias[:, : keys + 32]
        )

    def mean_query() -> Tensor:
        """Through W_k^T q, so that no token is projected."""
        mean = (x.mean(1) @ to_q.T).view(batch, heads, -1)
        lookup = torch.einsum("bhd,hdc->bhc", mean, to_k.view(heads, -1, channels))
        return (x @ lookup.transpose(1, 2)).softmax(1).sum(-1)

    def received() -> Tensor:
        query = split(x[:, :: tokens // 64] @ to_q.T)
        return (query @ split(x @ to_k.T).transpose(-1, -2)).softmax(-1).sum((1, 2))

    key, bias = split(x), torch.zeros(1, tokens)
    shared, per_head = torch.rand(batch, tokens), torch.rand(batch, heads, tokens)
    grid = Grid(128, 128)
    timed: dict[str, Callable[[], object]] = {
        "attention, 4096 + 32 keys": lambda: attention(4096),
        "attention, 1024 + 32 keys": lambda: attention(1024),
        "projection of all keys": lambda: x @ to_k.T,
        "key norm, per head, of keys given": lambda: _norm(key),
        "key norm, all heads, with projection": lambda: _norm(x @ to_k.T),
        "input norm": lambda: _norm(x),
        "mean query": mean_query,
        "received, 64 queries, with projection": received,
        "top 32 of 16384, all heads": lambda: select(shared, grid, 2, anchors=32),
        "top 32 of 16384, per head": lambda: select(per_head, grid, 2, anchors=32),
    }
    runs: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(rounds + 1):
        for name, call in timed.items():
            start = time.perf_counter()
            call()
            if number:  # the first round warms up
                runs[name].append(1000 * (time.perf_counter() - start))
    return [{"what": name, "unit": "ms", **spread(values)} for name, values in runs.items()]


# Report


def _table(records: list[dict[str, Any]]) -> str:
    skip = {"median", "low", "high", "runs"}
    lines = []
    for record in records:
        name = " | ".join(str(value) for key, value in record.items() if key not in skip)
        numbers = (record["median"], record["low"], record["high"])
        lines.append(f"{name:90s} {numbers[0]:9.3g}  ({numbers[1]:.3g} to {numbers[2]:.3g})")
    return "\n".join(lines)


def main() -> None:
    """Runs everything, prints tables, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=OUT / "sinks.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7, help="of the timing")
    parser.add_argument("--quick", action="store_true", help="a trial, under a minute; no file")
    args = parser.parse_args()
    if args.quick:
        args.seeds = args.steps = args.rounds = 1
    settings = {"seeds": args.seeds, "steps": args.steps, "rounds": args.rounds}
    with torch.inference_mode():
        record: dict[str, Any] = {
            "settings": settings,
            "environment": environment(),
            "cost": cost(args.rounds),
            "overlap": [overlap(args.steps, s) for s in (INPUT_NORM, "key norm, all heads")],
        }
        print(_table(record["cost"]), flush=True)
        for record["errors"] in errors(args.seeds, args.steps):
            print(f"{_table(record['errors'])}\n", flush=True)
            if not args.quick:
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
