"""Loss and gradients of a step; on a GPU as CUDA graphs, whose launches would outlast the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .config import Batch

Loss = Callable[[Batch, Tensor, Tensor], Tensor]
"""(kind of batch, latents, tokens) -> loss."""

_WARM_UP = 3


class Eager:
    """Gradients by autograd, as it is."""

    def __init__(self, loss: Loss, weights: Sequence[nn.Parameter]) -> None:
        self.loss, self.weights = loss, weights

    def of(self, batch: Batch, x: Tensor, tokens: Tensor) -> Tensor:
        """The loss, detached; its gradients are in the weights afterwards."""
        loss = self.loss(batch, x, tokens)
        loss.backward()
        return loss.detach()


class Graphs(Eager):
    """The same, recorded once for every kind of batch and played back from then on.

    Random numbers go on from one playback to the next: PyTorch sees to that.
    """

    def __init__(self, loss: Loss, weights: Sequence[nn.Parameter]) -> None:
        super().__init__(loss, weights)
        self.known: dict[Batch, Graph] = {}

    def of(self, batch: Batch, x: Tensor, tokens: Tensor) -> Tensor:
        if batch not in self.known:
            self.known[batch] = self._record(batch, x.clone(), tokens.clone())
        graph = self.known[batch]
        graph.x.copy_(x, non_blocking=True)
        graph.tokens.copy_(tokens, non_blocking=True)
        graph.play()
        for weight, gradient in zip(self.weights, graph.gradients, strict=True):
            weight.grad = gradient
        return graph.loss.clone()

    def _record(self, batch: Batch, x: Tensor, tokens: Tensor) -> Graph:
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UP):
                self._forget()
                super().of(batch, x, tokens)
        torch.cuda.current_stream().wait_stream(beside)
        self._forget()  # so that the recording makes gradients of its own instead of adding up
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = super().of(batch, x, tokens)
        return Graph(x, tokens, loss, [w.grad for w in self.weights], graph.replay)

    def _forget(self) -> None:
        for weight in self.weights:
            weight.grad = None


class Graph(NamedTuple):
    """Where a recording reads its input and leaves its output."""

    x: Tensor
    tokens: Tensor
    loss: Tensor
    gradients: list[Tensor | None]
    play: Callable[[], None]
