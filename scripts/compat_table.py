"""Writes docs/compatibility.md from the markers of tests/compat, after running those tests.

A test says what it is about with ``@pytest.mark.compat("feature", note="combination")``. A known
limit is a strict ``xfail`` with a reason, so that the table cannot keep a limit that is gone.
``--check`` compares the committed table with the markers and runs nothing.
"""

from __future__ import annotations

import ast
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests" / "compat"
TABLE = ROOT / "docs" / "compatibility.md"
PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate")

HEAD = """# Compatibility

Written by `python scripts/compat_table.py` from the tests in `tests/compat`; do not edit by hand.
Each row is one test, with real classes of the libraries at tiny size on a CPU. Most compare the
patched result with dense attention under a mask, by the processor that is installed, show that
the patch changes the output, and that removing it gives back the very same bits.
Offloading and compiling are tested without an accelerator: the hooks and the tracing are real, the
copies between devices and the generated kernels are not.
Quantised layers of torchao (0.18: int8 weights, int8 activations) and bitsandbytes (0.50: LLM.int8,
NF4) pass the checks of GGUF in `tests/test_quantisers.py`, on FLUX, Wan and a U-Net; those are
skipped where these packages are not installed, so they have no row.
"""


@dataclass(frozen=True)
class Row:
    """One test.

    Attributes:
        feature: of diffusers or of a library around it.
        combination: what was tested.
        limit: why it does not work, or empty.
        file: name of the test's file.
    """

    feature: str
    combination: str
    limit: str
    file: str

    def __str__(self) -> str:
        result = f"does not work: {self.limit}" if self.limit else "works"
        return f"| {self.feature} | {self.combination} | {result} | `{self.file}` |"


def rows() -> list[Row]:
    """All marked tests, read from the source without importing it."""
    return [row for path in sorted(TESTS.glob("test_*.py")) for row in _rows_of(path)]


def _rows_of(path: Path) -> Iterator[Row]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        marks = {name: call for call in node.decorator_list if (name := _mark(call))}
        if "compat" not in marks:
            continue
        values = [ast.literal_eval(value) for value in marks["compat"].args]
        limit = _keyword(marks["xfail"], "reason") if "xfail" in marks else ""
        yield Row(values[0], _keyword(marks["compat"], "note"), limit, path.name)


def _mark(node: ast.expr) -> str:
    """The name of ``pytest.mark.<name>(...)``, or nothing."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr if ast.unparse(node.func).startswith("pytest.mark.") else ""
    return ""


def _keyword(call: ast.expr, name: str) -> str:
    assert isinstance(call, ast.Call)
    found = [item.value for item in call.keywords if item.arg == name]
    return str(ast.literal_eval(found[0])) if found else ""


def table() -> str:
    """The part of the page that the markers decide."""
    head = ["| feature | tested combination | result | test |", "|---|---|---|---|"]
    return "\n".join([*head, *map(str, rows())]) + "\n"


class _Skips:
    """A pytest plugin: a skipped test is no evidence."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report) -> None:  # type: ignore[no-untyped-def]
        if report.skipped and not hasattr(report, "wasxfail"):
            self.names.append(report.nodeid)


def main() -> None:
    """Runs the tests and writes the page, or with ``--check`` compares the two."""
    if sys.argv[1:] == ["--check"]:
        if table() not in TABLE.read_text(encoding="utf-8"):
            raise SystemExit(f"{TABLE.name} is out of step; run python scripts/compat_table.py")
        return
    import pytest

    skips = _Skips()
    if pytest.main([str(TESTS), "-q", f"--ignore={TESTS}/test_table.py"], plugins=[skips]):
        raise SystemExit("a compatibility test fails; the table was not written")
    if skips.names:
        raise SystemExit(f"skipped, so the table was not written: {', '.join(skips.names)}")
    tested = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    line = f"Tested with Python {platform.python_version()}, {tested}.\n"
    TABLE.write_text(f"{HEAD}\n{line}\n{table()}", encoding="utf-8")


if __name__ == "__main__":
    main()
