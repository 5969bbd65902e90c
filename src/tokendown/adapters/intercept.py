"""Standing in for a method of one object, and leaving without a trace.

diffusers' own ``HookRegistry`` would be the natural carrier, but it keeps the wrapped forward in
a closure: a deep copy of a hooked model silently runs the original's weights, and pickling fails.
torch's forward pre-hooks are not guarded by ``torch.compile``, so that a patch after the first
compiled call would be ignored. A ``functools.partial`` of a module-level function, kept as an
instance attribute, has none of these faults; a callable object would be compiled once a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any


class Intercept:
    """Takes the place of ``owner.<method>``; subclasses define ``__call__``.

    Args:
        owner: the object whose method is replaced, on this instance only.
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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.original(*args, **kwargs)

    def install(self) -> None:
        stand_in = partial(type(self).__call__, self)
        # diffusers looks at signatures; inspect finds the real one through this attribute.
        stand_in.__wrapped__ = self.original  # type: ignore[attr-defined]
        setattr(self.owner, self.method, stand_in)

    def remove(self) -> None:
        """Takes this object out, also from under what others have wrapped around it since."""
        for holder, attribute in _holders(self.owner, self.method):
            if _behind(getattr(holder, attribute, None)) is not self:
                continue
            if holder is self.owner and attribute == self.method and self.earlier is None:
                delattr(holder, attribute)
            else:
                setattr(holder, attribute, self.original)


def intercepts(owner: Any) -> list[Intercept]:
    """The tokendown objects that stand in for methods of ``owner``, wrapped or not."""
    held = [_behind(value) for value in owner.__dict__.values()]
    held += [_behind(getattr(holder, name, None)) for holder, name in _holders(owner, "forward")]
    return list({id(item): item for item in held if item is not None}.values())


def _behind(value: object) -> Intercept | None:
    """The object that a stand-in calls."""
    if isinstance(value, partial) and value.args and isinstance(value.args[0], Intercept):
        return value.args[0]
    return None


def _holders(owner: Any, method: str) -> list[tuple[Any, str]]:
    """Where a stand-in can be: in place, or where accelerate and diffusers keep what they wrap."""
    registry = getattr(owner, "_diffusers_hook", None)
    references = [] if registry is None else registry._fn_refs
    return [
        (owner, method),
        (owner, "_old_forward"),
        *((reference, "forward") for reference in references),
        *((reference, "original_forward") for reference in references),
    ]
