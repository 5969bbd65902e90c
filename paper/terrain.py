"""A trained third-party diffusion U-Net in plain torch, with attention that can be replaced.

The network of adaptive-terrain-diffusion 0.4.1 (MIT, a consistency model for 128 x 128 height
maps), read from the ONNX file that ``scripts/fetch_terrain.py`` puts in place. It has 28
self-attention layers: 9 on a 32 x 32 grid (2 heads of 32), 9 on 16 x 16 (3 heads) and 10 on
8 x 8 (4 heads), no positional encoding, GroupNorm before the projections.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokendown.grid import Grid

FILE = (
    Path(__file__).resolve().parent.parent
    / ".cache/terrain/terrain_consistency_unet_difficulty100.onnx"
)
SIGMA_MIN, SIGMA_MAX, SIGMA_DATA, RHO = 0.002, 80.0, 0.5, 7.0


@dataclass(frozen=True)
class Site:
    """One call of one attention layer: what a replacement may look at besides q, k, v.

    Args:
        layer: its number among all attention layers, in order of execution.
        grid: of the tokens.
        block_input: what the block's norm gets, [B, N, C].
        normed_input: what the projections get, [B, N, C].
    """

    layer: int
    grid: Grid
    block_input: Tensor
    normed_input: Tensor


# (site, query, key, value) -> output, all [B, heads, N, head_dim]
Attend = Callable[[Site, Tensor, Tensor, Tensor], Tensor]


def dense(site: Site, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Plain self-attention."""
    return functional.scaled_dot_product_attention(query, key, value)


# Sampling


