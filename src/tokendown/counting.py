"""FLOPs of a denoiser call as torch counts them, where no formula tells what a method does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def call(denoiser: Any, inputs: dict[str, Any]) -> None:
    """The sample by position, since tomesd looks for it there; the rest by name."""
    (_, sample), *rest = inputs.items()
    denoiser(sample, **dict(rest))


def counted_flops(
    model: Any,
    inputs: dict[str, Any],
    method: Callable[[Any], AbstractContextManager[Any]] = nullcontext,
) -> int | None:
    """Of one call.

    Args:
        model: the denoiser, with weights or without.
        inputs: of the call, the sample first.
        method: puts something to work on the model for as long as a block runs.

    Returns:
        None where an operation cannot run without weights.
    """
    from torch.utils.flop_counter import FlopCounterMode  # slow to import

    try:
        with method(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
            call(model, inputs)
    except (NotImplementedError, RuntimeError):  # an operation that the meta device lacks
        return None
    return int(counter.get_total_flops())
