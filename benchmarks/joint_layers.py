"""What a patched joint layer costs over the ideal for the keys that it keeps.

    python benchmarks/joint_layers.py                              # FLUX, SD3.5 medium, Wan 1.3B
    python benchmarks/joint_layers.py --shape flux --size 2048 --device cuda --dtype bfloat16 \\
        --backend default --backend flash --rounds 50              # on a GPU, kernel by kernel
    python benchmarks/joint_layers.py --quick                      # seconds; tells nothing

One attention module of each kind, at the published width with random weights, between its norm and
its block. The ideal is written by hand: it is given the kept tokens and their rotary positions, it
rotates them as the host does, and weighs no key. Candidates take turns, the start rotates; the cost
is the median of the ratios within a round. Where PyTorch's default attention is used the weights of
the keys go in as a mask, and the head channel, which every other backend needs, is timed beside it.
Before it is timed, the patched module is compared with the ideal under a mask, with every backend.
TF32 is off, so that float32 is compared with float32. Prints tables; ``--out`` writes JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch as replaced

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn
from torch.nn import functional

from tokendown import apply_patch
from tokendown.adapters import dispatch
from tokendown.adapters.intercept import intercepts
from tokendown.adapters.joint import JointKeys
from tokendown.adapters.registry import find_adapter
from tokendown.adapters.transformers import attentions
from tokendown.bench.backends import CHOICES, DEFAULT, attention_backend
from tokendown.bench.machine import hardware, software, threads
from tokendown.bench.measure import measure
from tokendown.bench.shapes import SHAPES
from tokendown.inputs import denoiser_inputs
from tokendown.multiplicity import bias_of

WARMUP = 3
FRAMES = 3  # latent frames of a video: 9 frames
KINDS = {"flux": 2, "sd35-medium": 2, "wan-1.3b": 1}  # different attention modules of a model


@dataclass
class Case:
    """One attention module, and what the model calls it with.

    Attributes:
        name: dotted path.
        norm: the module before it; anchors are chosen by its input.
        norm_call: arguments of the norm.
        attention: the module.
        call: keyword arguments of it.
        text_first: the order of the joint sequence.
    """

    name: str
    norm: nn.Module
    norm_call: tuple[tuple[Any, ...], dict[str, Any]]
    attention: Any
    call: dict[str, Any]
    text_first: bool

    def run(self) -> Any:
        """What a block does: norm and attention, patched or not."""
        self.norm(*self.norm_call[0], **self.norm_call[1])
        return self.attention(**self.call)


def cases(shape: str, size: int, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """The model, patched, and a maker of its cases; runs it once."""
    entry = SHAPES[shape]
    if entry.stacks:
        model = entry.with_random_weights(device, dtype, blocks=1)
    else:
        from dataclasses import replace

        shallow = {"num_layers": 2, "dual_attention_layers": (0,)}
        model = replace(entry, config={**entry.config, **shallow}).with_random_weights(
            device, dtype
        )
    side = size // entry.scale
    frames = FRAMES if entry.size else None
    inputs = denoiser_inputs(model, side, side, batch=1, device=device, dtype=dtype, frames=frames)
    generator = torch.Generator(device).manual_seed(1)
    for name, value in inputs.items():  # the example inputs are zeros
        if isinstance(value, Tensor) and value.is_floating_point() and "ids" not in name:
            inputs[name] = torch.randn(
                value.shape, generator=generator, device=device, dtype=value.dtype
            )
    return model, inputs


def capture(model: Any, inputs: dict[str, Any], kinds: int) -> list[Case]:
    """The first module of each kind, with the arguments of one forward pass."""
    found, handles, seen = [], [], {}

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen[module] = (args, kwargs)

    adapter = find_adapter(model)
    for name, norm, attention, blocks in list(attentions(model, adapter))[:kinds]:
        found.append((name, norm, attention, blocks.text_first))
        for module in (norm, attention):
            handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    model(**inputs)
    for handle in handles:
        handle.remove()
    made = []
    for name, norm, attention, text_first in found:
        args, kwargs = seen[attention]
        names = next(item for item in intercepts(attention) if isinstance(item, JointKeys)).names
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        made.append(Case(name, norm, seen[norm], attention, call, text_first))
    return made


# The ideal


@dataclass
class Kept:
    """What the ideal is given.

    Attributes:
        tokens: [1, kept of them, C], with text where that is in the same tensor.
        table: rotary positions of all joint tokens and of the kept ones, or None.
        bias: log m of every joint key that is kept, or None.
    """

    tokens: Tensor
    table: tuple[Any, Any] | None
    bias: Tensor | None


def kept_of(case: Case) -> Kept:
    """The tokens that the patch chooses for these arguments."""
    keys = next(item for item in intercepts(case.attention) if isinstance(item, JointKeys))
    case.norm(*case.norm_call[0], **case.norm_call[1])
    scores, keys.layer.scores = keys.layer.scores, None
    sequence = keys._sequence(case.call, scores)
    assert sequence is not None, "this size keeps every key"
    hidden = case.call["hidden_states"]
    joint = hidden.shape[1] == sequence.tokens
    tokens = (sequence if joint else sequence.image_only()).take(hidden, 1)
    table = next(
        (case.call[n] for n in ("image_rotary_emb", "rotary_emb") if case.call.get(n)), None
    )
    if table is not None:
        dim = 1 if table[0].ndim == 4 else 0
        rows = [x if dim else x[None] for x in table]
        rows = [sequence.take(x, 1) for x in rows]
        table = (table, [x if dim else x[0] for x in rows])
    return Kept(tokens, table, bias_of(sequence.runs(), hidden))


def rotate(x: Tensor, table: Any) -> Tensor:
    """As the host does it: [1, tokens, heads, d], with FLUX's table or with Wan's."""
    if table[0].ndim == 2:
        return apply_rotary_emb(x, table, sequence_dim=1)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = table[0][..., ::2], table[1][..., 1::2]
    turned = torch.empty_like(x)
    turned[..., ::2] = first * cos - second * sin
    turned[..., 1::2] = first * sin + second * cos
    return turned


def ideal(case: Case, kept: Kept, bias: Tensor | None = None) -> Any:
    """The attention module, by hand, on the kept tokens."""
    attention, text = case.attention, case.call.get("encoder_hidden_states")
    size = attention.inner_dim // attention.heads
    wide = type(attention).__name__ == "WanAttention"  # normalises over all heads

    def heads(projection: Any, norm: Any, x: Tensor) -> Tensor:
        x = projection(x)
        if wide and norm is not None:
            x = norm(x)
        x = x.unflatten(-1, (-1, size))
        return x if wide or norm is None else norm(x)

    hidden = case.call["hidden_states"]
    parts = [
        heads(attention.to_q, attention.norm_q, hidden),
        heads(attention.to_k, attention.norm_k, kept.tokens),
        heads(attention.to_v, None, kept.tokens),
    ]
    if text is not None:
        added = [
            heads(attention.add_q_proj, attention.norm_added_q, text),
            heads(attention.add_k_proj, attention.norm_added_k, text),
            heads(attention.add_v_proj, None, text),
        ]
        order = 1 if case.text_first else -1
        parts = [torch.cat([a, b][::order], 1) for a, b in zip(added, parts, strict=True)]
    query, key, value = parts
    if kept.table is not None:
        query, key = rotate(query, kept.table[0]), rotate(key, kept.table[1])
    mask = None if bias is None else bias[None, None, None]
    out = functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask
    )
    out = out.transpose(1, 2).flatten(2)
    return finish(case, out, 0 if text is None else text.shape[1])


def finish(case: Case, out: Tensor, length: int) -> Any:
    """The projections behind attention."""
    attention = case.attention
    if getattr(attention, "to_out", None) is None:
        return out
    if not length:
        return attention.to_out[0](out)
    sizes = [length, out.shape[1] - length]
    text, image = out.split(sizes, 1) if case.text_first else out.split(sizes[::-1], 1)[::-1]
    image = attention.to_out[0](image)
    return image, attention.to_add_out(text) if attention.to_add_out is not None else text


def compare(case: Case, kept: Kept) -> float:
    """Largest relative difference of the patched module from the ideal under a mask."""

    def flat(result: Any) -> Tensor:
        parts = result if isinstance(result, tuple) else (result,)
        return torch.cat([part.float().flatten() for part in parts])

    got, want = flat(case.run()), flat(ideal(case, kept, kept.bias))
    return float((got - want).abs().max() / want.abs().max())


# Timing


def candidates(case: Case, kept: Kept, backend: str) -> dict[str, Callable[[], object]]:
    """Name to call; the ideal comes first."""

    def by_hand() -> None:
        case.norm.forward(*case.norm_call[0], **case.norm_call[1])  # without the anchors' hook
        ideal(case, kept)

    def in_a_head_channel() -> None:
        with replaced.object(dispatch, "backend_name", lambda _: "another"):
            case.run()

    calls: dict[str, Callable[[], object]] = {"ideal": by_hand, "patched": case.run}
    both = backend == DEFAULT  # elsewhere the head channel is what the patch does anyway
    if both and type(case.attention.processor).__module__.split("_")[-1] in ("flux", "wan"):
        calls["patched, head channel"] = in_a_head_channel
    return calls


def measure_case(case: Case, options: argparse.Namespace, backend: str) -> dict[str, Any]:
    """One record.

    Raises:
        RuntimeError: the backend does not take this module.
    """
    device = torch.device(options.device)
    kept = kept_of(case)
    calls = candidates(case, kept, backend)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    with attention_backend(backend):
        error = compare(case, kept)
        if error > (1e-4 if options.dtype == "float32" else 5e-2):
            raise SystemExit(f"{case.name}: the patched module is {error:.1e} from the ideal")
        if device.type != "cpu":  # a first call loads kernels and fills the allocator
            for call in calls.values():
                measure(lambda call=call: [call(), {}][1], device, warmup=WARMUP)
        for number in range(options.rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                timing = measure(lambda name=name: [calls[name](), {}][1], device)
                seconds[name].append(timing.median)
    rows = {}
    for name, values in seconds.items():
        ratios = sorted(a / b for a, b in zip(values, seconds["ideal"], strict=True))
        rows[name] = {
            "seconds": [round(value, 6) for value in values],
            "median_s": round(median(values), 6),
            "over_ideal": round(median(ratios), 4),
            "range": [round(ratios[0], 4), round(ratios[-1], 4)],
        }
    hidden = case.call["hidden_states"]
    return {
        "layer": case.name, "backend": backend, "tokens": hidden.shape[1],
        "kept": kept.tokens.shape[1], "width": hidden.shape[2], "error": error, "rows": rows,
    }  # fmt: skip


def attempt(case: Case, options: argparse.Namespace, backend: str) -> dict[str, Any]:
    """One record, or why there is none: a kernel may refuse a head of this width."""
    try:
        return measure_case(case, options, backend)
    except RuntimeError as error:
        return {"layer": case.name, "backend": backend, "refused": str(error).split("\n")[0]}


def report(shape: str, record: dict[str, Any]) -> None:
    """A table."""
    if "refused" in record:
        print(f"{shape} {record['layer']}, {record['backend']}: {record['refused']}", flush=True)
        return
    print(
        f"{shape} {record['layer']}, {record['backend']}: {record['tokens']} tokens, "
        f"{record['kept']} kept",
        flush=True,
    )
    for name, row in record["rows"].items():
        low, high = row["range"]
        print(
            f"  {name:24} {1e3 * row['median_s']:9.2f} ms   {row['over_ideal']:.3f} of the ideal "
            f"({low:.3f} to {high:.3f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--size", type=int, default=1024, help="pixels, square")
    parser.add_argument("--factor", type=int, default=2)
    parser.add_argument("--anchors", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--backend", choices=CHOICES[:-1], action="append", help="several times")
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--quick", action="store_true", help="128 pixels, one round")
    options = parser.parse_args()
    if options.quick:
        options.size, options.rounds = 128, 1
    options.backend = list(dict.fromkeys(options.backend or [DEFAULT]))
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    records = []
    for shape in options.shape:
        model, inputs = cases(shape, options.size, device, dtype)
        with (
            torch.no_grad(),
            apply_patch(model, factor=options.factor, anchors=options.anchors),
        ):
            for case in capture(model, inputs, KINDS[shape]):
                for backend in options.backend:
                    record = attempt(case, options, backend)
                    report(shape, record)
                    records.append({"shape": shape, **record})
        del model
    if options.out:
        settings = {k: v for k, v in vars(options).items() if k not in ("out", "quick", "shape")}
        whole = {
            "benchmark": "joint_layers", **settings, "hardware": hardware(device),
            "threads": threads(device), **software(), "records": records,
        }  # fmt: skip
        options.out.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
