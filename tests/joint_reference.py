"""What a patched transformer should compute, written out. Uses nothing of tokendown.

Hidden states and rotary tables are selected before the projections, in plain index lists, and
every kept key gets log m on its logits; text stays whole and counts once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import reference


@dataclass(frozen=True)
class Want:
    """What a test asks for.

    Args:
        shapes: (frames, height, width) in tokens, the picture first.
        factor: of the picture.
        anchors: of the picture.
        references: factor of the other pictures.
        temporal: one of so many frames is kept.
        counted: whether log m is added.
    """

    shapes: tuple[tuple[int, int, int], ...]
    factor: int = 2
    anchors: int = 0
    references: int = 1
    temporal: int = 1
    counted: bool = True

    def log_multiplicities(self, norms: Tensor) -> Tensor:
        """[batch, image tokens] -> the same: minus infinity where a key is dropped."""
        rows, start = [], 0
        for index, (frames, height, width) in enumerate(self.shapes):
            factor = self.references if index else self.factor
            temporal = 1 if index else self.temporal
            lengths = norms[:, start : start + frames * height * width]
            rows.append(self._box(lengths, (frames, height, width), factor, temporal, index == 0))
            start += frames * height * width
        return torch.cat(rows, dim=1)

    def _box(
        self,
        lengths: Tensor,
        shape: tuple[int, int, int],
        factor: int,
        temporal: int,
        anchored: bool,
    ) -> Tensor:
        frames, height, width = shape
        kept = reference.kept_keys(height, width, factor)
        on_grid = torch.cat([kept & (frame % temporal == 0) for frame in range(frames)])
        bias = torch.full(lengths.shape, -math.inf, dtype=torch.float64)
        bias[:, on_grid] = math.log(factor**2 * temporal) if self.counted else 0.0
        if anchored:
            for row, norms in zip(bias, lengths.tolist(), strict=True):
                off_grid = [i for i, on in enumerate(on_grid.tolist()) if not on]
                row[sorted(off_grid, key=lambda i: norms[i], reverse=True)[: self.anchors]] = 0.0
        return bias


def complex_table(table: Any) -> Tensor:
    """(cos, sin) with every angle twice, or complex numbers, to [tokens, pairs] complex."""
    if isinstance(table, Tensor):
        return table
    cos, sin = (part.reshape(-1, part.shape[-1])[:, ::2].double() for part in table)
    return torch.complex(cos, sin)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """[batch, tokens, heads, d] by [tokens, d/2] or [batch, tokens, d/2] complex."""
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    turned = torch.view_as_real(pairs * table.unsqueeze(-2)).flatten(-2)
    return turned.to(x.dtype)


def _norm(norm: Any, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


class Joint:
    """A processor for one attention module of an un-patched model.

    Args:
        want: what to compute.
        text_first: the order of the joint sequence, which decides where rotary tables are cut.
    """

    def __init__(self, want: Want, text_first: bool) -> None:
        self.want, self.text_first = want, text_first
        self.image = sum(math.prod(shape) for shape in want.shapes)
        self.norms: Tensor | None = None
        self.calls = 0

    def note_norms(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = args[0] if args else kwargs["hidden_states"]
        self.norms = tokens.double().pow(2).sum(-1).sqrt()

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        rotary_emb: Any = None,
        encoder_hidden_states_mask: Tensor | None = None,
        freqs_cis: Any = None,
    ) -> Any:
        self.calls += 1
        text = encoder_hidden_states
        single = text is None or getattr(attn, "add_q_proj", None) is None
        image, length = hidden_states, 0
        if text is not None:
            length = text.shape[1]
        elif hidden_states.shape[1] > self.image:
            length = hidden_states.shape[1] - self.image
            text, image = self._split(hidden_states, length)
        norms = self.norms
        if norms.shape[1] > self.image:
            norms = self._split(norms, length)[1]
        bias = self.want.log_multiplicities(norms)
        index = bias.isfinite().nonzero()[:, 1].view(bias.shape[0], -1)
        bias = bias.gather(1, index)
        kept = image.gather(1, index[..., None].expand(-1, -1, image.shape[-1]))

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1))

        wide = type(attn).__name__ in ("WanAttention",)  # normalises over all heads together
        query, key, value = attn.to_q(image), attn.to_k(kept), attn.to_v(kept)
        if wide:
            query, key = heads(attn.norm_q(query)), heads(attn.norm_k(key))
        else:
            query, key = _norm(attn.norm_q, heads(query)), _norm(attn.norm_k, heads(key))
        value = heads(value)
        text_query = text_key = text_value = None
        if text is not None:
            q, k, v = ("to_q", "to_k", "to_v") if single else (
                "add_q_proj", "add_k_proj", "add_v_proj")  # fmt: skip
            nq, nk = ("norm_q", "norm_k") if single else ("norm_added_q", "norm_added_k")
            text_query = _norm(getattr(attn, nq, None), heads(getattr(attn, q)(text)))
            text_key = _norm(getattr(attn, nk, None), heads(getattr(attn, k)(text)))
            text_value = heads(getattr(attn, v)(text))
        table = image_rotary_emb if image_rotary_emb is not None else rotary_emb
        if table is not None:
            image_table, text_table = self._tables(table, length)
            query = rotate(query, image_table)
            key = rotate(key, image_table[index])
            if text_table is not None:
                text_query = rotate(text_query, text_table)
                text_key = rotate(text_key, text_table)
        mask = self._mask(attention_mask, encoder_hidden_states_mask, index, length)
        if text is not None:
            query, key, value = (
                torch.cat(pair, 1)
                for pair in ((text_query, query), (text_key, key), (text_value, value))
            )
            bias = torch.cat([bias.new_zeros(bias.shape[0], length), bias], 1)
        logits = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
        weights = (logits + bias[:, None, None].to(logits) + mask.to(logits)).softmax(-1)
        out = torch.einsum("bhqk,bkhd->bqhd", weights, value).flatten(2)
        return self._output(attn, out, length, encoder_hidden_states is not None)

    def _split(self, x: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Text and image part of a joint sequence, along dimension 1."""
        if self.text_first:
            return x[:, :length], x[:, length:]
        return x[:, self.image :], x[:, : self.image]

    def _tables(self, table: Any, length: int) -> tuple[Tensor, Tensor | None]:
        """Of the image and of the text, if that is rotated at all."""
        if isinstance(table, tuple) and table[0].is_complex():  # Qwen-Image: one each
            return table[0], table[1]
        table = complex_table(table)
        if len(table) == self.image:
            return table, None
        text, image = self._split(table[None], length)
        return image[0], text[0]

    def _mask(
        self, joint: Tensor | None, of_text: Tensor | None, index: Tensor, length: int
    ) -> Tensor:
        """[batch, 1, 1 or queries, text and kept image keys], added; queries text first."""
        if joint is None and of_text is None:
            return torch.zeros(())
        if of_text is not None:
            text = of_text[:, None, None]
            image = torch.ones(len(index), 1, 1, index.shape[1], dtype=torch.bool)
        else:
            joint = joint.expand(len(index), *joint.shape[1:])
            first, second = joint[..., :length], joint[..., length:]
            if not self.text_first:
                first, second = joint[..., self.image :], joint[..., : self.image]
            at = index[:, None, None].expand(-1, 1, second.shape[2], -1)
            text, image = first, second.gather(-1, at)
        allowed = torch.cat([text.bool(), image.bool()], -1)
        # a query that may see nothing sees everything alike, as in torch
        return torch.where(allowed, 0.0, -1e30)

    def _output(self, attn: Any, out: Tensor, length: int, pair: bool) -> Any:
        text, image = out[:, :length], out[:, length:]
        if not pair:
            if length and not self.text_first:
                out = torch.cat([image, text], 1)
            if getattr(attn, "to_out", None) is not None:
                out = attn.to_out[0](out)
            return out
        if getattr(attn, "to_out", None) is not None:
            image = attn.to_out[0](image)
        if getattr(attn, "to_add_out", None) is not None:
            text = attn.to_add_out(text)
        return image, text


