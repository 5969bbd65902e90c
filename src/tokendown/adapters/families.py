"""Where each family of denoisers keeps self-attention on an image grid. One table.

A family is found by the class names of a model and its bases, so that nothing here imports
diffusers and a subclass is as good as its base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from .._errors import ConfigError, UnsupportedModelError
from ..config import PatchConfig
from ..tuned import Options
from . import transformers
from .classic import FewerKeys, GridReader, NormReader, why_dense
from .intercept import intercepts
from .joint import JointKeys
from .joint_plan import JointPlan
from .plan import Layer, Plan, assign_rules
from .recompute import Recall, watch_block
from .refused import refusal
from .registry import ADAPTERS, find_adapter
from .schedule import Follower, release


@dataclass(frozen=True)
class Site:
    """A module that is given a feature map, and the self-attention that sees the map's tokens.

    Args:
        flattens: its first argument is the map, [..., height, width].
        attentions: that follow: dotted path, the norm before it, and the module.
        downsample: of its grid relative to the finest token grid of the model.
        patch_size: pixels of the map a token, per side.
    """

    flattens: nn.Module
    attentions: list[tuple[str, nn.Module, Any]]
    downsample: int
    patch_size: int = 1


def _unet_sites(model: Any) -> Iterator[Site]:
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind in ("TransformerSpatioTemporalModel", "DreamLiteTransformer2DModel") or (
            kind == "Transformer2DModel" and module.is_input_continuous
        ):
            attentions = _of_blocks(f"{name}.transformer_blocks", module.transformer_blocks)
            yield Site(module, attentions, _unet_downsample(model, name))
        elif kind == "Attention" and _takes_maps(name, module):
            yield Site(module, [(name, module, module)], _unet_downsample(model, name))


def _of_blocks(path: str, blocks: Any) -> list[tuple[str, nn.Module, Any]]:
    """The self-attention of diffusers' ``BasicTransformerBlock``."""
    found = []
    for index, block in enumerate(blocks):
        # DreamLite has blocks without self-attention
        if not getattr(block, "only_cross_attention", False) and block.attn1 is not None:
            found.append((f"{path}.{index}.attn1", block.norm1, block.attn1))
        if getattr(block, "double_self_attention", False):
            found.append((f"{path}.{index}.attn2", block.norm2, block.attn2))
    return found


def _takes_maps(name: str, attention: Any) -> bool:
    """Whether a U-Net gives a map to this ``Attention``, which flattens and normalises it."""
    return (
        name.rpartition(".")[0].endswith(".attentions")
        and attention.added_kv_proj_dim is None
        and attention.spatial_norm is None  # it would need the map of another module too
    )


def _unet_downsample(model: Any, name: str) -> int:
    """How often the map has been halved on the way to the module ``name``."""
    stage, _, rest = name.partition(".")
    halvings = [_scales(block, "downsamplers") for block in model.down_blocks]
    if stage == "down_blocks":
        return int(2 ** sum(halvings[: int(rest.split(".")[0])]))
    lowest = int(2 ** sum(halvings))
    if stage == "up_blocks":
        doublings = [_scales(block, "upsamplers") for block in model.up_blocks]
        return lowest // int(2 ** sum(doublings[: int(rest.split(".")[0])]))
    return lowest


def _scales(block: Any, how: str) -> bool:
    """Whether the map has another size behind a block; one of ControlNet-XS is two in one."""
    return getattr(block, how, None) is not None or getattr(block, f"base_{how}", None) is not None


def _kandinsky3_sites(model: Any) -> Iterator[Site]:
    """The first attention of a block: on the map that comes in, or on the one that goes out."""
    lowest = len(model.down_blocks) - 1
    for path, blocks in (("down_blocks", model.down_blocks), ("up_blocks", model.up_blocks)):
        for index, block in enumerate(blocks):
            if block.self_attention:
                level = index if path == "down_blocks" else lowest - index
                first, name = block.attentions[0], f"{path}.{index}.attentions.0.attention"
                yield Site(first, [(name, first.in_norm, first.attention)], 2**level)


