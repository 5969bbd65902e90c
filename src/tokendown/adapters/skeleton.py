"""A denoiser without weights: tells its token grids and its FLOPs at any size, in a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ..grid import Grid
from ..inputs import denoiser_inputs, token_shapes
from .classic import as_tokens
from .families import install, make_plan
from .joint import by_name
from .joint_plan import JointPlan
from .plan import Plan


def on_meta(model: Any) -> nn.Module:
    """The same architecture on the meta device, un-patched, without weights."""
    return build_on_meta(type(model), model.config)


def build_on_meta(kind: Any, config: Any) -> nn.Module:
    """A diffusers model class with a configuration, on the meta device."""
    with torch.device("meta"):
        skeleton: Any = kind.from_config(config)
        for parent in list(skeleton.modules()):
            for name, module in list(parent.named_children()):
                stand_in = _STAND_INS.get(type(module).__name__)
                if stand_in is not None:
                    setattr(parent, name, stand_in(module))
    if type(skeleton).__name__ in _READ_AT_THE_END:
        skeleton.unpatchify = lambda tokens, *_: tokens
    # Some position tables are made by numpy and land on the CPU. Without gradients, because torch's
    # counter fails on a part of a parameter (Bria FIBO 2) where gradients are off but asked for.
    frozen: nn.Module = skeleton.to("meta").eval().requires_grad_(False)
    return frozen


class _OnCpu(nn.Module):
    """Runs a module with zeros on the CPU: it needs values or autocast, which meta does not have.

    Args:
        module: given tensors by position, returns one or several of them.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.hidden = (module.to_empty(device="cpu"),)  # as a child it would be moved

    def forward(self, *args: Tensor) -> Any:
        zeros = (torch.zeros((), dtype=x.dtype, device="cpu").expand(x.shape) for x in args)
        found = self.hidden[0](*zeros)
        if isinstance(found, Tensor):
            return found.to("meta")
        return tuple(part.to("meta") for part in found)


def _without_autocast(rope: Any) -> nn.Module:
    """Mochi's table, in the dtype of its positions: autocast does not know meta."""

    def create(frequencies: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        angles = torch.einsum("nd,dhf->nhf", places, frequencies)
        return angles.cos(), angles.sin()

    rope._create_rope = create
    return rope  # type: ignore[no-any-return]


class _AnyExperts(nn.Module):
    """A mixture of experts in which every token has equally many: which ones costs the same.

    Args:
        module: chooses them by value, which meta does not have.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.mixture = module

    def forward(self, x: Tensor) -> Tensor:
        mixture: Any = self.mixture
        nn.functional.linear(x, mixture.gate.weight)
        for _ in range(mixture.num_activated_experts):
            mixture.experts[0](x)
        return mixture.shared_experts(x)  # type: ignore[no-any-return]


class _EqualExperts(nn.Module):
    """Experts that are given equally many tokens each.

    Args:
        module: is told how many in a tensor, and reads that.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.experts = module

    def forward(self, x: Tensor, tokens_per_expert: Tensor) -> Tensor:
        experts: Any = self.experts
        parts = x.unflatten(0, (experts.num_experts, -1))
        gate, up = (parts @ experts.gate_up_proj).chunk(2, -1)
        return (gate * up @ experts.down_proj).flatten(0, 1)  # type: ignore[no-any-return]


# By the class that they stand for.
_STAND_INS: dict[str, Callable[[nn.Module], nn.Module]] = {
    # tables of positions
    "OmniGenSuScaledRotaryEmbedding": _OnCpu,
    "ErnieImageEmbedND3": _OnCpu,
    "Ideogram4MRoPE": _OnCpu,
    "MochiRoPE": _without_autocast,
    # mixtures of experts: HiDream's and Nucleus'
    "MOEFeedForwardSwiGLU": _AnyExperts,
    "SwiGLUExperts": _EqualExperts,
}
# Models whose last step, which computes nothing, reads sizes from a tensor.
_READ_AT_THE_END = ("HiDreamImageTransformer2DModel",)


@dataclass(frozen=True)
class Seen:
    """What one self-attention layer is given.

    Attributes:
        grid: (height, width) of its tokens, of a frame.
        batch: images times frames, or images where attention runs over all frames.
        tokens: of the whole sequence, exact ones included.
    """

    grid: Grid
    batch: int
    tokens: int


@dataclass(frozen=True)
class Cost:
    """One dense call of a denoiser.

    Attributes:
        flops: of the whole call.
        layers: each self-attention layer, by name.
        plan: with the token grids of this call.
    """

    flops: int
    layers: dict[str, Seen]
    plan: Plan


def measure(model: Any, height: int, width: int, batch: int, frames: int | None = None) -> Cost:
    """Runs the skeleton of a denoiser once.

    Args:
        model: a supported denoiser; only its class and config are used.
        height: of the latent.
        width: of the latent.
        batch: of the call.
        frames: of the latent of a video model; None means a usual number.

    Raises:
        UnsupportedModelError: no example inputs are known for this model.
    """
    from torch.utils.flop_counter import FlopCounterMode  # slow to import, and rarely needed

    skeleton = on_meta(model)
    inputs = denoiser_inputs(skeleton, height, width, batch=batch, device="meta", frames=frames)
    plan = make_plan(skeleton, None)
    if isinstance(plan, JointPlan):
        plan.set_shapes(token_shapes(skeleton, height, width) or ())
    install(skeleton, plan)
    sizes: dict[str, tuple[int, int]] = {}
    for layer in plan.layers:
        note = partial(_note_size, sizes, layer.name)
        skeleton.get_submodule(layer.name).register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        skeleton(**inputs)
    layers = {layer.name: Seen(layer.grid, *sizes[layer.name]) for layer in plan.layers}
    return Cost(counter.get_total_flops(), layers, plan)


def _note_size(
    sizes: dict[str, tuple[int, int]],
    name: str,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Batch, and tokens of the sequence: those of a text of its own come on top.

    Lumina 2 gives the sequence itself in the place of a text.
    """
    given = by_name(signature(type(module).forward).parameters, (module, *args), kwargs)
    hidden, text = given["hidden_states"], given.get("encoder_hidden_states")
    others = 0 if text is None or text is hidden else text.shape[1]
    sizes[name] = (hidden.shape[0], as_tokens(hidden).shape[1] + others)
