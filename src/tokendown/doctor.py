"""What is installed, what works here, and whether the patch does what it says."""

from __future__ import annotations

import platform
import warnings
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from .models.sources import first_line, pick_device
from .patch import apply_patch, remove_patch

PACKAGES = ("tokendown", "torch", "diffusers", "transformers", "accelerate", "peft", "safetensors",
            "pillow", "typer", "rich", "kernels", "xformers", "flash-attn", "sageattention",
            "triton")  # fmt: skip
_ROWS, _COLUMNS, _FACTOR, _ANCHORS = 12, 20, 2, 3


def installed() -> dict[str, str | None]:
    """Package to version, None where it is missing."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def devices() -> list[str]:
    """One line a device."""
    found = [f"cpu: {platform.machine()}, {torch.get_num_threads()} threads"]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        card = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index}: {card.name}, {card.total_memory / 2**30:.1f} GiB")
    if torch.backends.mps.is_available():
        found.append("mps: Apple GPU")
    return found


def backends() -> dict[str, str]:
    """Backend of diffusers' dispatcher to "works", or why it does not, on a tiny tensor.

    Kernels that diffusers would first download are not tried.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName

    device = pick_device()
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 128, 2, 64), (1, 32, 2, 64), (1, 32, 2, 64))  # [batch, tokens, heads, channels]
    query, key, value = (
        torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes
    )
    return {name.value: _try(name, query, key, value) for name in AttentionBackendName}


def _try(name: Any, query: Tensor, key: Tensor, value: Tensor) -> str:
    from diffusers.models import attention_dispatch as dispatch

    try:
        dispatch._check_attention_backend_requirements(name)
        if name in dispatch._HUB_KERNELS_REGISTRY:
            return "downloads a kernel at first use; not tried"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # flex says that it is slow without compile
            got = dispatch.dispatch_attention_fn(query, key, value, backend=name)
    except Exception as error:  # a third party's kernel can refuse in any way
        return _reason(error)
    q, k, v = (part.float().transpose(1, 2) for part in (query, key, value))
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    error_size = float((got.float() - want).abs().max())
    return "works" if error_size < 0.05 else f"wrong by {error_size:.2g}"


def _reason(error: Exception) -> str:
    """The part of a long message that says what to do, else its first sentence."""
    text = first_line(error)
    if "Please " in text:
        text = text.split("Please ")[1].replace("`", "").removeprefix("install it with ")
    if text.startswith("No viable backend"):
        return "PyTorch has no such kernel for this device"
    return text.split(". ")[0]


def self_check() -> dict[str, bool]:
    """Patches a tiny U-Net with random weights; check to whether it passed.

    The reference is attention to all keys with the dropped ones masked, written by hand here.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        unet = _tiny_unet().eval()
        for block in _blocks(unet):  # sharp attention, so that a wrong key shows
            block.attn1.to_q.weight.mul_(4)
            block.attn1.to_k.weight.mul_(4)
        inputs = {
            "sample": torch.randn(1, 4, _ROWS, _COLUMNS),
            "timestep": torch.tensor([500]),
            "encoder_hidden_states": torch.randn(1, 4, unet.config.cross_attention_dim),
        }
        dense = unet(**inputs).sample
        apply_patch(unet, factor=_FACTOR, anchors=_ANCHORS)
        patched = unet(**inputs).sample
        remove_patch(unet)
        restored = unet(**inputs).sample
        reference = _with_masked_keys(unet, inputs)
    return {
        "the patch changes the output": not torch.allclose(dense, patched, atol=1e-4),
        "it equals attention with the dropped keys masked": torch.allclose(
            patched, reference, atol=1e-4
        ),
        "removing it restores the output bit for bit": torch.equal(dense, restored),
    }


def _tiny_unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=1,
        norm_num_groups=4,
    )


def _blocks(unet: Any) -> list[Any]:
    return [module for module in unet.modules() if hasattr(module, "attn1")]


def _with_masked_keys(unet: Any, inputs: dict[str, Any]) -> Tensor:
    processors = {block: block.attn1.processor for block in _blocks(unet)}
    hooks = []
    for block in processors:
        masked = _MaskedKeys()
        block.attn1.set_processor(masked)
        hooks.append(block.norm1.register_forward_pre_hook(masked.note_lengths))
    try:
        out: Tensor = unet(**inputs).sample
    finally:
        for hook in hooks:
            hook.remove()
        for block, processor in processors.items():
            block.attn1.set_processor(processor)
    return out


class _MaskedKeys:
    """An attention processor: softmax over all keys, log 4 on grid keys, -inf on dropped ones."""

    def note_lengths(self, _: Any, args: tuple[Tensor, ...]) -> None:
        self.lengths = args[0].norm(dim=-1)  # anchors: the longest tokens before the norm

    def _weights(self) -> Tensor:
        """How often each token counts; one that is an anchor does not stand for its cell."""
        lengths = self.lengths[0].tolist()
        anchors = self.lengths[0].topk(_ANCHORS).indices.tolist()
        tokens = torch.arange(_ROWS * _COLUMNS).view(_ROWS, _COLUMNS)
        weights = torch.zeros(_ROWS * _COLUMNS)
        for rows in tokens.split(_FACTOR):
            for cell in rows.split(_FACTOR, dim=1):
                kept, *others = cell.flatten().tolist()
                kept = min(kept, *others, key=lengths.__getitem__) if kept in anchors else kept
                weights[kept] += _FACTOR**2
        weights[anchors] += 1
        return weights

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        bias = torch.zeros(1, hidden_states.shape[1])
        if bias.shape[1] == _ROWS * _COLUMNS:  # the finest layers; coarser ones stay dense
            bias = self._weights().log()[None]
        query, key, value = (
            layer(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        logits = query @ key.transpose(-1, -2) * attn.scale + bias[:, None, None]
        mixed = (logits.softmax(dim=-1) @ value).transpose(1, 2).flatten(-2)
        out: Tensor = attn.to_out[0](mixed)
        return out
