"""Rotary positions of kept keys, where a processor rotates by a function of its module.

Such a function is given a query or a key, and the table of all positions. A key that is shorter
than its table has been selected: it gets the kept rows of the table. Where the function is out of
reach (made or imported inside the processor), kept keys have to be at their own places, between
zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..sequence import Sequence
from .dispatch import current


def rotations(names: dict[str, Any]) -> dict[str, Callable[..., Tensor]]:
    """Stand-ins for the rotary functions among the globals of a module, by name."""
    return {
        name: _for_kept_keys(function)
        for name, function in names.items()
        if _rotates(name) and callable(function)
    }


def in_reach(kind: type) -> bool:
    """Whether processors of a class rotate by a function among the globals of their module."""
    call: Any = kind.__call__
    names = call.__code__.co_names
    return any(_rotates(name) and name in call.__globals__ for name in names)


def _rotates(name: str) -> bool:
    """Whether a function is one of those by its name: ``apply_split_rotary_emb``, for example."""
    return name.startswith("apply_") and "rotary_emb" in name


def _for_kept_keys(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def rotate(x: Tensor, table: Any, *args: Any, **kwargs: Any) -> Tensor:
        call, length = current.call, _length(table)
        # tokens are before or behind heads; not "in", for the compiler has symbolic sizes
        if call is None or any(size == length for size in x.shape[1:-1]):
            return function(x, table, *args, **kwargs)
        rows = _kept_rows(call.sequence, table)
        if rows is not None:
            return function(x, rows, *args, **kwargs)
        # Samples keep different anchors, and this kind of table is one for all of them.
        samples = call.sequence.samples()
        parts = zip(x.split(1), samples, strict=True)
        return torch.cat([function(a, _kept_rows(b, table), *args, **kwargs) for a, b in parts])

    return rotate


def _length(table: Any) -> int:
    """Positions of a table: [tokens, d] or [batch, tokens, d], or a pair of such."""
    one: Tensor = table[0] if isinstance(table, tuple | list) else table
    return one.shape[-2]


def _kept_rows(sequence: Sequence, table: Any) -> Any:
    """The rows of kept tokens, or None where they differ among samples and a table cannot."""
    part = sequence if _length(table) == sequence.tokens else sequence.image_only()
    if isinstance(table, tuple | list):
        rows = [_kept_rows(part, one) for one in table]
        return None if rows[0] is None else tuple(rows)
    if table.ndim > 2:
        return part.take(table, table.ndim - 2)
    if part.anchors is not None and len(part.anchors) > 1:
        return None
    return part.take(table[None], 1)[0]
