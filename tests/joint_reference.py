"""What a patched transformer should compute, written out. Uses nothing of tokendown.

Hidden states and rotary tables are selected before the projections, in plain index lists, and
every kept key gets log m on its logits; text stays whole and counts once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import reduce
from operator import attrgetter
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
        ranks: anchors are chosen in so many equal parts of the picture, as many in each.
        at: row and column of the kept token in its cell.
    """

    shapes: tuple[tuple[int, int, int], ...]
    factor: int = 2
    anchors: int = 0
    references: int = 1
    temporal: int = 1
    counted: bool = True
    ranks: int = 1
    at: tuple[int, int] = (0, 0)

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
        at = (min(self.at[0], factor - 1), min(self.at[1], factor - 1))
        kept = list(reference.cells(shape, factor, temporal, at))
        count = factor**2 * temporal if self.counted else 1
        anchors = math.ceil(self.anchors / self.ranks) if anchored else 0
        share = lengths.shape[1] // self.ranks
        parts = []
        for first in range(0, self.ranks * share, share):
            own = [
                (token - first, [other - first for other in cell])
                for token, cell in kept
                if first <= token < first + share
            ]
            part = lengths[:, first : first + share]
            parts.append(reference.with_anchors(part, own, count, anchors))
        return torch.cat(parts, 1)


