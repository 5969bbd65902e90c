"""Who comes when in a round: an order that changes, so that nobody always follows the same one."""

from __future__ import annotations

from collections.abc import Sequence


def williams(names: Sequence[str], number: int) -> list[str]:
    """The order of a round: a row of a Williams square.

    Over as many rounds as names everyone has every place once, and if their number is even also
    every other one just before it once, so that what a method leaves behind (heat, caches, memory)
    harms no single one (Williams 1949, designs balanced for the estimation of residual effects).

    Args:
        names: in the order of round 0.
        number: of the round, >= 0.
    """
    count = len(names)
    row = [(place + 1) // 2 * (-1) ** (place + 1) % count for place in range(count)]  # 0 1 -1 2 -2
    who = dict(zip(row, names, strict=True))
    return [who[(place + number) % count] for place in row]
