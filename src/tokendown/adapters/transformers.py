"""Puts a patch into a transformer of the table, and reads how its tokens are laid out."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator
from functools import reduce
from math import prod
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import ConfigError, UnsupportedModelError
from ..config import PatchConfig
from ..tuned import Options
from .classic import NormReader, say_if_unchanged, why_dense
from .joint import JointKeys, check
from .joint_plan import JointLayer, JointPlan
from .plan import Shape
from .positions import IdGrid
from .recompute import watch_block
from .registry import Adapter, Blocks, find_adapter


class ShapeReader:
    """A forward pre-hook on a transformer that notes how its image tokens are laid out.

    The values of a tensor are read once: pipelines pass the same tensor at every step. Two sizes
    can have equally many tokens, so nothing is remembered by shape.

    Args:
        plan: of the transformer.
        adapter: its table entry.
        names: of the parameters of its forward.
    """

    def __init__(self, plan: JointPlan, adapter: Adapter, names: tuple[str, ...]) -> None:
        self.plan = plan
        self.adapter = adapter
        self.names = names
        self._last: list[tuple[weakref.ref[Tensor], int | None]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": []}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = {**dict(zip(self.names, args, strict=False)), **kwargs}
        grid = self.adapter.source(arguments)
        if isinstance(grid, IdGrid):
            self._from_values(grid, grid.given(arguments))
        else:
            self.plan.set_shapes(grid(module.config, arguments))
        if not torch.compiler.is_compiling():
            self.plan.others = _others(arguments.get("hidden_states"), self.plan.shapes)
            say_if_unchanged(self.plan, self.plan.layers)

    def _from_values(self, grid: IdGrid, ids: tuple[Tensor, ...]) -> None:
        if torch.compiler.is_compiling() or ids[0].is_meta:
            self._check(grid, ids)
        elif not self._knows(ids):
            self.plan.set_shapes(tuple(shape for part in ids for shape in grid.read(part)))
            self._last = [(weakref.ref(part), _version(part)) for part in ids]

    def _check(self, grid: IdGrid, ids: tuple[Tensor, ...]) -> None:
        shapes = self.plan.shapes
        if not shapes:
            raise ConfigError(
                f"a compiled model cannot read its token grid from {grid.argument}: call "
                "patch.set_grid((height, width)) with the size in tokens, or compile the "
                "blocks only (compile_repeated_blocks)"
            )
        own = len(shapes) if len(ids) == 1 else 1
        for part, its in zip(ids, (shapes[:own], shapes[own:]), strict=False):
            grid.check(part, its)

    def _knows(self, ids: tuple[Tensor, ...]) -> bool:
        return len(ids) == len(self._last) and all(
            last() is part and version is not None and version == _version(part)
            for part, (last, version) in zip(ids, self._last, strict=True)
        )


def _others(latent: Any, shapes: tuple[Shape, ...]) -> int:
    """Tokens of a packed latent, [batch, tokens, channels], that are of no shape."""
    if not isinstance(latent, Tensor) or latent.ndim != 3:
        return 0
    return int(latent.shape[1]) - sum(map(prod, shapes))


def _version(tensor: Tensor) -> int | None:
    """Counts changes in place; tensors of inference mode do not count."""
    return None if tensor.is_inference() else tensor._version


def make_plan(model: nn.Module, adapter: Adapter, config: Options | None) -> JointPlan:
    """The layers of a transformer, with no rules yet.

    Raises:
        ConfigError: cells are to be averaged.
        UnsupportedModelError: an attention processor is out of reach, or a block is in two places.
    """
    if config is not None and _averages(config):
        raise ConfigError(
            "cell averages do not go with rotary positions and normalised keys; use "
            "method='nearest' or 'jitter' for this model"
        )
    plan, places = JointPlan(config or PatchConfig(), []), dict[Any, str]()
    for name, _, attention, blocks in attentions(model, adapter):
        if places.setdefault(attention, name) != name:
            raise UnsupportedModelError(f"{places[attention]} and {name} are one module")
        if config is not None:
            check(name, attention)
        key = getattr(attention, "to_k", getattr(attention, "to_key", None))
        plan.layers.append(
            JointLayer(
                name,
                1,
                channels=_query_dim(attention),
                heads=_heads(attention),
                head_dim=_inner_dim(attention) // _heads(attention),
                reason=why_dense(attention) or "",
                text_first=blocks.text_first,
                rotary=blocks.rotary,
                rotary_inside=blocks.rotary_inside,
                references=blocks.references,
                tokens_first=blocks.tokens_first,
                text_asks=blocks.text_asks,
                by_sample=blocks.by_sample,
                selects_first=key is not None,
                key_width=_inner_dim(attention) if key is None else key.out_features,
            )
        )
    return plan


def _averages(config: Options) -> bool:
    rules = [config] if isinstance(config, PatchConfig) else config.layers
    return any(rule.method == "mean" for rule in rules)


def _query_dim(attention: Any) -> int:
    return int(getattr(attention, "query_dim", None) or _query(attention).in_features)


def _heads(attention: Any) -> int:
    return int(getattr(attention, "heads", None) or attention.num_heads)


def _inner_dim(attention: Any) -> int:
    """Channels of all heads of queries."""
    return int(getattr(attention, "inner_dim", None) or _query(attention).out_features)


def _query(attention: Any) -> Any:
    return attention.to_q if hasattr(attention, "to_q") else attention.to_query


def install(model: nn.Module, plan: JointPlan) -> None:
    """Puts a plan to work on the transformer it was made for."""
    adapter = find_adapter(model)
    assert adapter is not None
    watch(model, model, plan)
    layers = {layer.name: layer for layer in plan.layers}
    for name, norm, attention, _ in attentions(model, adapter):
        layer = layers[name]
        assert isinstance(layer, JointLayer)
        if layer.rule is None:
            continue
        JointKeys(attention, plan, layer).install()
        watch_block(model, layer)
        if layer.rule.anchors:
            norm.register_forward_pre_hook(NormReader(layer), with_kwargs=True)


def watch(
    target: nn.Module, model: nn.Module, plan: JointPlan, called: nn.Module | None = None
) -> None:
    """Reads the grid when a module is called.

    Args:
        target: the module, or a ``torch.compile`` wrapper of it.
        model: the transformer.
        plan: of the transformer.
        called: whose forward that is, where it is not the transformer's.
    """
    adapter = find_adapter(model)
    assert adapter is not None
    names = tuple(inspect.signature(type(called or model).forward).parameters)[1:]
    target.register_forward_pre_hook(ShapeReader(plan, adapter, names), with_kwargs=True)


def attentions(model: Any, adapter: Adapter) -> Iterator[tuple[str, nn.Module, Any, Blocks]]:
    """Name, the norm before it, the module, and where it is from."""
    for blocks in adapter.blocks:
        for index, block in enumerate(_part(model, blocks.path, "path")):
            attention = _attribute(block, blocks.attention)
            if attention is not None:
                name = f"{blocks.path}.{index}.{blocks.attention}"
                norm = _part(block, blocks.norm, "norm") if blocks.norm else block
                yield name, norm, attention, blocks


def _attribute(owner: Any, path: str) -> Any:
    """Dotted, or None where it is not there."""
    return reduce(lambda part, name: getattr(part, name, None), path.split("."), owner)


def _part(owner: Any, path: str, field: str) -> Any:
    try:
        return attrgetter(path)(owner)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"the adapter's {field}={path!r} is not in {type(owner).__name__}, which has "
            + ", ".join(name for name, _ in owner.named_children())
        ) from error
