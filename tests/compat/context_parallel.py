"""Context-parallel runs on CPU processes; writes what the test wants to know as JSON.

Started by test_joint_parallel.py with a folder: imports once, and forks the ranks from there.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.models import attention_dispatch
from torch.multiprocessing import start_processes

import joint_reference
import tiny
import tiny_transformers
from tokendown import GridError, apply_patch

SIZE = (8, 6)
TEXT = 4
HEADS = 4

# Ranks, model, degrees of the parallelism. Uneven shards ("anything") are for an odd text.
RUNS: list[tuple[int, str, dict[str, Any]]] = [
    (2, "flux", {"ulysses_degree": 2}),
    (2, "flux", {"ring_degree": 2}),
    (2, "wan", {"ulysses_degree": 2}),
    (2, "flux", {"ulysses_degree": 2, "ulysses_anything": True}),
    (2, "flux", {"ring_degree": 2, "ring_anything": True}),
    (4, "flux", {"ulysses_degree": 4}),
    (4, "flux", {"ring_degree": 4}),
    (4, "flux", {"ulysses_degree": 2, "ring_degree": 2}),
    (4, "wan", {"ulysses_degree": 4}),
    (4, "qwen_image", {"ulysses_degree": 4}),
]
ANCHORS = (0, 4)


def with_lse(ctx: Any, query: Any, key: Any, value: Any, mask: Any, *rest: Any, **_: Any) -> Any:
    """An attention for the ring that tells its log-sum-exp: PyTorch's own on a CPU does not."""
    scale = rest[2] if rest[2] is not None else 1 / math.sqrt(query.shape[-1])
    logits = torch.einsum("bqhd,bkhd->bqhk", query, key) * scale
    out = torch.einsum("bqhk,bkhd->bqhd", logits.softmax(-1), value)
    return (out, logits.logsumexp(-1)) if rest[4] else out


class Counter:
    """How many numbers are sent, one entry an exchange."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    def wrap(self, function: Any) -> Any:
        def counted(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            self.sent.append(tensor.numel())
            return function(tensor, *args, **kwargs)

        return counted

    def taken(self) -> list[int]:
        sent, self.sent = self.sent, []
        return sent


def run(model: Any, kind: str, size: tuple[int, int], text: int = TEXT) -> torch.Tensor:
    inputs = tiny_transformers.inputs(kind, model, *size)
    if kind != "wan":  # joint text is shared among the ranks as well
        for name in ("encoder_hidden_states", "encoder_hidden_states_mask"):
            if name in inputs:
                inputs[name] = inputs[name][:, :text]
    if "txt_ids" in inputs:
        inputs["txt_ids"] = inputs["txt_ids"][:text]
    with torch.no_grad():
        return tiny.flatten(model(**inputs, return_dict=False))


def refusal(model: Any, kind: str, **inputs: Any) -> str:
    """The message with which a run ends, or nothing."""
    try:
        with torch.no_grad():
            given = {**tiny_transformers.inputs(kind, model, *SIZE), **inputs}
            model(**given, return_dict=False)
    except GridError as error:
        return str(error)
    return ""


def differences(kind: str, degrees: dict[str, Any], counter: Counter) -> dict[str, Any]:
    """Parallel against the written-out reference and one patched process; numbers sent."""
    model = getattr(tiny_transformers, kind)(num_attention_heads=HEADS)
    text = TEXT + 1 if any("anything" in name for name in degrees) else TEXT
    ranks = dist.get_world_size()
    frames = tiny_transformers.FRAMES if kind == "wan" else 1
    parallel = copy.deepcopy(model)
    parallel.enable_parallelism(config=ContextParallelConfig(**degrees))
    run(parallel, kind, SIZE, text)
    found: dict[str, Any] = {"dense": counter.taken()}
    for anchors in ANCHORS:
        reference = copy.deepcopy(model)
        shapes = ((frames, *SIZE),)
        want = joint_reference.Want(shapes, anchors=anchors, ranks=ranks)
        joint_reference.coarsen(reference, kind, want)
        with apply_patch(parallel, factor=2, anchors=anchors):
            got = run(parallel, kind, SIZE, text)
        sent = counter.taken()
        with apply_patch(model, factor=2, anchors=anchors):
            single = run(model, kind, SIZE, text)
        expected = run(reference, kind, SIZE, text)
        found[f"{anchors} anchors"] = {
            "reference": ((got - expected).abs().max() / expected.abs().max()).item(),
            "single": ((got - single).abs().max() / single.abs().max()).item(),
            "sent": sent,
        }
    return found


def refusals() -> dict[str, str]:
    """What is not done by halves."""
    flux = tiny_transformers.flux(num_attention_heads=HEADS)
    flux.enable_parallelism(config=ContextParallelConfig(ulysses_degree=dist.get_world_size()))
    ids = [tiny_transformers.position_ids(4, 6, picture) for picture in (0, 1)]
    text = {"encoder_hidden_states": torch.zeros(2, TEXT, 8), "txt_ids": torch.zeros(TEXT, 3)}
    inputs = {
        "rows": {"img_ids": tiny_transformers.position_ids(6, 8), **text},
        "references": {"img_ids": torch.cat(ids), **text},
    }
    with apply_patch(flux, factor=2):
        found = {name: refusal(flux, "flux", **given) for name, given in inputs.items()}
    with apply_patch(flux):  # within the budget everything is kept
        dense = [refusal(flux, "flux", **given) for given in inputs.values()]
    return {**found, "dense": "".join(dense)}


def one_rank(rank: int, ranks: int, folder: str) -> None:
    """Everything that ``ranks`` processes do together."""
    torch.accelerator.device_count = lambda: 1  # diffusers asks for it, and a CPU has none
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store{ranks}", rank=rank, world_size=ranks
    )
    counter = Counter()
    attention_dispatch._all_to_all_single = counter.wrap(attention_dispatch._all_to_all_single)
    gather = attention_dispatch.funcol.all_gather_tensor
    attention_dispatch.funcol.all_gather_tensor = counter.wrap(gather)
    native, found = attention_dispatch._native_attention_forward_op, {}
    for count, kind, degrees in RUNS:
        if count == ranks:
            ring = "ring_degree" in degrees
            attention_dispatch._native_attention_forward_op = with_lse if ring else native
            found[f"{kind} {' '.join(degrees)}"] = differences(kind, degrees, counter)
    found["refused"] = refusals()
    if rank == 0:
        Path(folder, f"{ranks}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    tiny_transformers.flux()  # what this imports is then there in every rank
    for ranks in sorted({count for count, *_ in RUNS}):
        start_processes(one_rank, args=(ranks, sys.argv[1]), nprocs=ranks, start_method="fork")
