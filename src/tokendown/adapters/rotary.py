"""Rotary positions of kept keys, where the function that rotates can be replaced.

Such a function is given a query or a key, and the table of all positions. A key that is shorter
than its table has been selected: it gets the kept rows of the table.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from ..sequence import Sequence
from .dispatch import current


def rotations(names: dict[str, Any]) -> dict[str, Callable[..., Tensor]]:
    """Stand-ins for the rotary functions among the globals of a module, by name."""
    return {
        name: stand_in(function)
        for name, function in names.items()
        if rotates(name) and callable(function) and takes_tables(_required(function))
    }


def _required(function: Callable[..., Any]) -> tuple[str, ...]:
    """The parameters that have no default."""
    found = signature(function).parameters.values()
    return tuple(each.name for each in found if each.default is each.empty)


def takes_tables(parameters: Many[str]) -> bool:
    """Whether a function is given a query or a key and its table, or two tables one by one."""
    return len(parameters) == 2 or (
        len(parameters) == 3 and "cos" in parameters[1] and "sin" in parameters[2]
    )


@cache  # the compiler knows a function by its identity
def stand_in(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """For a function that :func:`takes_tables`."""
    if len(_required(function)) == 2:
        return _for_kept_keys(function)
    rotate = _for_kept_keys(lambda x, tables: function(x, *tables))
    _, cos, sin = _required(function)

    def one_by_one(x: Tensor, *tables: Any, **named: Any) -> Tensor:
        return rotate(x, (*tables, *(named[name] for name in (cos, sin) if name in named)))

    return one_by_one


def rotates(name: str) -> bool:
    """Whether a function is one of those by its name: ``apply_split_rotary_emb``, for example."""
    name = name.lstrip("_")
    # Allegro's takes tables by axis and looks positions up in them
    return name.startswith("apply_") and "rotary_emb" in name and not name.endswith("_allegro")


def _for_kept_keys(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def rotate(x: Tensor, table: Any, *args: Any, **kwargs: Any) -> Tensor:
        call = current.call
        if call is None:
            return function(x, table, *args, **kwargs)
        length = _length(table, call.sequence)
        # tokens are before or behind heads; not "in", for the compiler has symbolic sizes
        if any(size == length for size in x.shape[1:-1]):
            return function(x, table, *args, **kwargs)
        rows = _kept_rows(call.sequence, table)
        if rows is not None:
            return function(x, rows, *args, **kwargs)
        # Samples keep different anchors, and this kind of table is one for all of them.
        samples = call.sequence.samples()
        parts = zip(x.split(1), samples, strict=True)
        return torch.cat([function(a, _kept_rows(b, table), *args, **kwargs) for a, b in parts])

    return rotate


def _length(table: Any, sequence: Sequence) -> int:
    """Positions of a table, or of each of several."""
    while isinstance(table, tuple | list):
        table = table[0]
    return int(table.shape[_tokens(table, sequence)])


def _tokens(table: Tensor, sequence: Sequence) -> int:
    """The dimension of positions: [tokens, d], [batch, tokens, d], [batch, tokens, 1, d], or
    [tokens, heads, d] (Mochi).
    """
    if table.ndim == 3 and not _counts(table.shape[1], sequence):
        return 0 if _counts(table.shape[0], sequence) else 1
    return table.ndim - (3 if table.ndim == 4 and table.shape[2] == 1 else 2)


def _counts(size: int, sequence: Sequence) -> bool:
    """Whether so many are all tokens, or those of the images."""
    return size == sequence.tokens or size == sequence.image_tokens


def _kept_rows(sequence: Sequence, table: Any) -> Any:
    """The rows of kept tokens, or None where they differ among samples and a table cannot."""
    part = sequence if _length(table, sequence) == sequence.tokens else sequence.image_only()
    if isinstance(table, tuple | list):
        rows = [_kept_rows(part, one) for one in table]
        return None if rows[0] is None else tuple(rows)
    tokens = _tokens(table, sequence)
    if tokens > 0:
        return part.take(table, tokens)
    if table.ndim == 3:
        return part.take(table[None], 1)  # [batch, kept, heads, d]
    if part.anchors is not None and len(part.anchors) > 1:
        return None
    return part.take(table[None], 1)[0]
