"""Running an installed attention processor with our hands on its attention call.

Rotary positions and joint sequences are put together inside a processor, between its projections
and its attention. The processor's own code object runs, but in a copy of its module's globals in
which the attention function is ours, and rotary functions are: those of the module, those that the
code imports from beside it, and those written inside it. Nothing of the host is copied, nothing of
it is changed, and what it computes besides follows every release of diffusers. The copy has to be a
module under its own name in ``sys.modules``: that is where ``torch.compile`` looks globals up.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dis import Instruction, get_instructions
from functools import cache
from importlib import import_module
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch.nn import functional

from .._errors import UnsupportedModelError
from . import dispatch, rotary

_PREFIX = "tokendown._rebound."


def rebound(kind: type) -> Callable[..., Any]:
    """``kind.__call__`` with attention going through :mod:`tokendown.adapters.dispatch`.

    Args:
        kind: class of a processor.

    Raises:
        UnsupportedModelError: it does not call attention in a way that can be reached.
    """
    call = getattr(kind, "__call__", None)  # noqa: B004 - the function itself is wanted
    reached = isinstance(call, FunctionType) and bool(
        {"dispatch_attention_fn", "scaled_dot_product_attention"} & set(call.__code__.co_names)
    )
    if not reached:
        raise UnsupportedModelError(
            f"the attention processor {kind.__name__} calls neither dispatch_attention_fn nor "
            "scaled_dot_product_attention in its __call__, so tokendown cannot work with it; "
            "remove_patch(model), or set one of diffusers' own processors"
        )
    assert isinstance(call, FunctionType)
    module = _module(call.__globals__)
    for imported, _ in _imports(call):
        _module(vars(imported))
    function = FunctionType(
        _lifted(call.__code__, module),
        module.__dict__,
        call.__name__,
        call.__defaults__,
        call.__closure__,
    )
    function.__kwdefaults__ = call.__kwdefaults__
    return function


def rotates_in_reach(kind: type) -> bool:
    """Whether a processor that was rebound rotates kept keys as :mod:`.rotary` says."""
    call: Any = kind.__call__
    known = set(call.__globals__) & set(call.__code__.co_names)
    known.update(*(names for _, names in _imports(call)))
    known.update(code.co_name for code in _nested(call.__code__))
    return any(map(rotary.rotates, known))


def _module(original: dict[str, Any]) -> ModuleType:
    """The globals with our attention and rotations, made once a module."""
    name = _PREFIX + original["__name__"]
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__dict__.update(original)
    module.__name__ = name
    # relative imports find copies too: rebound() makes one of each module that they name
    module.__package__, module.__spec__ = _PREFIX + (original.get("__package__") or ""), None
    if "dispatch_attention_fn" in original:
        module.__dict__["dispatch_attention_fn"] = dispatch.dispatched
    module.__dict__.update(rotary.rotations(original))
    for alias, value in original.items():
        if value is functional:
            module.__dict__[alias] = _functional()
    sys.modules[name] = module
    return module


def _imports(call: FunctionType) -> Iterator[tuple[ModuleType, tuple[str, ...]]]:
    """Modules that a function imports from beside its own, each with the names that it takes."""
    package = call.__globals__.get("__package__")
    steps: list[Instruction] = list(get_instructions(call.__code__))
    for level, names, step in zip(steps, steps[1:], steps[2:], strict=False):
        if step.opname == "IMPORT_NAME" and level.argval:
            yield import_module("." * level.argval + step.argval, package), names.argval


def _nested(code: CodeType) -> Iterator[CodeType]:
    """Rotary functions that are written inside a function and see nothing of it."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType) and rotary.rotates(inner.co_name) and not inner.co_freevars:
            yield inner


@cache  # blocks whose processors are of one code share what is compiled
def _lifted(code: CodeType, module: ModuleType) -> CodeType:
    """The same code, but nested rotary functions are called through stand-ins in its module."""
    names, through = module.__dict__, {}
    for inner in _nested(code):
        name = f"{inner.co_name}, line {inner.co_firstlineno}"
        names[name] = rotary.unpacked(FunctionType(inner, names))
        through[inner] = _through.__code__.replace(co_names=(name,))
    return code.replace(co_consts=tuple(through.get(x, x) for x in code.co_consts))


def _through(*args: Any) -> Any:
    return _stand_in(*args)  # type: ignore[name-defined] # noqa: F821 - _lifted gives the name


def _functional() -> ModuleType:
    """``torch.nn.functional`` with our attention."""
    name = _PREFIX + "functional"
    if name not in sys.modules:
        module = ModuleType(name)
        module.__dict__.update(functional.__dict__)
        module.__name__ = name
        module.__dict__["scaled_dot_product_attention"] = dispatch.scaled_dot_product
        sys.modules[name] = module
    return sys.modules[name]
