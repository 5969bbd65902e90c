"""Running an installed attention processor with our hands on its attention call.

Rotary positions and joint sequences are put together inside a processor, between its projections
and its attention. The processor's own code object runs, but in a copy of its module's globals in
which the attention function is ours, and rotary functions are: those of the module, those that the
code imports from beside it, and those written inside it. Nothing of the host is copied, nothing of
it is changed, and what it computes besides follows every release of diffusers. The copy has to be a
module under its own name in ``sys.modules``: that is where ``torch.compile`` looks globals up.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dis import Instruction, get_instructions
from functools import cache
from importlib import import_module
from inspect import CO_VARARGS, CO_VARKEYWORDS
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch.nn import functional

from .._errors import UnsupportedModelError
from . import dispatch, rotary

_PREFIX = "tokendown._rebound."
# What a second attention call of a processor does with the kept keys of the first.
_MIXED = {
    "SD3IPAdapterJointAttnProcessor2_0": "joins kept keys with those of a picture, which would "
    "weigh too much beside them",
}


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
    if kind.__name__ in _MIXED:
        raise UnsupportedModelError(
            f"the attention processor {kind.__name__} {_MIXED[kind.__name__]}, so tokendown cannot "
            "work with it; remove_patch(model), or set another processor"
        )
    assert isinstance(call, FunctionType)
    module = _module(call.__globals__, _names(call.__code__))
    for imported, names in _imports(call):
        _make_way(imported)
        _module(vars(imported), names)
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
    known = {name: call.__globals__.get(name) for name in call.__code__.co_names}
    for module, names in _imports(call):
        known |= {name: getattr(module, name, None) for name in names}
    return bool(rotary.rotations(known)) or any(_nested(call.__code__))


_copies: dict[str, dict[str, Any]] = {}  # name of a copy, to the globals that it is of


def _module(original: dict[str, Any], names: Iterable[str]) -> ModuleType:
    """Globals that code uses, as they are now, with our attention and rotations.

    One module for each dictionary of globals: two files, or two notebooks, may have one name.
    Only what is used is copied, so that nothing else of a notebook is kept alive.
    """
    module = _copy_of(original)
    used = {name: original[name] for name in names if name in original}
    for alias, value in used.items():
        if value is functional:
            used[alias] = _functional()
    if "dispatch_attention_fn" in used:
        used["dispatch_attention_fn"] = dispatch.dispatched
    module.__dict__.update({**used, **rotary.rotations(used)})
    return module


def _make_way(imported: ModuleType) -> None:
    """Its copy is found by its name, also where the module was loaded anew."""
    name = _PREFIX + imported.__name__
    if _copies.get(name) is not vars(imported):
        sys.modules.pop(name, None)
        _copies[name] = vars(imported)


def _copy_of(original: dict[str, Any]) -> ModuleType:
    wanted = name = _PREFIX + str(original.get("__name__"))
    while _copies.setdefault(name, original) is not original:
        name = f"{wanted}_{len(_copies)}"
    if name not in sys.modules:
        module = sys.modules[name] = ModuleType(name)
        # relative imports find copies too: rebound() makes one of each module that they name
        module.__package__ = _PREFIX + (original.get("__package__") or "")
        vars(module)["__builtins__"] = builtins  # the compiler looks there
    return sys.modules[name]


def _names(code: CodeType) -> set[str]:
    """All that code looks up, and the functions written inside it."""
    inner = (each for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _imports(call: FunctionType) -> Iterator[tuple[ModuleType, tuple[str, ...]]]:
    """Modules that a function imports from beside its own, each with the names that it takes."""
    package = call.__globals__.get("__package__")
    for level, path, names in _relative(call.__code__):
        try:
            module = import_module("." * level + path, package)
        except ImportError:
            continue  # it may know what to do without
        for name in names:
            if not hasattr(module, name):
                with suppress(ImportError):
                    import_module(f"{module.__name__}.{name}")
        yield module, names


@cache  # a model has many blocks of one code
def _relative(code: CodeType) -> tuple[tuple[int, str, tuple[str, ...]], ...]:
    """Level, path and names of the relative imports in code and in functions inside it."""
    steps: list[Instruction] = list(get_instructions(code))
    found = [
        (level.argval, step.argval, names.argval or ())
        for level, names, step in zip(steps, steps[1:], steps[2:], strict=False)
        if step.opname == "IMPORT_NAME" and level.argval
    ]
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            found += _relative(inner)
    return tuple(found)


def _nested(code: CodeType) -> Iterator[CodeType]:
    """Rotary functions that are written inside a function, see nothing of it, and are called
    with a key and its tables.
    """
    for inner in code.co_consts:
        if isinstance(inner, CodeType) and rotary.rotates(inner.co_name) and not inner.co_freevars:
            plain = not inner.co_kwonlyargcount and not inner.co_flags & (
                CO_VARARGS | CO_VARKEYWORDS
            )
            if plain and rotary.takes_tables(inner.co_varnames[: inner.co_argcount]):
                yield inner


@cache  # blocks whose processors are of one code share what is compiled
def _lifted(code: CodeType, module: ModuleType) -> CodeType:
    """The same code, but nested rotary functions are called through stand-ins in its module."""
    names, through = module.__dict__, {}
    for inner in _nested(code):
        name = f"{inner.co_name} {id(inner)}"  # the cache keeps it
        names[name] = rotary.stand_in(FunctionType(inner, names))
        through[inner] = _through.__code__.replace(co_names=(name,))
    return code.replace(co_consts=tuple(through.get(x, x) for x in code.co_consts))


def _through(*args: Any, **kwargs: Any) -> Any:
    return _stand_in(*args, **kwargs)  # type: ignore[name-defined] # noqa: F821 - see _lifted


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
