"""The suite with an older diffusers than it is written for: what needs a later class is skipped.

``make test-oldest`` runs it with the lowest versions that pyproject.toml declares. With the pinned
release nothing here does anything, so that a misspelt name fails.
"""

from __future__ import annotations

import ast
import importlib
import sys
import types
from importlib import metadata
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def release(package: str) -> tuple[int, ...]:
    """Major and minor version of what is installed."""
    return tuple(int(part) for part in metadata.version(package).split(".")[:2])


RELEASE = release("diffusers")
WRITTEN_FOR = (0, 42)
OLDER = RELEASE < WRITTEN_FOR

# Dynamo of 2.6 does not take hooks that hold objects of ours; 2.11 was tried on a card.
needs_compiler = pytest.mark.skipif(
    release("torch") < (2, 11),
    reason="graphs are tested with torch 2.11 and newer",
)


def needs_pinned(reason: str) -> pytest.MarkDecorator:
    """Skips a test where diffusers is older than the pinned release.

    Args:
        reason: what it does not do yet.
    """
    return pytest.mark.skipif(OLDER, reason=f"diffusers {RELEASE}: {reason}")


def later(what: str) -> None:
    """Skips the test that asks for something that came with the pinned release."""
    if OLDER:
        pytest.skip(f"diffusers {RELEASE} has no {what}")


def fill_in_names() -> None:
    """Puts a class that skips whoever makes one in the place of each name that tests import."""
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffusers"):
                module = _module(node.module)
                for name in (alias.name for alias in node.names):
                    if not _has(module, name):
                        setattr(module, name, _absent(name))


def misses_a_class(error: pytest.ExceptionInfo[BaseException]) -> bool:
    """Whether a test asked diffusers for a class by a name that it does not have."""
    frames = [entry.path for entry in error.traceback]
    asked = len(frames) > 1 and TESTS in Path(frames[-2]).parents
    return asked and "module diffusers has no attribute" in str(error.value)


def _module(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return sys.modules.setdefault(name, types.ModuleType(name))


def _has(module: types.ModuleType, name: str) -> bool:
    if hasattr(module, name):
        return True
    try:
        importlib.import_module(f"{module.__name__}.{name}")
    except ModuleNotFoundError:
        return False
    return True


def _absent(name: str) -> type:
    class Absent(type):
        def __call__(cls, *_: object, **__: object) -> None:
            pytest.skip(f"diffusers {RELEASE} has no {name}", allow_module_level=True)

        def __getattr__(cls, attribute: str) -> None:
            if attribute.startswith("__"):
                raise AttributeError(attribute)
            cls()

    return Absent(name, (), {})
