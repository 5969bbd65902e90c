"""What an analysis gets to see of one attention call: queries of a sample, keys and values of all.

Two ways, as there are two ways of patching. A classic module is projected once more from its input;
inside a joint processor, where positions are rotated and text is joined, the attention call itself
is intercepted, and goes on as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..adapters import dispatch
from ..adapters.joint import JointAttention
from ..adapters.joint_plan import JointLayer, JointPlan
from ..grid import Grid
from ..multiplicity import bias_of
from ..select import select
from ..sequence import Box, Sequence
from .measures import Call, Candidate, sample_queries


class ClassicCall(Call):
    """A diffusers ``Attention`` that sees image tokens only.

    Args:
        attention: the module.
        tokens: its input, [B, N, C].
        scores: by which anchors are chosen, [B, N].
        grid: N = grid.tokens.
        queries: how many to look at.
    """

    def __init__(
        self, attention: Any, tokens: Tensor, scores: Tensor, grid: Grid, queries: int
    ) -> None:
        self.attention, self.tokens, self.scores, self.grid = attention, tokens, scores, grid
        sample = sample_queries(grid.tokens, queries)
        self.query = self._heads("q", tokens[:, sample.to(tokens.device)])
        self.image_queries = len(sample)
        self.key, self.value = self._heads("k", tokens), self._heads("v", tokens)
        self.scale = float(attention.scale)
        self.image = slice(0, grid.tokens)

    def kept(self, candidate: Candidate) -> tuple[Tensor, Tensor, Tensor | None]:
        factor, anchors, method = candidate
        if method == "mean":
            means = select(self.scores, self.grid, factor, anchors=anchors, method=method)
            kept, runs = means.take(self.tokens), means.runs()
        else:
            box = Box(1, self.grid.height, self.grid.width, factor)
            sequence = Sequence((box,)).with_anchors(self.scores, anchors)
            kept, runs = sequence.take(self.tokens, 1), sequence.runs()
        bias = bias_of(runs, self.query)
        mask = None if bias is None else bias[None, None, None]
        return self._heads("k", kept), self._heads("v", kept), mask

    def output(self, heads: Tensor) -> Tensor:
        rows = heads.transpose(1, 2).flatten(-2).to(self.tokens.dtype)
        out: Tensor = self.attention.to_out[0](rows)
        return _precise(out)

    def _heads(self, which: str, tokens: Tensor) -> Tensor:
        """[B, N, C] -> [B, heads, N, d], as the processor has them."""
        x = getattr(self.attention, f"to_{which}")(tokens)
        heads = self.attention.heads
        x = x.unflatten(-1, (-1, self.attention.inner_dim // heads)).transpose(1, 2)
        norm = getattr(self.attention, f"norm_{which}", None)
        x = _precise(x if norm is None else norm(x))
        return x.repeat_interleave(heads // x.shape[1], 1)  # several may share a head of keys


class JointCall(Call):
    """Attention over a joint sequence, as it was intercepted.

    Args:
        attention: the module.
        look: what was seen.
        scores: by which anchors are chosen, [B, tokens of the sequence or of the image].
        queries: how many image tokens to look at; others are looked at as densely.
    """

    def __init__(self, attention: Any, look: Look, scores: Tensor, queries: int) -> None:
        self.attention, self.scores, self.sequence = attention, scores, look.sequence
        query, key, value, mask, scale, dim = look.inputs
        query, key, value = (x.transpose(2, dim) for x in (query, key, value))
        sequence, count = self.sequence, self.sequence.image_tokens
        before, total = sequence.before, sequence.tokens
        image = sample_queries(count, queries)
        asking = query.shape[2]
        if asking > count:
            text = torch.cat([torch.arange(before), torch.arange(before + count, asking)])
            text = text[sample_queries(len(text), -(-len(text) * len(image) // count))]
            rows = torch.cat([image + before, text]).to(query.device)
        else:  # text has keys alone
            rows = image.to(query.device)
        self.dtype, self.image_queries = query.dtype, len(image)
        self.query = _precise(query[:, :, rows])
        times = query.shape[1] // key.shape[1]
        self.key, self.value = (_precise(x.repeat_interleave(times, 1)) for x in (key, value))
        self.scale = query.shape[-1] ** -0.5 if scale is None else scale
        if mask is not None:
            mask = mask[(None,) * (4 - mask.ndim)]
            mask = mask if mask.shape[2] == 1 else mask[:, :, rows]
        self.mask = mask
        self.image = slice(before, before + sequence.boxes[0].tokens)
        parts = (slice(0, before), slice(before + count, total))
        self.text = tuple(part for part in parts if part.stop > part.start)

    def kept(self, candidate: Candidate) -> tuple[Tensor, Tensor, Tensor | None]:
        first, *others = self.sequence.boxes
        boxes = (replace(first, factor=candidate.factor), *others)
        sequence = replace(self.sequence, boxes=boxes)
        sequence = sequence.with_anchors(self.scores, candidate.anchors)
        mask, bias = self.mask, bias_of(sequence.runs(), self.query)
        if mask is not None and mask.shape[-1] > 1:
            mask = sequence.take(mask, 3)
        if bias is not None:
            mask = dispatch.merge(mask, bias)
        return sequence.take(self.key, 2), sequence.take(self.value, 2), mask

    def output(self, heads: Tensor) -> Tensor:
        """Text goes its own way out where it came in on its own; to nowhere in a last block."""
        rows = heads.transpose(1, 2).flatten(-2).to(self.dtype)
        image, text = rows[:, : self.image_queries], rows[:, self.image_queries :]
        out = "to_out" if hasattr(self.attention, "to_out") else "out_layer"  # Kandinsky 5
        parts = [_project(self.attention, out, image)]
        if getattr(self.attention, "add_k_proj", None) is None:
            parts.append(_project(self.attention, out, text))
        elif getattr(self.attention, "to_add_out", None) is not None:
            parts.append(_project(self.attention, "to_add_out", text))
        return torch.cat([_precise(part).flatten() for part in parts])


def _project(attention: Any, name: str, rows: Tensor) -> Tensor:
    """Through the output projection; as they are where there is none, or none for them alone."""
    project = getattr(attention, name, None)
    project = project[0] if isinstance(project, nn.ModuleList) else project
    if getattr(project, "in_features", None) != rows.shape[-1]:
        return rows
    out: Tensor = project(rows)  # type: ignore[misc]
    return out


class Look(NamedTuple):
    """The attention of a layer, as it was called."""

    sequence: Sequence
    inputs: dispatch.Inputs


class _Watch(dispatch.Call):
    """Keeps what goes into the attention call, and drops no key."""

    inputs: dispatch.Inputs

    def begin(self, inputs: dispatch.Inputs) -> None:
        super().begin(inputs)
        self.inputs = inputs

    def look(self) -> Look:
        return Look(self.sequence, self.inputs)


class _WatchBySample(dispatch.CallBySample):
    """The same where there is a call for each sample."""

    def __init__(self, sequence: Sequence, counted: bool, samples: int) -> None:
        super().__init__(sequence, counted, samples)
        self.inputs: list[dispatch.Inputs] = []

    def begin(self, inputs: dispatch.Inputs) -> None:
        super().begin(inputs)
        self.inputs.append(inputs)

    def look(self) -> Look:
        """As one call: text that a sample lacks is masked, and asks in none of them."""
        parts = [[x.transpose(2, each.dim) for x in each[:3]] for each in self.inputs]
        lengths = torch.tensor([key.shape[2] for _, key, _ in parts])
        least, most = int(lengths.min()), int(lengths.max())
        query = torch.cat([query[:, :, :least] for query, _, _ in parts])
        key, value = (
            torch.cat([functional.pad(x, (0, 0, 0, most - x.shape[2])) for x in those])
            for those in list(zip(*parts, strict=True))[1:]
        )
        mask = None
        if least < most:
            mask = (torch.arange(most) < lengths[:, None])[:, None, None].to(key.device)
        sequence = self.whole.image_only(most - self.whole.image_tokens)
        return Look(sequence, dispatch.Inputs(query, key, value, mask, self.inputs[0].scale, 2))


class Onlooker(JointAttention):
    """Lets a dense joint attention run, and looks at it.

    Args:
        owner: a diffusers attention module.
        plan: without rules.
        layer: this one.
        note: called after each run.
    """

    def __init__(
        self,
        owner: nn.Module,
        plan: JointPlan,
        layer: JointLayer,
        note: Callable[[Tensor, Look], None],
    ) -> None:
        super().__init__(owner, plan, layer)
        self.note = note

    def run(self, *args: Any, **kwargs: Any) -> Any:
        named = self.named(args, kwargs)
        sequence = self.among(self.boxes(), named)
        hidden: Tensor = named["hidden_states"]
        watch = (
            _WatchBySample(sequence, False, len(hidden))
            if self.layer.by_sample
            else _Watch(sequence, False)
        )
        result = self.process_as(self.owner, named, watch)
        self.note(hidden, watch.look())
        return result


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
