"""The trained model that ships with the package and needs no download."""

from __future__ import annotations

from pathlib import Path

NAME = "built-in"
FOLDER = Path(__file__).parent / "emoji"  # a diffusers pipeline
STEPS = 20
GUIDANCE = 3.0  # that its pictures were judged at; more burns the colours


def source_of(model: str) -> str:
    """The folder of the built-in model for its name; any other folder, file or Hub id as it is."""
    return str(FOLDER) if model == NAME else model
