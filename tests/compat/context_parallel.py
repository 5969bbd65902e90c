"""One rank of a context-parallel run on CPUs; prints what the test wants to know as JSON.

Started by test_joint_parallel.py with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.models import attention_dispatch

import tiny
import tiny_transformers
from tokendown import GridError, apply_patch

PATCH = {"factor": 2, "anchors": 0}
SIZE = (8, 6)


def with_lse(ctx: Any, query: Any, key: Any, value: Any, mask: Any, *rest: Any, **_: Any) -> Any:
    """An attention for the ring that tells its log-sum-exp: PyTorch's own on a CPU does not."""
    scale = rest[2] if rest[2] is not None else 1 / math.sqrt(query.shape[-1])
    logits = torch.einsum("bqhd,bkhd->bqhk", query, key) * scale
    out = torch.einsum("bqhk,bkhd->bqhd", logits.softmax(-1), value)
    return (out, logits.logsumexp(-1)) if rest[4] else out


class Counter:
    """How many numbers are sent, by kind of exchange."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    def wrap(self, function: Any) -> Any:
        def counted(tensor: Any, *args: Any, **kwargs: Any) -> Any:
            self.sent.append(tensor.numel())
            return function(tensor, *args, **kwargs)

        return counted


def run(model: Any, kind: str, size: tuple[int, int]) -> torch.Tensor:
    inputs = tiny_transformers.inputs(kind, model, *size)
    if kind == "flux":  # text is shared among the ranks as well
        inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"][:, :4]
        inputs["txt_ids"] = inputs["txt_ids"][:4]
    with torch.no_grad():
        return tiny.flatten(model(**inputs, return_dict=False))


def compare(kind: str, mode: str) -> dict[str, Any]:
    """Single process, then parallel, dense and patched; largest difference and numbers sent."""
    single, parallel = (getattr(tiny_transformers, kind)() for _ in range(2))
    with apply_patch(single, **PATCH):
        want = run(single, kind, SIZE)
    degree = {f"{mode}_degree": dist.get_world_size()}
    parallel.enable_parallelism(config=ContextParallelConfig(**degree))
    counter = Counter()
    exchange = attention_dispatch._all_to_all_single
    gather = attention_dispatch.funcol.all_gather_tensor
    attention_dispatch._all_to_all_single = counter.wrap(exchange)
    attention_dispatch.funcol.all_gather_tensor = counter.wrap(gather)
    run(parallel, kind, SIZE)
    dense = list(counter.sent)
    counter.sent.clear()
    with apply_patch(parallel, **PATCH):
        got = run(parallel, kind, SIZE)
    sent = list(counter.sent)
    attention_dispatch._all_to_all_single = exchange
    attention_dispatch.funcol.all_gather_tensor = gather
    refused = ""
    try:
        with apply_patch(parallel, **PATCH):
            run(parallel, kind, (6, 6))  # three rows a rank
    except GridError as error:
        refused = str(error)
    difference = (got - want).abs().max() / want.abs().max()
    return {"difference": difference.item(), "dense": dense, "sent": sent, "refused": refused}


def main() -> None:
    torch.accelerator.device_count = lambda: 1  # diffusers asks for it, and a CPU has none
    dist.init_process_group("gloo")
    found = {f"ulysses {kind}": compare(kind, "ulysses") for kind in ("flux", "wan")}
    attention_dispatch._native_attention_forward_op = with_lse
    found["ring flux"] = compare("flux", "ring")
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
