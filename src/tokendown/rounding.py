"""Numbers for JSON: as many digits as they are good for."""

from __future__ import annotations


def significant(value: float, digits: int) -> float:
    """Rounded to so many significant digits."""
    return float(f"{value:.{digits}g}")
