"""Standing in for a method of one object, and leaving without a trace.

diffusers' own ``HookRegistry`` would be the natural carrier, but it keeps the wrapped forward in
a closure: a deep copy of a hooked model silently runs the original's weights, and pickling fails.
torch's forward pre-hooks are not guarded by ``torch.compile``, so that a patch after the first
compiled call would be ignored. An instance attribute has neither fault.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

from torch import nn


class StandIn:
    """What is put in place of a method: calls ``run``, and shows the signature of the original.

    Some pipelines copy what an object holds and put it back later, object and all
    (``scheduler.__dict__.update``): a stand-in is copied with its owner, and not without.
    """

    def __init__(self, intercept: Intercept) -> None:
        self.intercept = intercept

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.intercept.run(*args, **kwargs)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return self.intercept.original

    def __deepcopy__(self, memo: dict[int, Any]) -> StandIn:
        if id(self.intercept.owner) not in memo:
            return self
        return StandIn(copy.deepcopy(self.intercept, memo))


class Intercept:
    """Takes the place of ``owner.<method>``, on this instance only; subclasses define ``run``.

    Args:
        owner: the object whose method is replaced.
    """

    method = "forward"

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        # What another library had put there; None means the class's own method. Keeping the bound
        # method itself would make pickle look it up again by name and find our stand-in.
        self.earlier: Callable[..., Any] | None = owner.__dict__.get(self.method)
        self.function: Callable[..., Any] = getattr(type(owner), self.method)

    @property
    def original(self) -> Callable[..., Any]:
        """What would run without this object."""
        return partial(self.function, self.owner) if self.earlier is None else self.earlier

    def run(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def stand_in(self) -> Callable[..., Any]:
        return StandIn(self)

    def install(self) -> None:
        setattr(self.owner, self.method, self.stand_in())

    def remove(self) -> None:
        """Takes this object out, also from under what others have wrapped around it since."""
        for holder, attribute in holders(self.owner, self.method):
            if _behind(getattr(holder, attribute, None)) is not self:
                continue
            if holder is self.owner and attribute == self.method and self.earlier is None:
                delattr(holder, attribute)
            else:
                setattr(holder, attribute, self.original)


class ForwardIntercept(Intercept, nn.Module):
    """Takes the place of a module's forward in a way that ``torch.compile`` shares among layers.

    The compiler guards a callable object and a ``functools.partial`` by identity, one graph a
    layer; a bound method of a module it guards by type and attributes. This module is no child of
    the owner: it has no parameters, and ``state_dict`` does not see it.
    """

    def __init__(self, owner: nn.Module) -> None:
        nn.Module.__init__(self)
        Intercept.__init__(self, owner)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the owner must not become a child

    def stand_in(self) -> Callable[..., Any]:
        return self.run

    def install(self) -> None:
        """Under the wrappers of others, which may go before this does; over what is unknown."""
        place = innermost(self.owner)
        if place is None:
            super().install()
        else:
            self.earlier = None
            setattr(*place, self.stand_in())


def innermost(owner: Any) -> tuple[Any, str] | None:
    """Where the class's own forward is held: in place, or under the wrappers of others."""
    for holder, attribute in holders(owner, "forward"):
        value = getattr(holder, attribute, None)
        if getattr(value, "__func__", getattr(value, "func", None)) is type(owner).forward:
            return holder, attribute
    return None


def intercepts(owner: Any) -> list[Intercept]:
    """The tokendown objects that stand in for methods of ``owner``, wrapped or not."""
    held = [_behind(value) for value in owner.__dict__.values()]
    held += [_behind(getattr(holder, name, None)) for holder, name in holders(owner, "forward")]
    return list({id(item): item for item in held if item is not None}.values())


def _behind(value: object) -> Intercept | None:
    """The object that a stand-in calls."""
    target = None
    if isinstance(value, MethodType):
        target = value.__self__
    elif isinstance(value, StandIn):
        target = value.intercept
    return target if isinstance(target, Intercept) else None


def holders(owner: Any, method: str) -> list[tuple[Any, str]]:
    """Where a stand-in can be: in place, or where accelerate and diffusers keep what they wrap."""
    registry = getattr(owner, "_diffusers_hook", None)
    references = [] if registry is None else registry._fn_refs
    return [
        (owner, method),
        (owner, "_old_forward"),
        *((reference, "forward") for reference in references),
        *((reference, "original_forward") for reference in references),
    ]
