"""Transformers whose attention joins image tokens with text, or rotates positions. One table.

An entry says where the blocks are, in which order a joint sequence is, and where the model says how
its image tokens are laid out. ``register_adapter`` adds one for a model of your own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..config import expect
from .grids import (
    CaptionedGrid,
    DenseGrid,
    GistGrid,
    GridSource,
    LatentGrid,
    ListGrid,
    NumberGrid,
    ShapeGrid,
)
from .positions import CoordinateGrid, IdGrid, IntervalGrid, JoinedIdGrid, OffsetIdGrid


@dataclass(frozen=True)
class Blocks:
    """A list of equal blocks in a transformer.

    Args:
        path: attribute of the model that holds the blocks, dotted where it is one of a part.
        attention: attribute of a block, dotted where it is one of a part: the module with
            ``to_q``, ``to_k``, ``to_v``, or with ``to_query``, ``to_key``, ``to_value``.
        norm: attribute of a block: the norm before it; anchors are the longest of its inputs.
            Empty for the block itself, where its norm is given the text as well.
        text_first: whether text comes before the image tokens in the keys.
        rotary: argument of the attention module with the rotary positions, or None.
        references: whether reference pictures are in its sequence, where there are any.
        rotary_inside: what the processor calls those positions, where it is another name.
        tokens_first: whether the norm is given [tokens, batch, channels].
        text_asks: whether text has queries, not keys alone.
        by_sample: whether attention is called once a sample, with its valid text alone.
    """

    path: str
    attention: str = "attn"
    norm: str = "norm1"
    text_first: bool = True
    rotary: str | None = "image_rotary_emb"
    references: bool = True
    rotary_inside: str | None = None
    tokens_first: bool = False
    text_asks: bool = True
    by_sample: bool = False


@dataclass(frozen=True)
class Adapter:
    """How to find the image tokens of a transformer.

    Args:
        grid: tells (frames, height, width) in tokens, of the picture or video first, then of
            reference pictures: from the model's configuration and the arguments of its forward.
        blocks: lists of blocks with self-attention over these tokens.
        positions: read instead of the grid in calls that tell it so, or None.
    """

    grid: GridSource | IdGrid
    blocks: tuple[Blocks, ...]
    positions: IdGrid | None = None

    def source(self, arguments: Mapping[str, Any]) -> GridSource | IdGrid:
        """What tells the grid in a call with these arguments."""
        if self.positions is not None and self.positions.wanted(arguments):
            return self.positions
        return self.grid


_DOUBLE_AND_SINGLE = (
    Blocks("transformer_blocks"),
    Blocks("single_transformer_blocks", norm="norm"),
)
_IMAGE_THEN_TEXT = (
    Blocks("transformer_blocks", text_first=False),
    Blocks("single_transformer_blocks", norm="norm", text_first=False),
)
_WAN = Blocks("blocks", "attn1", rotary="rotary_emb")
_Z_IMAGE: dict[str, Any] = {
    "attention": "attention",
    "norm": "attention_norm1",
    "text_first": False,  # nor are the tokens that fill it up to a multiple of 32
    "rotary": "freqs_cis",
}

_SD3 = Blocks("transformer_blocks", text_first=False, rotary=None)
_QWEN_IMAGE = Adapter(ShapeGrid(), (Blocks("transformer_blocks", norm="img_norm1"),))
_HUNYUAN_DIT = Adapter(LatentGrid(), (Blocks("blocks", "attn1"),))

ADAPTERS: dict[str, Adapter] = {
    "FluxTransformer2DModel": Adapter(IdGrid(), _DOUBLE_AND_SINGLE),
    "ChromaTransformer2DModel": Adapter(IdGrid(), _DOUBLE_AND_SINGLE),
    "SD3Transformer2DModel": Adapter(
        LatentGrid(),
        (
            _SD3,
            Blocks("transformer_blocks", "attn2", rotary=None),  # SD 3.5 medium, image tokens only
        ),
    ),
    "QwenImageTransformer2DModel": _QWEN_IMAGE,
    "FluxControlNetModel": Adapter(IdGrid(), _DOUBLE_AND_SINGLE),
    "SD3ControlNetModel": Adapter(LatentGrid(), (_SD3,)),
    "QwenImageControlNetModel": _QWEN_IMAGE,
    "WanTransformer3DModel": Adapter(LatentGrid(frames=-3), (_WAN,)),
    "WanVACETransformer3DModel": Adapter(
        LatentGrid(frames=-3), (_WAN, Blocks("vace_blocks", "attn1", rotary="rotary_emb"))
    ),
    "HunyuanVideoTransformer3DModel": Adapter(
        LatentGrid(frames=-3, temporal="patch_size_t"), _IMAGE_THEN_TEXT
    ),
    "HunyuanVideo15Transformer3DModel": Adapter(
        LatentGrid(frames=-3, temporal="patch_size_t"),
        (Blocks("transformer_blocks", text_first=False),),
    ),
    "Kandinsky5Transformer3DModel": Adapter(
        DenseGrid(frames=-3, channels_last=True),
        (
            Blocks(
                "visual_transformer_blocks",
                "self_attention",
                norm="self_attention_norm",
                rotary="rotary_emb",
            ),
        ),
    ),
    "MotifVideoTransformer3DModel": Adapter(
        LatentGrid(frames=-3, temporal="patch_size_t"), _IMAGE_THEN_TEXT
    ),
    "HunyuanImageTransformer2DModel": Adapter(LatentGrid(frames=-3), _IMAGE_THEN_TEXT),
    "Flux2Transformer2DModel": Adapter(IdGrid(), _DOUBLE_AND_SINGLE),
    "Flux3Transformer2DModel": Adapter(
        IdGrid(references="image_cond_ids"),
        (
            Blocks("mode_blocks.image", norm="norm", references=False),
            Blocks("single_transformer_blocks", norm=""),
        ),
    ),
    "OvisImageTransformer2DModel": Adapter(IdGrid(), _DOUBLE_AND_SINGLE),
    "LongCatImageTransformer2DModel": Adapter(IdGrid(), _DOUBLE_AND_SINGLE),
    "BriaTransformer2DModel": Adapter(IdGrid(), _DOUBLE_AND_SINGLE),
    "BriaFiboTransformer2DModel": Adapter(IdGrid(), _DOUBLE_AND_SINGLE),
    "SkyReelsV2Transformer3DModel": Adapter(LatentGrid(frames=-3), (_WAN,)),
    "ChronoEditTransformer3DModel": Adapter(LatentGrid(frames=-3), (_WAN,)),
    "WanAnimateTransformer3DModel": Adapter(LatentGrid(frames=-3), (_WAN,)),
    "AnyFlowTransformer3DModel": Adapter(LatentGrid(frames=-4), (_WAN,)),
    "HunyuanDiT2DModel": _HUNYUAN_DIT,
    "HunyuanDiT2DControlNetModel": _HUNYUAN_DIT,
    "LTXVideoTransformer3DModel": Adapter(
        NumberGrid(),
        (Blocks("transformer_blocks", "attn1"),),
        positions=CoordinateGrid("video_coords"),
    ),
    "LTX2VideoTransformer3DModel": Adapter(  # its sound has attention of its own
        NumberGrid(patched=True),
        (Blocks("transformer_blocks", "attn1", text_first=False, rotary="query_rotary_emb"),),
        positions=IntervalGrid("video_coords"),
    ),
    "CogVideoXTransformer3DModel": Adapter(
        LatentGrid(frames=-4, temporal="patch_size_t"), (Blocks("transformer_blocks", "attn1"),)
    ),
    "ConsisIDTransformer3DModel": Adapter(
        LatentGrid(frames=-4), (Blocks("transformer_blocks", "attn1"),)
    ),
    "EasyAnimateTransformer3DModel": Adapter(
        LatentGrid(frames=-3), (Blocks("transformer_blocks", "attn1"),)
    ),
    "CosmosTransformer3DModel": Adapter(
        LatentGrid(frames=-3), (Blocks("transformer_blocks", "attn1"),)
    ),
    "CosmosControlNetModel": Adapter(
        LatentGrid("controls_latents", frames=-3), (Blocks("control_blocks", "attn1"),)
    ),
    "AllegroTransformer3DModel": Adapter(
        LatentGrid(frames=-3), (Blocks("transformer_blocks", "attn1"),)
    ),
    "MochiTransformer3DModel": Adapter(
        LatentGrid(frames=-3),
        (Blocks("transformer_blocks", "attn1", text_first=False, by_sample=True),),
    ),
    "CogView3PlusTransformer2DModel": Adapter(
        LatentGrid(), (Blocks("transformer_blocks", "attn1"),)
    ),
    "CogView4Transformer2DModel": Adapter(LatentGrid(), (Blocks("transformer_blocks", "attn1"),)),
    "GlmImageTransformer2DModel": Adapter(LatentGrid(), (Blocks("transformer_blocks", "attn1"),)),
    "AuraFlowTransformer2DModel": Adapter(
        LatentGrid(),
        (
            Blocks("joint_transformer_blocks", rotary=None),
            Blocks("single_transformer_blocks", rotary=None),
        ),
    ),
    "HiDreamImageTransformer2DModel": Adapter(  # pictures that are not square are filled up
        LatentGrid(),
        (
            Blocks("double_stream_blocks", "block.attn1", "block.norm1_i", text_first=False),
            Blocks("single_stream_blocks", "block.attn1", "block.norm1_i", text_first=False),
        ),
    ),
    "NucleusMoEImageTransformer2DModel": Adapter(
        ShapeGrid(),
        (Blocks("transformer_blocks", norm="pre_attn_norm", text_first=False, text_asks=False),),
    ),
    "Krea2Transformer2DModel": Adapter(
        JoinedIdGrid("position_ids"), (Blocks("transformer_blocks"),)
    ),
    "Ideogram4Transformer2DModel": Adapter(
        OffsetIdGrid(), (Blocks("layers", "attention", "attention_norm1"),)
    ),
    "PRXTransformer2DModel": Adapter(
        LatentGrid(), (Blocks("blocks", "attention", "img_pre_norm", text_asks=False),)
    ),
    "BriaFibo2Transformer2DModel": Adapter(
        GistGrid(),
        (
            Blocks("noise_refiner", "attention", "attention_norm1", rotary="freqs_cis"),
            Blocks("layers", "attention", "attention_norm1", rotary="freqs_cis"),
        ),
    ),
    "ErnieImageTransformer2DModel": Adapter(
        LatentGrid(),
        (
            Blocks(
                "layers",
                "self_attention",
                "adaLN_sa_ln",
                text_first=False,
                rotary_inside="freqs_cis",
                tokens_first=True,
            ),
        ),
    ),
    "ZImageTransformer2DModel": Adapter(
        ListGrid(), (Blocks("noise_refiner", **_Z_IMAGE), Blocks("layers", **_Z_IMAGE))
    ),
    "LuminaNextDiT2DModel": Adapter(
        LatentGrid(), (Blocks("layers", "attn1", rotary="key_rotary_emb"),)
    ),
    "OmniGenTransformer2DModel": Adapter(  # its pictures that go in count as text
        LatentGrid(), (Blocks("layers", "self_attn", "input_layernorm"),)
    ),
    "Lumina2Transformer2DModel": Adapter(
        CaptionedGrid(), (Blocks("noise_refiner"), Blocks("layers"))
    ),
}


def register_adapter(model: type | str, adapter: Adapter) -> None:
    """Makes ``apply_patch`` know one more transformer, and its subclasses.

    ``summary`` knows it where it is a subclass of one of diffusers: for another it has no inputs.

    Args:
        model: the class, or its name.
        adapter: where its image tokens are; see docs/how-it-works.md for an example.

    Raises:
        ConfigError: ``model`` is no class and no name, or the adapter has no tuple of blocks.
    """
    expect(isinstance(model, type | str), "a class or its name", model)
    expect(isinstance(adapter, Adapter), "a tokendown.Adapter", adapter)
    blocks = adapter.blocks
    expect(
        isinstance(blocks, tuple)
        and len(blocks) > 0
        and all(isinstance(each, Blocks) for each in blocks),
        "an adapter with at least one list of blocks: blocks=(Blocks(path),)",
        blocks,
    )
    ADAPTERS[model if isinstance(model, str) else model.__name__] = adapter


def find_adapter(model: nn.Module) -> Adapter | None:
    """The entry of a model or of one of its base classes."""
    for base in type(model).__mro__:
        if base.__name__ in ADAPTERS:
            return ADAPTERS[base.__name__]
    return None