def _uvit_sites(model: Any) -> Iterator[Site]:
    attentions = _of_blocks("transformer_layers", model.transformer_layers)
    yield Site(model.down_block.res_blocks[-1], attentions, 1)  # the last to be given the map


def _patch_transformer_sites(model: Any) -> Iterator[Site]:
    attentions = _of_blocks("transformer_blocks", model.transformer_blocks)
    yield Site(model.pos_embed, attentions, 1, model.config.patch_size)


_WITH_PLAN = (FewerKeys, JointKeys, GridReader, transformers.ShapeReader)
_HOOKS = (GridReader, NormReader, transformers.ShapeReader, Recall, Follower)
_WITH_TEXT = "text and image in one attention (added key and value projections)"  # Kandinsky 2

FAMILIES: dict[str, Callable[[Any], Iterator[Site]]] = {
    "UNet2DConditionModel": _unet_sites,
    "UNetMotionModel": _unet_sites,
    "UNetSpatioTemporalConditionModel": _unet_sites,
    "UNet3DConditionModel": _unet_sites,
    "I2VGenXLUNet": _unet_sites,
    "DreamLiteUNetModel": _unet_sites,
    "ControlNetModel": _unet_sites,
    "ControlNetUnionModel": _unet_sites,
    "SparseControlNetModel": _unet_sites,
    "UNetControlNetXSModel": _unet_sites,
    "UNet2DModel": _unet_sites,
    "Kandinsky3UNet": _kandinsky3_sites,
    "UVit2DModel": _uvit_sites,
    "PixArtTransformer2DModel": _patch_transformer_sites,
    "DiTTransformer2DModel": _patch_transformer_sites,
    "LatteTransformer3DModel": _patch_transformer_sites,  # frames are images of the batch
}


def find_sites(model: nn.Module) -> list[Site]:
    """Every place of a classic model where a map becomes tokens.

    Raises:
        UnsupportedModelError: no family matches.
    """
    for base in type(model).__mro__:
        if base.__name__ in FAMILIES:
            return list(FAMILIES[base.__name__](model))
    raise _unsupported(model)


def expect_supported(model: nn.Module) -> None:
    """Does nothing for a model that can be patched.

    Raises:
        UnsupportedModelError: no family matches; the message says why, where that is known.
    """
    if find_adapter(model) is None:
        find_sites(model)


def _unsupported(model: nn.Module) -> UnsupportedModelError:
    reason = refusal(type(model).__name__)
    if reason is not None:
        return UnsupportedModelError(f"{type(model).__name__} cannot be patched: {reason}")
    known = ", ".join([*FAMILIES, *ADAPTERS])
    return UnsupportedModelError(
        f"expected a pipeline or a denoiser with one of the classes {known}; "
        f"got {type(model).__name__}; tokendown.register_adapter adds a transformer"
    )


def make_plan(model: nn.Module, config: Options | None) -> Plan:
    """The plan for a denoiser, with nothing installed; no config leaves every layer dense.

    Raises:
        UnsupportedModelError: no family matches, or the plan is for another architecture.
        NothingPatchedError: no layer matches the config.
        ConfigError: an option is for transformers that see several frames or pictures.
    """
    adapter = find_adapter(model)
    if adapter is not None:
        plan: Plan = transformers.make_plan(model, adapter, config)
    else:
        plan = _classic_plan(model, config)
    taken = {layer.name for layer in plan.layers}
    plan.left_alone = _other_self_attention(model, taken)
    if config is not None:
        assign_rules(plan, [base.__name__ for base in type(model).__mro__])
    return plan


