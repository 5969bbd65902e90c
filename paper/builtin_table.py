"""Every way of choosing keys, on the self-attention of the built-in model or of another U-Net.

    python -m paper.builtin_table                # out/paper/builtin_table.json and .md
    python -m paper.builtin_table --size 512 --count 2 --steps 10 --phases 4
    python -m paper.builtin_table --quick        # under a minute, fewer of everything, no file

The ways are those of ``paper/choices.py``, put into every self-attention layer of the finest grid
by a processor written out here; ``paper/terrain_table.py`` does the same to another network.
Error: mean squared difference of the final latents over the variance of the dense ones. Sizes other
than the native one go to files of their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

from diffusers.models.attention_processor import Attention
from paper.choices import FACTORS, Choice, Keys, rows, table
from paper.pictures import PROMPTS, errors, latents, open_model
from paper.report import add_model, environment, spread, write
from paper.terrain import Site
from torch import Tensor, nn

from tokendown import generate as gen
from tokendown.adapters.families import make_plan
from tokendown.grid import Grid


class Processor:
    """Self-attention of one layer, with keys from elsewhere.

    Args:
        keys: asked for the output of every call.
        grid: of the layer's tokens.
    """

    def __init__(self, keys: Keys, grid: Grid) -> None:
        self.keys, self.grid = keys, grid
        self.block_input: Tensor | None = None

    def look(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Before the block: what tomesd finds its pairs in."""
        self.block_input = inputs[0]

    def __call__(self, attn: Attention, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        heads = (hidden_states.shape[0], hidden_states.shape[1], attn.heads, -1)
        q, k, v = (
            project(hidden_states).view(heads).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        site = Site(0, self.grid, self.block_input, hidden_states)
        out = self.keys(site, q, k, v).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))


@contextmanager
def chosen(unet: Any, names: list[str], keys: Keys, grid: Grid) -> Iterator[None]:
    """The layers of these names attend to the keys of one choice."""
    before = dict(unet.attn_processors)
    steps = iter(range(10**9))
    with ExitStack() as stack:
        stack.callback(unet.set_attn_processor, before)
        hook = unet.register_forward_pre_hook(lambda *_: keys.on_step(next(steps)))
        stack.callback(hook.remove)
        ours = {}
        for name in names:
            ours[f"{name}.processor"] = processor = Processor(keys, grid)
            block = unet.get_submodule(name.removesuffix(".attn1"))
            stack.callback(block.register_forward_pre_hook(processor.look).remove)
        unet.set_attn_processor(before | ours)
        yield


def measure(
    pipe: Any,
    request: gen.Request,
    prompts: tuple[str, ...],
    factors: tuple[int, ...],
    most_phases: int,
) -> Iterator[dict[str, Any]]:
    """One record a choice, with the error of each picture."""
    finest = [layer.name for layer in make_plan(pipe.unet, None).layers if layer.downsample == 1]
    grid = Grid(*(side // pipe.vae_scale_factor for side in (request.height, request.width)))
    dense = latents(pipe, request, prompts, at_once=True)
    found: dict[Choice, list[float]] = {}
    for factor in factors:
        for row, choice in rows(factor, most_phases):
            if choice not in found:
                with chosen(pipe.unet, finest, Keys(choice), grid):
                    found[choice] = errors(latents(pipe, request, prompts, at_once=True), dense)
                print(f"{row}, {choice}: {max(found[choice]):.2g} at most", flush=True)
            yield {"row": row, **asdict(choice), **spread(found[choice])}


def main() -> None:
    """Measures; writes after every choice, prints the table in the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, help="pixels, square; default: the model's own")
    parser.add_argument("--steps", type=int, help="default: the model's own")
    parser.add_argument("--count", type=int, default=4, help="of the prompts")
    parser.add_argument("--phases", type=int, default=16, help="most of them that are tried, >= 2")
    parser.add_argument("--factors", type=int, nargs="+", default=FACTORS)
    add_model(parser)
    parser.add_argument("--quick", action="store_true", help="a trial of the script; no file")
    a = parser.parse_args()
    if a.quick:
        a.steps, a.count, a.phases, a.factors = 1, 1, 2, (2, 3)
    out = a.out
    pipe, request = open_model(a)
    prompts = PROMPTS[: a.count]
    about = (
        f"Mean squared error over the variance of the dense latents, {request.width} x "
        f"{request.height}, {request.steps} steps, {a.count} prompts; median (lowest to highest) "
        f"over pictures, in the first row also over at most {a.phases} phases."
    )
    settings = {"model": a.model, "size": request.width, "steps": request.steps,
                "guidance": request.guidance, "prompts": prompts, "phases": a.phases,
                "dtype": request.dtype}  # fmt: skip
    name = "builtin_table" if a.size is None else f"builtin_table-{a.size}"
    whole: dict[str, Any] = {"command": "python -m paper.builtin_table", "settings": settings,
                             "environment": environment(request.device)}  # fmt: skip
    records: list[dict[str, Any]] = []
    text = about
    for record in measure(pipe, request, prompts, tuple(a.factors), a.phases):
        records.append(record)
        text = f"{about}\n\n{table(records)}"
        if not a.quick:
            write(out / f"{name}.json", {**whole, "errors": records}, text)
    print(text)


if __name__ == "__main__":
    main()
