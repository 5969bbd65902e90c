"""Imports go strictly downward, and ``import tokendown`` stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tokendown

ROOT = Path(tokendown.__file__).parent

# From the bottom up; a row may import the rows above it and nothing else. A name that ends with a
# slash is a folder: its files may import each other. Put a new file into the row where it belongs.
LAYERS = [
    {"_errors"},
    {"config", "files", "grid", "flops", "scales", "jitter", "rounding"},
    {"tuned"},
    {"multiplicity"},
    {"select"},
    {"attention", "sequence"},
    {"inputs/"},
    {"adapters/"},
    {"patch"},
    {"summary"},
    {"models/", "quality/", "methods", "counting"},
    {"videos", "originals", "captions", "request"},
    {"pictures", "calls"},
    {"sizes"},
    {"sampling"},
    {"generate", "doctor", "analyze/"},
    {"bench/", "sheets", "tune/"},
    {"cli/"},
]
ANYTHING = {"__init__", "__main__"}  # they only gather names

# What a row may import from outside besides torch and the standard library, when it is loaded.
LIGHT = {"torch", "typing_extensions"}
TORCH_FREE = {"_errors", "config", "files", "grid", "flops", "scales", "rounding", "tuned"}


def unit(path: Path) -> str:
    """The name of a file in the table."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if len(parts) == 1 else parts[0] + "/"


def level(name: str) -> int:
    for number, names in enumerate(LAYERS):
        if name in names:
            return number
    raise LookupError(f"{name} is in no layer: add it to LAYERS in tests/test_layers.py")


def imports(path: Path) -> list[tuple[str, bool]]:
    """Absolute module names that a file imports, and whether it does so when it is loaded."""
    package = ("tokendown", *path.relative_to(ROOT).parts[:-1])
    tree = ast.parse(path.read_text(encoding="utf-8"))
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or _only_for_types(node)
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        now = id(node) not in late
        if isinstance(node, ast.Import):
            found += [(alias.name, now) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            found += [(f"{module}.{alias.name}", now) for alias in node.names]
    return found


def _only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def targets(path: Path) -> set[str]:
    """Files and folders of the package that a file imports, as names in the table."""
    found = set()
    for name, _ in imports(path):
        first, *rest = name.split(".")
        if first != "tokendown":
            continue
        if not rest or not ((ROOT / rest[0]).is_dir() or (ROOT / f"{rest[0]}.py").is_file()):
            found.add("__init__")  # a name of the package itself
        else:
            found.add(rest[0] + "/" if (ROOT / rest[0]).is_dir() else rest[0])
    return found


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    name = unit(path)
    if name in ANYTHING:
        return
    for target in targets(path) - {name}:
        assert target != "__init__", f"{name} imports the package, which imports everything"
        assert level(target) < level(name), f"{name} imports {target}: upward or sideways"


def test_the_table_has_no_dead_names():
    names = {unit(path) for path in FILES} - ANYTHING
    assert set().union(*LAYERS) == names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_needs_torch_only(path):
    name = unit(path)
    if name in ANYTHING or level(name) > level("summary"):
        return
    allowed = set(sys.stdlib_module_names) | {"tokendown"}
    allowed |= set() if name in TORCH_FREE else LIGHT
    outside = {module.split(".")[0] for module, now in imports(path) if now}
    assert outside <= allowed


# import tokendown

HEAVY = {
    "diffusers", "transformers", "accelerate", "peft", "safetensors", "huggingface_hub",
    "ray", "gradio", "rich", "typer", "click", "PIL", "tomesd", "matplotlib", "onnx",
}  # fmt: skip


def python(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout


def test_import_loads_no_host_and_no_surface():
    loaded = python("import tokendown, sys; print(*{m.split('.')[0] for m in sys.modules})")
    assert not HEAVY & set(loaded.split())


def test_import_costs_little_beyond_torch():
    """Work is bounded by counting modules; how long they take is for a person to measure."""
    loaded = python(
        "import sys, torch; before = set(sys.modules); import tokendown;"
        "print(*sorted(set(sys.modules) - before))"
    ).split()
    others = [name for name in loaded if not name.startswith("tokendown")]
    assert len(others) < 10, others
