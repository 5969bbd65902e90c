"""Muon for the matrices, AdamW for the rest, saved and restored as named tensors.

A run on a CPU has few steps: orthogonal updates make the most of each, above all for what is rare
in a batch, and here every subject is rare.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)  # of torch.optim.Muon


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` with Nesterov momentum, that turns all matrices of one shape at a time.

    One by one, their launches take a GPU longer than the rest of a step.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        lr: float = 1e-3,
        *,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        steps: int = 4,
    ) -> None:
        settings = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "steps": steps}
        super().__init__(matrices, settings)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Every update has the root mean square that AdamW's would have."""
        for group in self.param_groups:
            matrices = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in matrices]
            moments = [self._moment(p) for p in matrices]
            torch._foreach_lerp_(moments, gradients, 1 - group["momentum"])
            wanted = torch._foreach_lerp(gradients, moments, group["momentum"])
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            alike = defaultdict(list)
            for pair in zip(matrices, wanted, strict=True):
                alike[pair[0].shape].append(pair)
            for shape, pairs in alike.items():
                turned = orthogonal(torch.stack([w for _, w in pairs]), group["steps"])
                lr = 0.2 * max(shape) ** 0.5 * group["lr"]
                torch._foreach_add_([m for m, _ in pairs], list(turned.float()), alpha=-lr)

    def _moment(self, matrix: Tensor) -> Tensor:
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        return state["momentum_buffer"]


def orthogonal(x: Tensor, steps: int) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly: [n, rows, columns] in bfloat16."""
    if x.shape[-2] > x.shape[-1]:
        return orthogonal(x.mT, steps).mT
    a, b, c = _NEWTON_SCHULZ
    x = x.bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Optimiser:
    """A convolution is a matrix from patches to channels: Muon gets such a view of it."""

    def __init__(self, named: dict[str, nn.Parameter]) -> None:
        self.matrices = {n: p for n, p in named.items() if _is_matrix(n, p)}
        self.views = [nn.Parameter(_flat(p.detach())) for p in self.matrices.values()]
        self.muon = Muon(self.views)
        rest = [p for n, p in named.items() if n not in self.matrices]
        self.adam = torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=0.0)

    def step(self, lr: float) -> None:
        """One step of both; gradients are gone afterwards."""
        for group in (*self.muon.param_groups, *self.adam.param_groups):
            group["lr"] = lr
        for view, parameter in zip(self.views, self.matrices.values(), strict=True):
            view.grad = None if parameter.grad is None else _flat(parameter.grad)
        self.muon.step()
        self.adam.step()
        self.adam.zero_grad()
        for parameter in self.matrices.values():
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """The moments, under `<optimiser>.<number>.<name>`."""
        return {
            f"{label}.{i}.{k}": torch.as_tensor(v)
            for label, optimiser in (("muon", self.muon), ("adam", self.adam))
            for i, moments in optimiser.state_dict()["state"].items()
            for k, v in moments.items()
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what `tensors` returned."""
        for label, optimiser in (("muon", self.muon), ("adam", self.adam)):
            prefix = f"{label}."
            restore(
                optimiser,
                {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)},
            )


def restore(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Puts back moments saved under `<parameter number>.<name>`."""
    state = optimiser.state_dict()
    for key, value in tensors.items():
        number, name = key.split(".")
        state["state"].setdefault(int(number), {})[name] = value
    optimiser.load_state_dict(state)


def _is_matrix(name: str, parameter: Tensor) -> bool:
    """Not embeddings and not the thin first and last layers."""
    return "embedding." not in name and parameter.dim() > 1 and min(parameter.shape[:2]) >= 16


def _flat(weight: Tensor) -> Tensor:
    """[out, in, kh, kw] as [out, kh kw in] (a view where the memory is channels-last)."""
    weight = weight.permute(0, 2, 3, 1) if weight.dim() == 4 else weight
    return weight.flatten(1)
