"""Writes docs/api.md from the docstrings of everything that ``import tokendown`` offers.

python scripts/api_docs.py
"""

from __future__ import annotations

import inspect
from pathlib import Path

import tokendown

TARGET = Path(__file__).resolve().parent.parent / "docs" / "api.md"
HEAD = "# API\n\nMade from the docstrings by `python scripts/api_docs.py`.\n"


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


def _section(name: str, item: type | object) -> str:
    lines = [f"## {name}\n", "```python", f"{name}{inspect.signature(item)}", "```\n"]  # type: ignore[arg-type]
    lines += ["```text", inspect.getdoc(item) or "", "```\n"]
    if inspect.isclass(item):
        for method_name, method in vars(item).items():
            if not method_name.startswith("_") and (document := inspect.getdoc(method)):
                first = document.splitlines()[0]
                lines.append(f"- `{method_name}`: {first}")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    TARGET.write_text(render())
