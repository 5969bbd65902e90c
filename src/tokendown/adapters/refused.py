"""Models of diffusers that are left out, each with its reason."""

from __future__ import annotations

REFUSED: dict[str, str] = {}


def refusal(kind: str) -> str | None:
    """Why a class of models is left out, or None where it is not known at all."""
    return REFUSED.get(kind)
