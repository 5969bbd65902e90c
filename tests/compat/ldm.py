"""The names that weights of a U-Net have in original Stable Diffusion checkpoints."""

from __future__ import annotations

import re

from torch import Tensor

PREFIX = "model.diffusion_model."

_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_STAGE = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)")


def original_names(weights: dict[str, Tensor], layers_per_block: int) -> dict[str, Tensor]:
    """Renames the weights of a ``UNet2DConditionModel``, the inverse of diffusers' converter."""
    attends = {
        name.split(".")[1] for name in weights if re.match(r"up_blocks.\d+.attentions", name)
    }
    renamed = {}
    for name, value in weights.items():
        stem, _, leaf = name.rpartition(".")
        for ours, theirs in _OUTSIDE.items():
            if stem == ours or stem.startswith(ours + "."):
                stem = theirs + stem.removeprefix(ours)
                break
        else:
            stem = _STAGE.sub(lambda found: _stage(found, layers_per_block, attends), stem)
            if "downsamplers" in name:
                stem = stem.removesuffix("conv") + "op"
        if ".resnets." in name:
            head, _, last = stem.rpartition(".")
            stem = f"{head}.{_RESNET[last]}"
        renamed[f"{PREFIX}{stem}.{leaf}"] = value
    return renamed


def _stage(found: re.Match[str], layers: int, attends: set[str]) -> str:
    way, stage, kind, index = found[1], int(found[2]), found[3], int(found[4])
    if way == "down":
        if kind == "downsamplers":  # "conv" follows; the original calls it "op"
            return f"input_blocks.{(layers + 1) * (stage + 1)}.0"
        return f"input_blocks.{(layers + 1) * stage + index + 1}.{int(kind == 'attentions')}"
    if kind == "upsamplers":
        return f"output_blocks.{(layers + 1) * stage + layers}.{1 + (found[2] in attends)}"
    return f"output_blocks.{(layers + 1) * stage + index}.{int(kind == 'attentions')}"
