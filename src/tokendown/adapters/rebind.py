"""Running an installed attention processor with our hands on its attention call.

Rotary positions and joint sequences are put together inside a processor, between its projections
and its attention. The processor's own code object runs, but in a copy of its module's globals in
which the attention function is ours: nothing of the host is copied, nothing of it is changed, and
what it computes besides follows every release of diffusers. The copy has to be a module under its
own name in ``sys.modules``: that is where ``torch.compile`` looks globals up.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FunctionType, ModuleType
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
    function = FunctionType(
        call.__code__, module.__dict__, call.__name__, call.__defaults__, call.__closure__
    )
    function.__kwdefaults__ = call.__kwdefaults__
    return function


def _module(original: dict[str, Any]) -> ModuleType:
    """The globals with our attention and rotations, made once a module."""
    name = _PREFIX + original["__name__"].replace(".", "_")
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__dict__.update(original)
    module.__name__ = name
    if "dispatch_attention_fn" in original:
        module.__dict__["dispatch_attention_fn"] = dispatch.dispatched
    module.__dict__.update(rotary.rotations(original))
    for alias, value in original.items():
        if value is functional:
            module.__dict__[alias] = _functional()
    sys.modules[name] = module
    return module


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
