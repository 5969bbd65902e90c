"""``__all__`` is what the package offers: complete, sorted, documented."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import inspect

import pytest

import tokendown


def test_all_is_sorted_and_without_doubles():
    assert tokendown.__all__ == sorted(set(tokendown.__all__))


def test_all_is_complete():
    public = {
        name
        for name, value in vars(tokendown).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    # a function of the same name hides the module `summary`
    assert public == set(tokendown.__all__)


@pytest.mark.parametrize("name", tokendown.__all__)
def test_members_exist_and_are_documented(name):
    member = getattr(tokendown, name)
    assert inspect.getdoc(member)
    assert member.__module__.startswith("tokendown.")


def test_the_names_of_the_design_are_there():
    assert set(tokendown.__all__) >= {
        "ConfigError", "Grid", "GridError", "NothingPatchedError", "Patch", "PatchConfig",
        "TokendownError", "UnsupportedModelError", "apply_patch", "attend", "is_patched",
        "remove_patch", "select_tokens", "summary",
    }  # fmt: skip


def test_star_import():
    names: dict[str, object] = {}
    exec("from tokendown import *", names)
    assert set(tokendown.__all__) <= set(names)


def test_version():
    assert tokendown.__version__ == importlib.metadata.version("tokendown")


def test_types_are_shipped():
    assert (importlib.resources.files("tokendown") / "py.typed").is_file()
