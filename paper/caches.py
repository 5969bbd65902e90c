"""What a cache of diffusers and fewer keys save together: counted FLOPs of a FLUX run.

    python -m paper.caches             # FLUX.1 dev; out/paper/caches.json and .md
    python -m paper.caches --quick     # seconds, a part of it, no file

The published widths on the meta device: no weights, nothing is computed, every matrix product is
counted by PyTorch. Blocks of a kind cost the same, so models with 2 and 3 blocks of a kind tell the
cost of all 57. Every cache is set to skip every second step after the first two, and its own rules
say what it skips in one: FirstBlockCache and MagCache all blocks (but the first), TaylorSeer,
PyramidAttentionBroadcast and FasterCache the attention modules (FasterCache's other part is for
guidance in two passes, which FLUX.1 dev does not have). How often a cache may skip at a given
quality depends on the picture; FirstBlockCache, which looks at it, is told here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch as replaced

import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks.first_block_cache import FBCHeadBlockHook
from paper.report import add_device, environment, markdown, write
from torch.utils.flop_counter import FlopCounterMode

from tokendown import apply_patch
from tokendown.adapters.skeleton import build_on_meta
from tokendown.bench.shapes import SHAPES
from tokendown.inputs import denoiser_inputs

FLUX = SHAPES["flux"]
FACTOR = 2
COMPUTED = 2  # steps before the first that may be skipped
BLOCKS = ("transformer_blocks", "single_transformer_blocks")


@dataclass
class Clock:
    """The current step."""

    step: int = 0

    @property
    def skips(self) -> bool:
        return self.step >= COMPUTED and self.step % 2 == 1

    def timestep(self) -> int:
        """What caches that count down see; from 500 on they may skip."""
        return 500 if self.step >= COMPUTED else 900


def pyramid(clock: Clock, steps: int) -> Any:
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 600),
        spatial_attention_block_identifiers=BLOCKS,
        current_timestep_callback=clock.timestep,
    )


def faster(clock: Clock, steps: int) -> Any:
    return FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 600),
        spatial_attention_block_identifiers=BLOCKS,
        unconditional_batch_skip_range=100,
        unconditional_batch_timestep_skip_range=(0, 1),
        attention_weight_callback=lambda _: 0.5,
        current_timestep_callback=clock.timestep,
        is_guidance_distilled=True,
    )


def magnitude(clock: Clock, steps: int) -> Any:
    return MagCacheConfig(
        threshold=10.0,
        max_skip_steps=1,
        retention_ratio=(COMPUTED + 0.5) / steps,
        num_inference_steps=steps,
        mag_ratios=torch.full((steps,), 0.9),
    )


CACHES: dict[str, Callable[[Clock, int], Any]] = {
    "none": lambda clock, steps: None,
    "FirstBlockCache": lambda clock, steps: FirstBlockCacheConfig(),
    "MagCache": magnitude,
    "TaylorSeer": lambda clock, steps: TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=COMPUTED
    ),
    "PyramidAttentionBroadcast": pyramid,
    "FasterCache": faster,
}


def count(name: str, patched: bool, side: int, steps: int, depths: tuple[int, int]) -> list[int]:
    """FLOPs of every step of a model with so many double and single blocks.

    Args:
        name: of the cache.
        patched: whether attention keeps fewer keys.
        side: of the picture in pixels.
        steps: of the run.
        depths: double and single blocks.
    """
    config = {**FLUX.config, "num_layers": depths[0], "num_single_layers": depths[1]}
    import diffusers

    model = build_on_meta(getattr(diffusers, FLUX.kind), config)
    inputs = denoiser_inputs(model, side // FLUX.scale, side // FLUX.scale, batch=1, device="meta")
    clock = Clock()
    if patched:
        tokens = side // (2 * FLUX.scale)
        apply_patch(model, factor=FACTOR).set_grid((tokens, tokens))
    if cache := CACHES[name](clock, steps):
        model.enable_cache(cache)
    model._reset_stateful_cache()
    found = []
    told = replaced.object(
        FBCHeadBlockHook, "_should_compute_remaining_blocks", lambda *_: not clock.skips
    )
    with told, torch.no_grad(), model.cache_context("cond"):
        for clock.step in range(steps):
            with FlopCounterMode(display=False) as counter:
                model(**inputs)
            found.append(int(counter.get_total_flops()))
    return found


def whole(name: str, patched: bool, side: int, steps: int) -> list[int]:
    """FLOPs of every step at the published depths: each is a sum over blocks."""
    base, double, single = (count(name, patched, side, steps, d) for d in ((2, 2), (3, 2), (2, 3)))
    depths = [FLUX.depths[stack] for stack in BLOCKS]
    return [
        b + (depths[0] - 2) * (d - b) + (depths[1] - 2) * (s - b)
        for b, d, s in zip(base, double, single, strict=True)
    ]


def rows(names: list[str], side: int, steps: int) -> list[dict[str, Any]]:
    """One a cache; speed-ups are over the dense run without a cache."""
    flops = {
        (name, patched): whole(name, patched, side, steps)
        for name in names
        for patched in (False, True)
    }
    dense = sum(flops["none", False])
    found = []
    for name in names:
        alone, both = (dense / sum(flops[name, patched]) for patched in (False, True))
        found.append(
            {
                "cache": name,
                "size": side,
                "alone": round(alone, 4),
                "with_factor_2": round(both, 4),
                "product": round(alone * dense / sum(flops["none", True]), 4),
                "tflops_a_step": [round(f / 1e12, 2) for f in flops[name, False]],
                "tflops_a_step_with_factor_2": [round(f / 1e12, 2) for f in flops[name, True]],
            }
        )
    return found


def table(found: list[dict[str, Any]]) -> str:
    """One line a cache and size."""
    head = ["size", "cache", "cache alone", f"with factor {FACTOR}", "product of the two"]
    keys = ("alone", "with_factor_2", "product")
    return markdown(
        head, [[str(r["size"]), r["cache"], *(f"{r[k]:.2f}" for k in keys)] for r in found]
    )


def main() -> None:
    """Counts and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs="+", default=[1024, 2048], help="pixels, square")
    parser.add_argument("--steps", type=int, default=10)
    add_device(parser)  # nothing is computed there: the count is the same everywhere
    parser.add_argument("--quick", action="store_true", help="a trial of the script; no file")
    a = parser.parse_args()
    names = list(CACHES)
    if a.quick:
        a.size, a.steps, names = [256], 4, ["none", "TaylorSeer"]
    found = []
    for side in a.size:
        found += rows(names, side, a.steps)
    print(table(found))
    if a.quick:
        return
    record = {
        "command": "python -m paper.caches", "model": FLUX.name, "steps": a.steps,
        "computed_first": COMPUTED, "factor": FACTOR, "anchors": 32, **environment(), "rows": found,
    }  # fmt: skip
    write(a.out / "caches.json", record, table(found))


if __name__ == "__main__":
    main()
