"""What the compatibility tests have in common: an oracle, and the order of things.

The oracle is dense attention by whatever processor is installed, told with an additive mask which
keys do not count and how much the others do. It shares no code with tokendown: it drops nothing,
projects every key, and is not told the grid by a hook but by the test. Nor is it told the step:
grids stand still here, and tests/test_jitter.py is about those that move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from tests import reference
from torch import Tensor, nn

from tokendown import apply_patch, is_patched, remove_patch
from tokendown.patch import find_denoisers

Size = tuple[int, int]

# A 16 x 12 latent: neither square nor free of odd sizes further down.
LATENT: Size = (16, 12)
FACTORS = {1: 2, 2: 2}
GRIDS: Mapping[Size, int] = {(16, 12): 2, (8, 6): 2}
ANCHORS = 3


class MaskedDense:
    """A processor that masks keys for the one it wraps.

    Args:
        inner: the installed processor.
        grids: grid to factor; other token counts stay dense.
        anchors: how many keys off the grid count too.
    """

    def __init__(self, inner: Any, grids: Mapping[Size, int], anchors: int) -> None:
        self.inner = inner
        self.grids = {prod(size): (size, factor) for size, factor in grids.items()}
        self.anchors = anchors
        self.lengths: Tensor | None = None

    def note_lengths(self, norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        """The anchors are the longest tokens before the norm."""
        maps = args[0].ndim == 4  # [batch, channels, height, width]
        lengths = args[0].detach().float().square().sum(1 if maps else -1).sqrt()
        self.lengths = lengths.flatten(1)

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None
    ):
        maps = hidden_states.ndim == 4
        found = self.grids.get(prod(hidden_states.shape[2:]) if maps else hidden_states.shape[1])
        if found is None:
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask)
        mask = self.mask(*found).to(hidden_states.dtype)
        if attention_mask is not None:
            mask = mask + attention_mask
        return self.inner(attn, hidden_states, encoder_hidden_states, mask)

    def mask(self, size: Size, factor: int) -> Tensor:
        """[batch, 1, tokens], added to the logits."""
        kept = reference.cells((1, *size), factor)
        mask = reference.with_anchors(self.lengths, kept, factor**2, self.anchors)
        return mask[:, None]


def self_attention(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Spatial self-attention and the norm before it, found by name only."""
    others = ("motion_modules", "temporal", "temp_", "attention_blocks")
    for name, block in model.named_modules():
        if hasattr(block, "attn1") and not any(part in name for part in others):
            yield block.norm1, block.attn1
        elif getattr(block, "group_norm", None) is not None and hasattr(block, "to_q"):
            yield block, block  # the norm is inside
        elif hasattr(block, "in_norm") and name.endswith("attentions.0"):
            yield block.in_norm, block.attention


@contextmanager
def oracle(
    model: nn.Module, grids: Mapping[Size, int] = GRIDS, anchors: int = ANCHORS
) -> Iterator[None]:
    """What a patch should do, by dense attention with a mask."""
    handles, processors = [], []
    for norm, attention in self_attention(model):
        masked = MaskedDense(attention.processor, grids, anchors)
        handles.append(norm.register_forward_pre_hook(masked.note_lengths))
        processors.append((attention, attention.processor))
        attention.processor = masked
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for attention, processor in processors:
            attention.processor = processor


def assert_composes(
    target: Any,
    run: Callable[[], Tensor],
    on: Callable[[], Any] | None = None,
    off: Callable[[], Any] | None = None,
    *,
    visible: bool = True,
    grids: Mapping[Size, int] = GRIDS,
    factors: Mapping[int, int] = FACTORS,
    anchors: int = ANCHORS,
    tolerance: float = 2e-4,
    **options: Any,
) -> None:
    """A feature and a patch, in both orders, against the feature with the oracle.

    Args:
        target: pipeline or denoiser, in the state where the feature is off.
        run: its output.
        on: switches the feature on; None where it is what ``run`` does.
        off: switches it off; None where there is no way back.
        visible: whether the feature changes the output at all.
        grids: what the oracle does: grid to factor.
        factors: what the patch is asked for.
        anchors: of both.
        tolerance: relative, to the largest value.
        **options: further options of the patch.
    """
    options = {"factor": dict(factors), "anchors": anchors, "method": "nearest", **options}

    def close(got: Tensor, want: Tensor) -> None:
        assert torch.isfinite(want).all()
        torch.testing.assert_close(got, want, rtol=0, atol=tolerance * want.abs().max().item())

    plain = run()
    dense = None
    if on is not None and off is not None:
        on()
        dense = run()
        off()
        close(run(), plain)
    if on is not None:  # the patch comes first and goes first
        apply_patch(target, **options)
        patched_plain = run()
        on()
        patch_first = run()
        remove_patch(target)
        if visible:
            assert not torch.equal(patch_first, patched_plain), "the feature does nothing"
    if dense is None:
        dense = run()
    assert torch.equal(run(), dense)
    if on is not None and visible:
        assert not torch.equal(dense, plain), "the feature does nothing"
    with oracle(find_denoisers(target)[0], grids, anchors):
        want = run()
    assert not torch.equal(want, dense), "the oracle does nothing"
    if on is not None:
        close(patch_first, want)
    with apply_patch(target, **options):  # the feature comes first and goes last
        feature_first = run()
        assert not torch.equal(feature_first, dense), "the patch does nothing"
    close(feature_first, want)
    assert not is_patched(target)
    assert torch.equal(run(), dense)
    if off is not None:  # the feature comes first and goes first
        apply_patch(target, **options)
        off()
        close(run(), patched_plain)
        remove_patch(target)
        close(run(), plain)