def _classic_plan(model: nn.Module, config: Options | None) -> Plan:
    for name in ("temporal_factor", "references"):
        if getattr(config, name, 1) > 1:
            raise ConfigError(
                f"{name} has no use here: self-attention of {type(model).__name__} sees one frame "
                "of one picture; leave it out"
            )
    plan = Plan(config or PatchConfig(), [])
    for site in find_sites(model):
        for name, _, attention in site.attentions:
            plan.layers.append(
                Layer(
                    name,
                    site.downsample,
                    channels=attention.query_dim,
                    heads=attention.heads,
                    head_dim=attention.inner_dim // attention.heads,
                    key_width=attention.to_k.out_features,
                    reason=_never(attention) or why_dense(attention) or "",
                )
            )
    return plan


def install(model: nn.Module, plan: Plan) -> None:
    """Puts a plan to work on the denoiser it was made for."""
    if isinstance(plan, JointPlan):
        transformers.install(model, plan)
        return
    layers = {layer.name: layer for layer in plan.layers}
    for site in find_sites(model):
        attentions = [(layers[name], norm, module) for name, norm, module in site.attentions]
        reader = GridReader(plan, [layer for layer, _, _ in attentions], site.patch_size)
        site.flattens.register_forward_pre_hook(reader, with_kwargs=True)
        for layer, norm, attention in attentions:
            if layer.rule is None:
                continue
            FewerKeys(attention, plan, layer).install()
            watch_block(model, layer)
            if layer.rule.anchors:
                norm.register_forward_pre_hook(NormReader(layer), with_kwargs=True)


def uninstall(model: nn.Module) -> None:
    """Takes everything of tokendown out of a model, whatever put it there."""
    for plan in set(installed_plans(model)):
        plan.retire()
    for module in model.modules():
        for item in intercepts(module):
            item.remove()
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, _HOOKS):
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
            if isinstance(hook, Follower):
                release(hook.scheduler)


def installed_plan(model: nn.Module) -> Plan | None:
    """The plan that is at work on a denoiser, or None."""
    return next((plan for plan in installed_plans(model) if plan.patched), None)


def installed_plans(model: nn.Module) -> Iterator[Plan]:
    """Those of stand-ins and of hooks: others may have wrapped a stand-in out of sight."""
    for module in model.modules():
        for item in (*intercepts(module), *module._forward_pre_hooks.values()):
            if isinstance(item, _WITH_PLAN):
                yield item.plan


def attentions(model: nn.Module) -> Iterator[tuple[str, nn.Module, Any]]:
    """Name, the norm before it, and the module of every layer of a plan, in its order."""
    adapter = find_adapter(model)
    if adapter is not None:
        for name, norm, attention, _ in transformers.attentions(model, adapter):
            yield name, norm, attention
        return
    for site in find_sites(model):
        yield from site.attentions


def _never(attention: Any) -> str | None:
    """Why this ``Attention`` can never be coarsened, or None."""
    if attention.added_kv_proj_dim is not None:
        return _WITH_TEXT
    return None


def _other_self_attention(model: nn.Module, taken: set[str]) -> dict[str, str]:
    """Name to reason, for the self-attention that sees no image grid of its own."""
    found: dict[str, str] = {}
    blocks = {name.rpartition(".")[0] for name in taken}
    for name, module in model.named_modules():
        if not (hasattr(module, "to_q") or hasattr(module, "to_query")) or name in taken:
            continue
        if name.endswith(".audio_attn1"):  # LTX-2
            found[name] = "its tokens are sound"
            continue
        if name.rpartition(".")[0] in blocks:  # cross-attention beside it
            continue
        both = getattr(module, "added_kv_proj_dim", None) is not None
        if getattr(module, "is_cross_attention", False) and not both:
            continue
        if "motion_modules" in name or "temporal" in name or "temp_" in name:
            found[name] = "temporal attention"
        elif both:
            found[name] = _WITH_TEXT
        else:
            found[name] = "no image grid is known here"
    return found