def load(path: Path = FILE) -> UNet:
    """The trained network, in evaluation mode.

    Raises:
        FileNotFoundError: set-up has not fetched the file.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path.name} is missing; run `make setup`, which fetches it")
    net = UNet()
    net.load_state_dict(_state_from_onnx(path))
    return net.eval().requires_grad_(False)


def sample(
    net: UNet,
    attend: Attend = dense,
    *,
    seed: int = 0,
    batch: int = 1,
    steps: int = 5,
    on_step: Callable[[int], None] = lambda step: None,
) -> Tensor:
    """Multistep consistency sampling; noise and labels depend on ``seed`` only.

    Args:
        net: from :func:`load`.
        attend: used in every attention layer.
        seed: of the noise and of the difficulty labels, uniform in [0, 1).
        batch: images.
        steps: calls of the network, on the Karras schedule from sigma 80 to 0.002.
        on_step: called with the number of each step before it.

    Returns:
        [batch, 1, 128, 128] in [-1, 1]

    Source: Song et al. 2023, arXiv:2303.01469, algorithm 1.
    """
    noise = torch.Generator().manual_seed(seed)
    shape = (batch, 1, 128, 128)
    label = torch.rand(batch, generator=noise)
    net.set_attention(attend)
    image = torch.zeros(shape)
    with torch.inference_mode():
        for step, sigma in enumerate(_sigmas(steps)):
            on_step(step)
            noisy = image + math.sqrt(sigma**2 - SIGMA_MIN**2) * torch.randn(shape, generator=noise)
            image = denoise(net, noisy, torch.full((batch,), sigma), label)
    return image


def denoise(net: UNet, noisy: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
    """The consistency function: noisy [B, 1, 128, 128], sigma [B], label [B] -> clean image."""
    s = sigma.view(-1, 1, 1, 1)
    scale = (s**2 + SIGMA_DATA**2).sqrt()
    raw = net(noisy / scale, 250 * torch.log(sigma + 1e-44), label)
    skip = SIGMA_DATA**2 / ((s - SIGMA_MIN) ** 2 + SIGMA_DATA**2)
    return (skip * noisy + (s - SIGMA_MIN) * SIGMA_DATA / scale * raw).clamp(-1, 1)


def relative_error(output: Tensor, wanted: Tensor) -> float:
    """Mean squared error over the variance of ``wanted``: 0 is equal, 1 to 2 unrelated."""
    return ((output - wanted).square().mean() / wanted.var()).item()


def _sigmas(steps: int) -> list[float]:
    """Karras et al. 2022, equation 5, without the last point (sigma_min, already clean)."""
    high, low = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    return [(high + i / steps * (low - high)) ** RHO for i in range(steps)]


# The network (of guided-diffusion's form)


class UNet(nn.Module):
    """Sizes as in the ONNX file; module names too, so that its state loads."""

    def __init__(self) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(32, 128), nn.SiLU(), nn.Linear(128, 128))
        self.label_emb = nn.Sequential(nn.Linear(1, 128), nn.SiLU(), nn.Linear(128, 128))
        self.input_blocks = nn.ModuleList([_Blocks(nn.Conv2d(1, 32, 3, 1, 1))])
        self.output_blocks = nn.ModuleList()
        widths, attended, depth = (32, 32, 64, 96, 128), (2, 3, 4), 4
        now, skips = 32, [32]
        for level, width in enumerate(widths):
            for _ in range(depth):
                block = [_Residual(now, width)]
                now = width
                block += [_Attention(now)] if level in attended else []
                self.input_blocks.append(_Blocks(*block))
                skips.append(now)
            if level < len(widths) - 1:
                self.input_blocks.append(_Blocks(_Residual(now, now, resize=_halve)))
                skips.append(now)
        self.middle_block = _Blocks(_Residual(now, now), _Attention(now), _Residual(now, now))
        for level, width in reversed(list(enumerate(widths))):
            for i in range(depth + 1):
                block = [_Residual(now + skips.pop(), width)]
                now = width
                block += [_Attention(now)] if level in attended else []
                block += [_Residual(now, now, resize=_double)] if level and i == depth else []
                self.output_blocks.append(_Blocks(*block))
        self.out = nn.Sequential(_norm(now), nn.SiLU(), nn.Conv2d(now, 1, 3, 1, 1))
        for number, layer in enumerate(self._attention_layers()):
            layer.number = number

    def set_attention(self, attend: Attend) -> None:
        """Uses ``attend`` in every attention layer."""
        for layer in self._attention_layers():
            layer.attend = attend

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        """x [B, 1, H, W], time [B], label [B] -> [B, 1, H, W]."""
        angle = time[:, None] * torch.exp(-math.log(10000) * torch.arange(16) / 16)
        embedding = self.time_embed(torch.cat([angle.cos(), angle.sin()], 1))
        embedding = embedding + self.label_emb(label[:, None])
        skips = []
        for block in self.input_blocks:
            x = block(x, embedding)
            skips.append(x)
        x = self.middle_block(x, embedding)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], 1), embedding)
        return self.out(x)

    def _attention_layers(self) -> list[_Attention]:
        blocks = [*self.input_blocks, self.middle_block, *self.output_blocks]
        return [layer for block in blocks for layer in block if isinstance(layer, _Attention)]


class _Blocks(nn.Sequential):
    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, _Residual) else layer(x)
        return x


class _Residual(nn.Module):
    def __init__(self, wide_in: int, wide_out: int, resize: Callable[..., Tensor] | None = None):
        super().__init__()
        self.resize = resize
        self.in_layers = nn.Sequential(
            _norm(wide_in), nn.SiLU(), nn.Conv2d(wide_in, wide_out, 3, 1, 1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(128, 2 * wide_out))
        self.out_layers = nn.Sequential(
            _norm(wide_out), nn.SiLU(), nn.Identity(), nn.Conv2d(wide_out, wide_out, 3, 1, 1)
        )
        same = wide_in == wide_out
        self.skip_connection = nn.Identity() if same else nn.Conv2d(wide_in, wide_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.in_layers[:2](x)
        if self.resize:
            hidden, x = self.resize(hidden), self.resize(x)
        hidden = self.in_layers[2](hidden)
        scale, shift = self.emb_layers(embedding)[..., None, None].chunk(2, 1)
        hidden = self.out_layers[0](hidden) * (1 + scale) + shift
        return self.skip_connection(x) + self.out_layers[1:](hidden)


class _Attention(nn.Module):
    number: int
    attend: Attend = staticmethod(dense)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = channels // 32
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        packed = self.qkv(normed).unflatten(1, (3, self.heads, -1)).flatten(-2)
        query, key, value = packed.transpose(-1, -2).unbind(1)
        site = Site(self.number, Grid(*x.shape[-2:]), _tokens(x), _tokens(normed))
        mixed = self.attend(site, query, key, value)
        return x + self.proj_out(mixed.transpose(-1, -2).reshape(x.shape))


def _tokens(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H * W, C]."""
    return x.flatten(2).transpose(1, 2)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-5)


def _halve(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 2)


def _double(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


# Weights


def _state_from_onnx(path: Path) -> dict[str, Tensor]:
    """Parameters by module name. The exporter kept the names of convolutions and linear layers,
    but turned every GroupNorm's affine into a Mul and an Add with anonymous constants."""
    import onnx

    graph = onnx.load(path).graph
    constants = {t.name: torch.tensor(onnx.numpy_helper.to_array(t)) for t in graph.initializer}
    prefix = "model."
    state = {k.removeprefix(prefix): v for k, v in constants.items() if k.startswith(prefix)}
    for node in graph.node:
        anonymous = [name for name in node.input if name.startswith("onnx::")]
        kind = {"Mul": "weight", "Add": "bias"}.get(node.op_type)
        if kind and anonymous and node.name.startswith("/model/"):
            state[f"{_module_name(node)}.{kind}"] = constants[anonymous[0]].flatten()
    return state


def _module_name(node: Any) -> str:
    """/model/out_blocks.1/out_blocks.1.0/norm/Mul -> out_blocks.1.0.norm."""
    parts: list[str] = []
    for part in node.name.split("/")[2:-1]:
        if parts and part.startswith(parts[-1] + "."):  # a container's child repeats its name
            parts.pop()
        parts.append(part)
    return ".".join(parts)