# Blocks, attention, norm, text first: where each builder of tests/tiny_transformers.py has them.
_FLUX = [
    ("transformer_blocks", "attn", "norm1", True),
    ("single_transformer_blocks", "attn", "norm", True),
]
_HUNYUAN = [
    ("transformer_blocks", "attn", "norm1", False),
    ("single_transformer_blocks", "attn", "norm", False),
]
_SD3 = [("transformer_blocks", "attn", "norm1", False)]
_WAN = [("blocks", "attn1", "norm1", True)]
WHERE: dict[str, list[tuple[str, str, str, bool]]] = {
    "flux": _FLUX,
    "chroma": _FLUX,
    "sd3": _SD3,
    "sd35": [*_SD3, ("transformer_blocks", "attn2", "norm1", True)],
    "qwen_image": [("transformer_blocks", "attn", "img_norm1", True)],
    "wan": _WAN,
    "wan_i2v": _WAN,
    "wan_vace": [*_WAN, ("vace_blocks", "attn1", "norm1", True)],
    "hunyuan_video": _HUNYUAN,
}


def coarsen(model: Any, kind: str, want: Want) -> list[Joint]:
    """Makes an un-patched model compute what a patched one should."""
    processors = []
    for path, attention, norm, text_first in WHERE[kind]:
        for block in getattr(model, path):
            module = getattr(block, attention, None)
            if module is None:
                continue
            processor = Joint(want, text_first)
            module.set_processor(processor)
            getattr(block, norm).register_forward_pre_hook(processor.note_norms, with_kwargs=True)
            processors.append(processor)
    return processors