def complex_table(table: Any) -> Tensor:
    """Complex numbers, or (cos, sin) with every angle twice, to [1 or batch, tokens, pairs]."""
    if isinstance(table, dict):  # AnyFlow: [1, 1, tokens, pairs]
        table = table["key"][0]
    elif isinstance(table[0], tuple):  # Allegro: of an axis each, and where every token is on it
        axes = zip(*table, strict=True)
        table = torch.cat([complex_table((cos[at[0]], sin[at[0]]))[0]
                           for (cos, sin), at in axes], -1)  # fmt: skip
    if not isinstance(table, Tensor):
        cos, sin = (part.reshape(-1, *part.shape[-2:]) if part.ndim == 3 else part[None]
                    for part in (x.squeeze(2) if x.ndim == 4 else x for x in table))  # fmt: skip
        halves = torch.equal(cos[..., : cos.shape[-1] // 2], cos[..., cos.shape[-1] // 2 :])
        if halves and not torch.equal(cos[..., ::2], cos[..., 1::2]):
            pairs = slice(None, cos.shape[-1] // 2)
        else:
            pairs = slice(None, None, 2)
        table = torch.complex(cos[..., pairs].double(), sin[..., pairs].double())
    return table if table.ndim == 3 else table[None]


def rotate_apart(x: Tensor, angles: Tensor) -> Tensor:
    """ERNIE-Image: channels half a head apart are a pair, with an angle each, [.., tokens, d]."""
    first, second = x.chunk(2, -1)
    one, other = angles[:, :, None].to(x).chunk(2, -1)
    return torch.cat([first * one.cos() - second * one.sin(),
                      second * other.cos() + first * other.sin()], -1)  # fmt: skip


def by_head(table: tuple[Tensor, Tensor]) -> Tensor:
    """(cos, sin), [batch, heads, tokens, pairs], to [batch, tokens, heads * pairs] complex."""
    cos, sin = (part.transpose(1, 2).flatten(2).double() for part in table)
    return torch.complex(cos, sin)


def rotate(x: Tensor, table: Tensor, halves: bool = False, thirds: bool = False) -> Tensor:
    """[batch, tokens, d] or [batch, tokens, heads, d] by [1 or batch, tokens, d/2] complex.

    Args:
        x: neighbouring channels are a pair, or channels half a head apart.
        table: complex; as wide as all heads together where these have one each.
        halves: which of the two.
        thirds: whether so in every third of the channels.
    """
    if not table.is_complex():
        return rotate_apart(x, table)
    if thirds:
        axes = zip(x.chunk(3, -1), table.chunk(3, -1), strict=True)
        return torch.cat([rotate(part, angles, halves) for part, angles in axes], -1)
    if x.ndim == 4:
        table = table.unflatten(-1, (-1, x.shape[-1] // 2))
    if halves:
        first, second = x.double().chunk(2, -1)
        turned = torch.complex(first, second) * table
        return torch.cat([turned.real, turned.imag], -1).to(x.dtype)
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Rows [batch, kept] of [1 or batch, tokens, channels]."""
    x = x.expand(len(index), *x.shape[1:])
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def _is_complex(table: Any) -> bool:
    return isinstance(table, Tensor) and table.is_complex()


def _size(attn: Any) -> int:
    """Channels of a head."""
    if hasattr(attn, "inner_dim"):
        return attn.inner_dim // attn.heads
    heads = attn.heads if hasattr(attn, "heads") else attn.num_heads
    return attn.to_q.out_features // heads


def _norm(norm: Any, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)


# Classes of attention modules, or of processors.
WIDE = (  # normalise over all heads
    "WanAttention",
    "SkyReelsV2Attention",
    "LTXAttention",
    "LTX2Attention",
    "AnyFlowAttention",
    "LuminaAttnProcessor2_0",
)
HALVES = (
    "CogView4AttnProcessor",
    "GlmImageAttnProcessor",
    "CosmosAttnProcessor2_0",
    "AllegroAttnProcessor2_0",
    "OmniGenAttnProcessor2_0",
    "Ideogram4AttnProcessor",
)
THIRDS = ("AllegroAttnProcessor2_0",)
FLAT = ("LTXAttention", "LTX2Attention")  # rotates before it splits the heads


TOKENS_FIRST = ("ErnieImageSingleStreamAttnProcessor",)  # the norms of their blocks
BY_POSITION = (
    "Flux2ParallelSelfAttention",
    "Krea2Attention",
    "Flux3Attention",
    "ErnieImageAttention",
    "Ideogram4Attention",
)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weights, [batch, heads, queries, keys], and the output, [batch, queries, heads * d].

    Args:
        query: [batch, queries, heads, d].
        key: likewise; heads of queries may share one.
        value: likewise.
        bias: added to the logits.
    """
    key, value = (x.repeat_interleave(query.shape[2] // x.shape[2], 2) for x in (key, value))
    logits = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
    weights = (logits + bias.to(logits)).softmax(-1)
    return weights, torch.einsum("bhqk,bkhd->bqhd", weights, value).flatten(2)


class Joint:
    """A processor for one attention module of an un-patched model.

    Args:
        want: what to compute.
        text_first: the order of the joint sequence.
        host: the processor that was there.
    """

    def __init__(self, want: Want, text_first: bool, host: Any) -> None:
        self.want, self.text_first, self.host = want, text_first, host
        processor = type(host).__name__
        self.wide, self.halves = processor in WIDE, processor in HALVES
        self.thirds, self.tokens_first = processor in THIRDS, processor in TOKENS_FIRST
        self.image = sum(math.prod(shape) for shape in want.shapes)
        self.norms: Tensor | None = None
        self.calls = 0

    def note_norms(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = args[0] if args else kwargs["hidden_states"]
        lengths = tokens.double().pow(2).sum(-1).sqrt()
        self.norms = lengths.T if self.tokens_first else lengths

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
        query_rotary_emb: Any = None,
        key_rotary_emb: Any = None,
        base_sequence_length: int | None = None,
        perturbation_mask: Tensor | None = None,
        all_perturbed: bool | None = None,
        kv_cache: Any = None,
    ) -> Any:
        self.calls += 1
        if kv_cache is not None and kv_cache.mode == "write":  # GLM-Image's pictures to edit
            return self.host(
                attn, hidden_states, encoder_hidden_states, None, image_rotary_emb, kv_cache
            )
        if perturbation_mask is not None:  # LTX-2's guidance stays as it is
            return self.host(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb,
                perturbation_mask=perturbation_mask, all_perturbed=all_perturbed,
            )  # fmt: skip
        text = None if encoder_hidden_states is hidden_states else encoder_hidden_states
        pair = text is not None
        own_text = pair and getattr(attn, "add_q_proj", None) is not None
        image, length = hidden_states, text.shape[1] if pair else 0
        if not pair and hidden_states.shape[1] > self.image:
            length = hidden_states.shape[1] - self.image
            text, image = self._split(hidden_states, length)
        norms = self.norms
        if norms.shape[1] > self.image:
            norms = self._split(norms, length)[1]
        index, bias = self._kept(norms)
        given = (image_rotary_emb, rotary_emb, freqs_cis, key_rotary_emb)
        tables = next((table for table in given if table is not None), None)
        if self._split_table(attn):
            self.halves, tables = True, by_head(tables)
        image_table, text_table = self._tables(tables, length)
        query, _, _ = self._heads(attn, image, image_table)
        kept_table = None if image_table is None else pick(image_table, index)
        _, key, value = self._heads(attn, pick(image, index), kept_table)
        if text is not None:
            others = self._heads(attn, text, text_table, "add" if own_text else "")
            query, key, value = (
                torch.cat(parts, 1) for parts in zip(others, (query, key, value), strict=True)
            )
            bias = torch.cat([bias.new_zeros(bias.shape[0], length), bias], 1)
        if getattr(kv_cache, "mode", None) == "read":  # GLM-Image
            own = key.shape[1]
            key, value = kv_cache.get(key, value)
            bias = torch.cat([bias.new_zeros(bias.shape[0], key.shape[1] - own), bias], 1)
        if attention_mask is not None and attention_mask.shape[-1] == length:  # HunyuanVideo 1.5
            attention_mask, encoder_hidden_states_mask = None, attention_mask
        mask = self._mask(attention_mask, encoder_hidden_states_mask, index, length)
        if base_sequence_length is not None:  # Lumina: sharper the larger the picture
            query = query * math.sqrt(math.log(self.image, base_sequence_length))
        weights, out = attend(query, key, value, bias[:, None, None] + mask)
        self.to_text = weights[:, :, length:, :length].sum(-1)  # of image queries
        return self._output(attn, out, length, pair, hidden_states)

    def _kept(self, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Image tokens that any sample keeps, and what is added to their logits, [batch, kept]."""
        bias = self.want.log_multiplicities(norms)
        index = bias.isfinite().any(0).nonzero()[:, 0].expand(bias.shape[0], -1)
        return index, bias.gather(1, index)

    def _split_table(self, attn: Any) -> bool:
        """Whether heads have tables of their own."""
        return getattr(attn, "rope_type", None) == "split"

    def _heads(
        self, attn: Any, x: Tensor, table: Tensor | None, part: str = ""
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, [batch, tokens, heads, d], normalised and rotated."""
        size = _size(attn)
        if hasattr(attn, "to_qkv_mlp_proj"):  # FLUX.2: with the MLP in one
            query, key, value = attn.to_qkv_mlp_proj(x)[..., : 3 * attn.inner_dim].chunk(3, -1)
        elif part:
            query, key, value = attn.add_q_proj(x), attn.add_k_proj(x), attn.add_v_proj(x)
        else:
            query, key, value = attn.to_q(x), attn.to_k(x), attn.to_v(x)
        name = "norm_added_" if part else "norm_"
        rotated = []
        for which, tensor in (("q", query), ("k", key)):
            norm = getattr(attn, name + which, None)
            wide = self.wide or type(attn).__name__ in WIDE
            if wide:
                tensor = _norm(norm, tensor)
            flat = type(attn).__name__ in FLAT and not self._split_table(attn)
            if not flat:
                tensor = tensor.unflatten(-1, (-1, size))
            if not wide:
                tensor = _norm(norm, tensor)
            if table is not None:
                tensor = rotate(tensor, table, self.halves, self.thirds)
            if flat:
                tensor = tensor.unflatten(-1, (-1, size))
            rotated.append(tensor)
        return rotated[0], rotated[1], value.unflatten(-1, (-1, size))

    def _split(self, x: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Text and image part of a joint sequence, along dimension 1."""
        if self.text_first:
            return x[:, :length], x[:, length:]
        return x[:, self.image :], x[:, : self.image]

    def _tables(self, table: Any, length: int) -> tuple[Tensor | None, Tensor | None]:
        """Of the image and of the text, if that is rotated at all."""
        if table is None:
            return None, None
        if isinstance(table, tuple) and _is_complex(table[0]):  # Qwen-Image: one each
            return complex_table(table[0]), complex_table(table[1])
        angles = isinstance(table, Tensor) and not table.is_complex()
        table = table.squeeze(2) if angles else complex_table(table)
        if table.shape[1] == self.image:
            return table, None
        text, image = self._split(table, length)
        return image, text

    def _mask(
        self, joint: Tensor | None, of_text: Tensor | None, index: Tensor, length: int
    ) -> Tensor:
        """[batch, 1, 1 or queries, text and kept image keys], added."""
        if joint is None and of_text is None:
            return torch.zeros(())
        if of_text is not None:
            text = of_text[:, None, None]
            image = torch.ones(len(index), 1, 1, index.shape[1], dtype=torch.bool)
        else:
            joint = joint[(slice(None), *[None] * (4 - joint.ndim))]
            joint = joint.expand(len(index), *joint.shape[1:])
            text, image = joint[..., :length], joint[..., length:]
            if not self.text_first:
                text, image = joint[..., self.image :], joint[..., : self.image]
                if joint.shape[2] > 1:  # queries as well
                    text, image = (x.roll(length, 2) for x in (text, image))
            at = index[:, None, None].expand(-1, 1, image.shape[2], -1)
            image = image.gather(-1, at)
            if joint.is_floating_point():  # added to the logits as it is
                return torch.cat([text, image], -1).clamp(min=-1e30)
        allowed = torch.cat([text.bool(), image.bool()], -1)
        # a query that may see nothing sees everything alike, as in torch
        return torch.where(allowed, 0.0, -1e30)

    def _output(self, attn: Any, out: Tensor, length: int, pair: bool, hidden: Tensor) -> Any:
        text, image = out[:, :length], out[:, length:]
        if not pair and not self.text_first:
            out = torch.cat([image, text], 1)
        if hasattr(attn, "to_qkv_mlp_proj"):
            mlp = attn.mlp_act_fn(attn.to_qkv_mlp_proj(hidden)[..., 3 * attn.inner_dim :])
            return attn.to_out(torch.cat([out, mlp], -1))
        if getattr(attn, "to_gate_logits", None) is not None:  # LTX-2.3
            gates = 2 * attn.to_gate_logits(hidden).sigmoid()
            out = (out.unflatten(-1, (attn.heads, -1)) * gates[..., None]).flatten(2)
        if hasattr(attn, "to_gate"):  # Krea 2
            out = out * attn.to_gate(hidden).sigmoid()
        project = getattr(attn, "to_out", None)
        if isinstance(project, nn.Identity):  # Lumina: projected together with cross-attention
            return out.unflatten(-1, (attn.heads, -1))
        if not pair:
            return out if project is None else project[0](out)
        if project is not None:
            image = project[0](image)
            if getattr(attn, "add_q_proj", None) is None:
                text = project[0](text)
        if getattr(attn, "to_add_out", None) is not None:
            text = attn.to_add_out(text)
        return image, text


class Parallel(Joint):
    """For single streams that pass a mask and a table by position."""

    def __call__(self, attn: Any, hidden: Tensor, mask: Any = None, table: Any = None) -> Any:
        return super().__call__(attn, hidden, attention_mask=mask, image_rotary_emb=table)


class Kandinsky(Joint):
    """Names of its own; video only; rotated in float32 and rounded to bfloat16."""

    def __call__(self, attn: Any, hidden_states: Tensor, rotary_emb: Any, **others: Any) -> Any:
        turns = rotary_emb.squeeze(2)[..., 0]  # [batch, tokens, pairs, (cosine, sine)]
        return super().__call__(
            attn, hidden_states, rotary_emb=torch.view_as_complex(turns.contiguous())
        )

    def _heads(self, attn: Any, x: Tensor, table: Tensor, part: str = "") -> Any:
        query, key, value = (
            project(x).unflatten(-1, (attn.num_heads, -1))
            for project in (attn.to_query, attn.to_key, attn.to_value)
        )
        cos, sin = table.real[:, :, None], table.imag[:, :, None]
        rotated = []
        for norm, tensor in ((attn.query_norm, query), (attn.key_norm, key)):
            first, second = (
                norm(tensor.float()).type_as(x).float().unflatten(-1, (-1, 2)).unbind(-1)
            )
            turned = (cos * first - sin * second, sin * first + cos * second)
            rotated.append(torch.stack(turned, -1).flatten(-2).bfloat16().type_as(x))
        return rotated[0], rotated[1], value

    def _output(self, attn: Any, out: Tensor, *others: Any) -> Any:
        return attn.out_layer(out)


class ImageAsks(Joint):
    """PRX: text has keys alone; projections of an image or a text are one."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Tensor:
        self.calls += 1
        index, bias = self._kept(self.norms)
        matrices = image_rotary_emb[:, 0]  # [batch, tokens, pairs, 2, 2]
        table = torch.complex(*matrices[..., 0].double().unbind(-1))
        projected = attn.img_qkv_proj(hidden_states).unflatten(-1, (3, attn.heads, -1))
        query, key, value = projected.unbind(2)
        query = rotate(attn.norm_q(query), table)
        key = rotate(attn.norm_k(key), table)
        text = attn.txt_kv_proj(encoder_hidden_states).unflatten(-1, (2, attn.heads, -1))
        key, value = (torch.stack([row[kept] for row, kept in zip(x, index, strict=True)])
                      for x in (key, value))  # fmt: skip
        key = torch.cat([attn.norm_added_k(text[:, :, 0]), key], 1)
        value = torch.cat([text[:, :, 1], value], 1)
        length = text.shape[1]
        bias = torch.cat([bias.new_zeros(len(bias), length), bias], 1)
        mask = self._mask(None, attention_mask, index, length)
        weights, out = attend(query, key, value, bias[:, None, None] + mask)
        self.to_text = weights[..., :length].sum(-1)
        return attn.to_out[0](out)


class HiDream(Joint):
    """Projections of its own for text, and keys of zeros where a picture is filled up."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        hidden_states_masks: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        self.calls += 1
        index, bias = self._kept(self.norms[:, : self.image])
        rest = hidden_states[:, self.image :]
        kept = torch.cat([pick(hidden_states[:, : self.image], index), rest], 1)
        query, key, value = attn.to_q(hidden_states), attn.to_k(kept), attn.to_v(kept)
        query, key = attn.q_rms_norm(query), attn.k_rms_norm(key)
        if hidden_states_masks is not None:
            real = hidden_states_masks[..., None]
            at = torch.cat([pick(real[:, : self.image], index), real[:, self.image :]], 1)
            key = key * at
        if encoder_hidden_states is not None:
            text = encoder_hidden_states
            query = torch.cat([query, attn.q_rms_norm_t(attn.to_q_t(text))], 1)
            key = torch.cat([key, attn.k_rms_norm_t(attn.to_k_t(text))], 1)
            value = torch.cat([value, attn.to_v_t(text)], 1)
        query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in (query, key, value))
        matrices = image_rotary_emb[:, :, 0]  # [batch, tokens, pairs, 2, 2]
        table = torch.complex(*matrices[..., 0].double().unbind(-1))
        others = table[:, self.image :]
        key = rotate(key, torch.cat([pick(table[:, : self.image], index), others], 1))
        query = rotate(query, table)
        bias = torch.cat([bias, bias.new_zeros(len(bias), others.shape[1])], 1)
        weights, out = attend(query, key, value, bias[:, None, None])
        self.to_text = weights[:, :, : self.image, index.shape[1] :].sum(-1)
        if encoder_hidden_states is None:
            return attn.to_out(out)
        pictures = hidden_states.shape[1]
        return attn.to_out(out[:, :pictures]), attn.to_out_t(out[:, pictures:])


class Nucleus(Joint):
    """Text has keys alone, perhaps from a cache, and its own positions; heads share keys."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        cached_txt_key: Tensor | None = None,
        cached_txt_value: Tensor | None = None,
    ) -> Tensor:
        self.calls += 1
        index, bias = self._kept(self.norms)
        kept, (pictures, words) = pick(hidden_states, index), image_rotary_emb
        size = _size(attn)
        query = attn.norm_q(attn.to_q(hidden_states).unflatten(-1, (-1, size)))
        key = attn.norm_k(attn.to_k(kept).unflatten(-1, (-1, size)))
        query, key = rotate(query, pictures[None]), rotate(key, pick(pictures[None], index))
        value = attn.to_v(kept).unflatten(-1, (-1, size))
        text, its_value = cached_txt_key, cached_txt_value
        if text is None:
            text = attn.add_k_proj(encoder_hidden_states).unflatten(-1, (-1, size))
            text = rotate(attn.norm_added_k(text), words[None])
            its_value = attn.add_v_proj(encoder_hidden_states).unflatten(-1, (-1, size))
        key, value = torch.cat([key, text], 1), torch.cat([value, its_value], 1)
        length = text.shape[1]
        bias = torch.cat([bias, bias.new_zeros(len(bias), length)], 1)
        if attention_mask is not None:
            real = attention_mask[:, self.image :]
            bias[:, -length:] = bias[:, -length:].masked_fill(~real, -1e30)
        weights, out = attend(query, key, value, bias[:, None, None])
        self.to_text = weights[..., -length:].sum(-1)
        return attn.to_out[1](attn.to_out[0](out))


class Mochi(Joint):
    """Every sample on its own, with the text that counts; heads have positions of their own."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: Any = None,
    ) -> Any:
        self.calls += 1
        table = torch.complex(*(part.double().flatten(1) for part in image_rotary_emb))
        outputs, self.to_text = [], []
        samples = zip(hidden_states, encoder_hidden_states, attention_mask, self.norms, strict=True)
        for image, text, counts, norms in samples:
            bias = self.want.log_multiplicities(norms[None])
            index = bias[0].isfinite().nonzero()[:, 0]
            query, _, _ = self._heads(attn, image[None], table[None])
            _, key, value = self._heads(attn, image[None, index], table[None, index])
            words = self._heads(attn, text[None, counts.bool()], None, "add")
            query, key, value = (
                torch.cat(both, 1) for both in zip((query, key, value), words, strict=True)
            )
            bias = torch.cat([bias[:, index], bias.new_zeros(1, words[0].shape[1])], 1)
            weights, out = attend(query, key, value, bias[:, None, None])
            self.to_text.append(weights[:, :, : self.image, len(index) :].sum(-1))
            missing = len(counts) - words[0].shape[1]
            outputs.append(torch.cat([out, out.new_zeros(1, missing, out.shape[-1])], 1))
        out, self.to_text = torch.cat(outputs), torch.cat(self.to_text)
        image, text = out[:, : self.image], out[:, self.image :]
        return attn.to_out[0](image), attn.to_add_out(text) if hasattr(attn, "to_add_out") else text


KINDS = {
    **dict.fromkeys(BY_POSITION, Parallel),
    "Kandinsky5Attention": Kandinsky,
    "PRXAttention": ImageAsks,
    "HiDreamAttention": HiDream,
    "NucleusMoEAttnProcessor2_0": Nucleus,
    "MochiAttention": Mochi,
}


# Blocks, attention, norm, text first: where each builder of tests/tiny_transformers.py has them.
_FLUX = [
    ("transformer_blocks", "attn", "norm1", True),
    ("single_transformer_blocks", "attn", "norm", True),
]
_HUNYUAN = [
    ("transformer_blocks", "attn", "norm1", False),
    ("single_transformer_blocks", "attn", "norm", False),
]
_ATTN1 = [("transformer_blocks", "attn1", "norm1", True)]
_LTX2 = [("transformer_blocks", "attn1", "norm1", False)]
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
    "hunyuan_video_15": _SD3,
    "hunyuan_video_15_text": _SD3,
    "kandinsky5": [("visual_transformer_blocks", "self_attention", "self_attention_norm", True)],
    "hunyuan_image": _HUNYUAN,
    "motif_video": _HUNYUAN,
    "motif_decoder": _HUNYUAN,
    "flux_controlnet": _FLUX,
    "sd3_controlnet": _SD3,
    "qwen_image_controlnet": [("transformer_blocks", "attn", "img_norm1", True)],
    "flux2": _FLUX,
    "flux3": [
        ("mode_blocks.image", "attn", "norm", True),
        ("single_transformer_blocks", "attn", "", True),  # its norm is given text as well
    ],
    "ovis_image": _FLUX,
    "longcat_image": _FLUX,
    "bria": _FLUX,
    "bria_fibo": _FLUX,
    "skyreels": _WAN,
    "wan_animate": _WAN,
    "anyflow": _WAN,
    "hunyuan_dit": [("blocks", "attn1", "norm1", True)],
    "hunyuan_dit_controlnet": [("blocks", "attn1", "norm1", True)],
    "chrono_edit": _WAN,
    "ltx": _ATTN1,
    "ltx2": _LTX2,
    "ltx23": _LTX2,
    "cogvideox": _ATTN1,
    "consisid": _ATTN1,
    "easyanimate": _ATTN1,
    "cosmos": _ATTN1,
    "cosmos_controlnet": [("control_blocks", "attn1", "norm1", True)],
    "allegro": _ATTN1,
    "mochi": [("transformer_blocks", "attn1", "norm1", False)],
    "cogview3": _ATTN1,
    "cogview4": _ATTN1,
    "glm_image": _ATTN1,
    "auraflow": [
        ("joint_transformer_blocks", "attn", "norm1", True),
        ("single_transformer_blocks", "attn", "norm1", True),
    ],
    "z_image": [
        ("noise_refiner", "attention", "attention_norm1", False),
        ("layers", "attention", "attention_norm1", False),
    ],
    "ernie_image": [("layers", "self_attention", "adaLN_sa_ln", False)],
    "ideogram4": [("layers", "attention", "attention_norm1", True)],
    "prx": [("blocks", "attention", "img_pre_norm", True)],
    "hidream": [
        ("double_stream_blocks", "block.attn1", "block.norm1_i", False),
        ("single_stream_blocks", "block.attn1", "block.norm1_i", False),
    ],
    "nucleus": [("transformer_blocks", "attn", "pre_attn_norm", False)],
    "krea2": [("transformer_blocks", "attn", "norm1", True)],
    "bria_fibo2": [
        ("noise_refiner", "attention", "attention_norm1", True),
        ("layers", "attention", "attention_norm1", True),
    ],
    "omnigen": [("layers", "self_attn", "input_layernorm", True)],
    "lumina_next": [("layers", "attn1", "norm1", True)],
    "lumina2": [("noise_refiner", "attn", "norm1", True), ("layers", "attn", "norm1", True)],
}


def coarsen(model: Any, kind: str, want: Want) -> list[Joint]:
    """Makes an un-patched model compute what a patched one should."""
    processors = []
    for path, attention, norm, text_first in WHERE[kind]:
        alone = replace(want, shapes=want.shapes[:1])  # without references
        for block in attrgetter(path)(model):
            module = reduce(lambda x, name: getattr(x, name, None), attention.split("."), block)
            if module is None:
                continue
            names = type(module).__name__, type(module.processor).__name__
            kind = next((KINDS[name] for name in names if name in KINDS), Joint)
            here = alone if path == "mode_blocks.image" else want
            processor = kind(here, text_first, module.processor)
            module.processor = processor
            before = attrgetter(norm)(block) if norm else block
            before.register_forward_pre_hook(processor.note_norms, with_kwargs=True)
            processors.append(processor)
    return processors
