"""Muon for the matrices, AdamW for the rest, saved and restored as named tensors.

A run on a CPU has few steps: orthogonal updates make the most of each, above all for what is rare
in a batch, and here every subject is rare.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Optimiser:
    """A convolution is a matrix from patches to channels: Muon gets such a view of it."""

    def __init__(self, named: dict[str, nn.Parameter]) -> None:
        self.matrices = {n: p for n, p in named.items() if _is_matrix(n, p)}
        self.views = [nn.Parameter(_flat(p.detach())) for p in self.matrices.values()]
        self.muon = torch.optim.Muon(
            self.views, weight_decay=0.01, adjust_lr_fn="match_rms_adamw", ns_steps=4
        )
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
