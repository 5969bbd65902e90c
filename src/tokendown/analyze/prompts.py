"""Prompts from the command line or a file; where there are none, things every model knows."""

from __future__ import annotations

from pathlib import Path

from .._errors import ConfigError, LoadError

PROMPTS = (
    "a red heart on a white background",
    "a slice of pizza on a blue background",
    "a cat on a green background",
    "a hamburger on a yellow background",
    "a rocket on a black background",
    "an apple on a pink background",
    "a dog on an orange background",
    "a sailboat on a gray background",
)


def read_prompts(given: list[str] | None, file: Path | None) -> list[str]:
    """The prompts of the command line, then those of a file.

    Args:
        given: prompts.
        file: one prompt a line; empty lines are skipped.

    Raises:
        LoadError: the file cannot be read.
        ConfigError: there is a file, but no prompt.
    """
    found = list(given or ())
    if file is None:
        return found
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"{file}: not a readable text file") from error
    found += [line.strip() for line in lines if line.strip()]
    if not found:
        raise ConfigError(f"{file}: no prompts, expected one a line")
    return found


def pick_prompts(given: list[str] | None, file: Path | None, count: int | None) -> list[str]:
    """What the user gave, else the first ``count`` of :data:`PROMPTS`.

    Args:
        given: prompts.
        file: with more of them, see :func:`read_prompts`.
        count: how many at most; None means all that were given.

    Raises:
        As read_prompts.
        ConfigError: there are fewer than ``count``.
    """
    found = read_prompts(given, file) or list(PROMPTS)
    if count is not None and len(found) < count:
        raise ConfigError(f"expected at least {count} prompts, got {len(found)}")
    return found[:count]
