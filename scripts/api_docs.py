"""Writes docs/api.md from the docstrings of everything that ``import tokendown`` offers.

python scripts/api_docs.py
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tokendown

TARGET = Path(__file__).resolve().parent.parent / "docs" / "api.md"
HEAD = "# API\n\nMade from the docstrings by `python scripts/api_docs.py`.\n"
WIDTH = 100


class _Plain:
    """An annotation as it stands in the source, without the quotes of a string."""

    def __init__(self, text: Any) -> None:
        self.text = text

    def __repr__(self) -> str:
        return str(self.text)


def render() -> str:
    """The page, one section a public name."""
    members = [(name, getattr(tokendown, name)) for name in tokendown.__all__]
    functions = [_section(name, item) for name, item in members if inspect.isfunction(item)]
    classes = [
        _section(name, item)
        for name, item in members
        if inspect.isclass(item) and not issubclass(item, Exception)
    ]
    errors = inspect.cleandoc(inspect.getdoc(tokendown._errors) or "")
    return "\n".join([HEAD, *functions, *classes, "## Errors\n", "```text", errors, "```", ""])


def _section(name: str, item: Any) -> str:
    document = inspect.getdoc(item) or ""
    made_elsewhere = inspect.isclass(item) and "\nArgs:" not in document
    title = f"class {name}" if made_elsewhere else _signature(name, item)
    blocks = [f"## {name}\n", _entry(title, document)]
    if inspect.isclass(item):
        blocks += _properties(item)
        blocks += [
            _entry(_signature(f"{name}.{method}", function), inspect.getdoc(function) or "")
            for method, function in _methods(item)
        ]
    return "\n".join(blocks)


def _entry(title: str, document: str) -> str:
    return f"```python\n{title}\n```\n\n```text\n{document}\n```\n"


def _properties(kind: type) -> list[str]:
    found = [
        f"- `{name}`: {(inspect.getdoc(item) or '').splitlines()[0]}"
        for name, item in vars(kind).items()
        if isinstance(item, property) and not name.startswith("_") and inspect.getdoc(item)
    ]
    return [*found, ""] if found else []


def _methods(kind: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Public ones, without ``self``."""
    for name, item in vars(kind).items():
        if not name.startswith("_") and isinstance(item, (classmethod, staticmethod)):
            yield name, getattr(kind, name)
        elif not name.startswith("_") and inspect.isfunction(item):
            yield name, item


def _signature(name: str, item: Callable[..., Any]) -> str:
    """In one line, or with one parameter a line."""
    signature = inspect.signature(item)
    parameters = [
        each.replace(annotation=_Plain(each.annotation))
        if each.annotation is not each.empty
        else each
        for each in signature.parameters.values()
        if each.name != "self"
    ]
    returns = signature.return_annotation
    told = returns not in (signature.empty, "None") and not inspect.isclass(item)
    line = str(signature.replace(parameters=parameters, return_annotation=signature.empty))
    end = f" -> {returns}" if told else ""
    if len(name) + len(line) + len(end) <= WIDTH:
        return name + line + end
    lines = "".join(f"    {part},\n" for part in _split(line[1:-1]))
    return f"{name}(\n{lines}){end}"


def _split(text: str) -> Iterator[str]:
    """At the commas that are in no brackets."""
    depth, start = 0, 0
    for index, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            yield text[start:index]
            start = index + 2
    yield text[start:]


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
