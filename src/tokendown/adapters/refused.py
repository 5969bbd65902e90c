"""Models of diffusers that are left out, each with its reason."""

from __future__ import annotations

_LINEAR = "its self-attention is linear in the number of tokens: there is nothing to save"
_SOUND = "its tokens are sound, not pictures"
_NO_SELF_ATTENTION = "it has no self-attention over an image grid"
_STREAMS = "its attention joins tokens of sound and video"
_HISTORY = "its sequence holds frames of several sizes, which no grid source describes yet"
_CACHE = "its processor keeps keys and values of its own between calls"
_BLOCK_MASK = "its attention takes block masks, which cannot be cut down to the kept keys"
_NAMES = "its attention modules have no to_k and to_v, before which tokens could be selected"
_RENAMED = (
    "its attention modules make arguments of their processor from others, in the forward that "
    "tokendown stands in for"
)
_CAUSAL = "its text sees text alone: one processor makes two attention calls, over other sequences"
_KEYS_OF_TWO_KINDS = (
    "image tokens and text are one tensor of keys before attention is called, but the queries are "
    "image tokens alone: neither way of patching describes that"
)
_BORROWS = (
    "it runs on embedders and refiners of the transformer, and has none of its own; patch that"
)
_PART = "it is a part of other models and never a denoiser on its own"

REFUSED: dict[str, str] = {
    # linear attention
    "SanaTransformer2DModel": _LINEAR,
    "SanaVideoTransformer3DModel": _LINEAR,
    "SanaControlNetModel": _LINEAR,
    "SanaWMTransformer3DModel": _LINEAR,
    # sound, molecules, tokens
    "AceStepTransformer1DModel": _SOUND,
    "LongCatAudioDiTTransformer": _SOUND,
    "MiniMaxMusic3RVQDepthDecoder": _SOUND,
    "MiniMaxMusic3Transformer1DModel": _SOUND,
    "StableAudio3DiTModel": _SOUND,
    "StableAudioDiTModel": _SOUND,
    "T5FilmDecoder": _SOUND,
    "UNet1DModel": _SOUND,
    "RFD4ProteinaTransformer": "its tokens are residues of proteins, not pictures",
    # no grid of image tokens
    "PriorTransformer": _NO_SELF_ATTENTION,
    "MotionAdapter": _PART,
    "ControlNetXSAdapter": "the U-Net of its pipeline holds a copy of it, patched with the U-Net",
    "DreamLiteTransformer2DModel": _PART,
    "Transformer2DModel": _PART,
    "TransformerTemporalModel": _PART,
    "MultiControlNetModel": "it is a list of ControlNets; patch those, or the pipeline",
    "MultiControlNetUnionModel": "it is a list of ControlNets; patch those, or the pipeline",
    "FluxMultiControlNetModel": "it is a list of ControlNets; patch those, or the pipeline",
    "SD3MultiControlNetModel": "it is a list of ControlNets; patch those, or the pipeline",
    "QwenImageMultiControlNetModel": "it is a list of ControlNets; patch those, or the pipeline",
    "HunyuanDiT2DMultiControlNetModel": "it is a list of ControlNets; patch those, or the pipeline",
    # attention out of reach
    "ZImageControlNetModel": _BORROWS,
    "AnyFlowFARTransformer3DModel": _CACHE,
    "QwenImage21Transformer2DModel": _CACHE,
    "WanAnimate2Transformer3DModel": _CACHE,
    "SanaWMLTX2RefinerTransformer3DModel": _CACHE,
    "Kandinsky6Transformer3DModel": _RENAMED,
    "JoyImageEditTransformer3DModel": _NAMES,
    "StableCascadeUNet": _KEYS_OF_TWO_KINDS,
    "Cosmos3OmniTransformer": _CAUSAL,
    "MiniMaxH3Transformer3DModel": _STREAMS,
    "Kandinsky6SRTransformer3DModel": _BLOCK_MASK,
    "HunyuanVideoFramepackTransformer3DModel": _HISTORY,
    "HeliosTransformer3DModel": _HISTORY,
    "JoyImageEditPlusTransformer3DModel": _HISTORY,
}


def refusal(kind: str) -> str | None:
    """Why a class of models is left out, or None where it is not known at all."""
    return REFUSED.get(kind)
