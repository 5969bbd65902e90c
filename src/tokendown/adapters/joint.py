"""Self-attention inside a processor that joins image tokens with text, or rotates positions.

Image tokens are selected before the key and value projections, whatever these are at the moment
(LoRA, quantised): the processor is run on a view of its attention module in which both projections
see the kept tokens only. Where positions are rotated, kept keys get the kept rows of the table
(:mod:`tokendown.adapters.rotary`); where that is out of reach they go back to their own places
between zeros, are rotated there by the host, and are taken out again at the attention call.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from types import MethodType
from typing import Any

from torch import Tensor, nn

from .._errors import GridError, UnsupportedModelError
from ..sequence import Box, Sequence
from .classic import why_dense
from .dispatch import Call, CallBySample, current
from .intercept import ForwardIntercept, innermost, intercepts
from .joint_plan import JointLayer, JointPlan
from .rebind import rebound, rotates_in_reach


class View:
    """An attention module as its processor sees it: two projections of kept tokens only.

    Args:
        owner: the module; everything else is its own, as it is at that moment.
        sequence: the joint sequence of keys.
        spread: whether kept keys have to be at their own places, between zeros.
    """

    fused_projections = False  # the separate projections are still there

    def __init__(self, owner: Any, sequence: Sequence, spread: bool) -> None:
        self.owner = owner
        self.sequence = sequence
        self.spread = spread
        self.seen: Tensor | None = None
        self.kept: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.owner, name)

    def to_k(self, x: Tensor) -> Tensor:
        key: Tensor = self.owner.to_k(self._take(x))
        return self._part(x).put(key) if self.spread else key

    def to_v(self, x: Tensor) -> Tensor:
        return self.owner.to_v(self._take(x))  # type: ignore[no-any-return]

    # Kandinsky 5 has its own names, and gives keys and values the shape of its queries.
    def to_key(self, x: Tensor) -> Tensor:
        return self._part(x).put(self.owner.to_key(self._take(x)))

    def to_value(self, x: Tensor) -> Tensor:
        return self._part(x).put(self.owner.to_value(self._take(x)))

    def _take(self, x: Tensor) -> Tensor:
        if self.seen is not x:
            self.seen, self.kept = x, self._part(x).take(x, 1)
        assert self.kept is not None
        return self.kept

    def _part(self, x: Tensor) -> Sequence:
        """The joint sequence where that is projected, or the image tokens and their padding."""
        if x.shape[1] == self.sequence.tokens:
            return self.sequence
        return self.sequence.image_only(x.shape[1] - self.sequence.image_tokens)


# HiDream's forward has other names for two things than its processor.
_PLAIN = {
    "norm_hidden_states": "hidden_states",
    "norm_encoder_hidden_states": "encoder_hidden_states",
}


def by_name(
    names: Iterable[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of a forward by the names that processors have for them.

    Args:
        names: of the parameters of the forward.
        args: given by position.
        kwargs: given by name.
    """
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return {_PLAIN.get(name, name): value for name, value in given.items()}


class JointAttention(ForwardIntercept):
    """Stands in for the forward of an attention module; innermost, under what others put there.

    Subclasses define ``run``: what the forward of the attention module takes and returns.

    Args:
        owner: a diffusers attention module.
        plan: of the denoiser.
        layer: this one.
    """

    def __init__(self, owner: nn.Module, plan: JointPlan, layer: JointLayer) -> None:
        super().__init__(owner)
        self.plan = plan
        self.layer = layer
        self.names = tuple(inspect.signature(self.function).parameters)[1:]
        self.bind(type(owner.processor))

    def bind(self, kind: type) -> None:
        """Gets ready for a class of processors."""
        self.process = rebound(kind)
        self.kind = kind  # not before: one that is refused is refused at every call
        self.rotates_kept = rotates_in_reach(kind)
        parameters = inspect.signature(self.process).parameters.values()
        open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        self.accepted = None if open_ended else tuple(p.name for p in parameters)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "process"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.process = rebound(self.kind)

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """All arguments by the names that processors have for them."""
        return by_name(self.names, args, kwargs)

    def boxes(self, ranks: int = 1) -> tuple[Box, ...]:
        """The image tokens of this pass.

        Raises:
            GridError: they are not known.
        """
        if not self.layer.shapes:
            raise GridError(
                f"{self.layer.name}: no token grid is known; it is read when the whole denoiser "
                "runs, so call the denoiser, not this layer; where a ControlNet runs layers of it "
                "first, call patch.set_grid((height, width)) with the size in tokens"
            )
        return self.plan.boxes(self.layer, self.layer.shapes, ranks)

    def among(self, boxes: tuple[Box, ...], named: dict[str, Any]) -> Sequence:
        """The joint sequence: these boxes, and all other tokens exact.

        Raises:
            GridError: there are fewer tokens than the boxes have.
        """
        image = Sequence(boxes).tokens
        text = named.get("encoder_hidden_states")
        if text is None:
            text = named.get("cached_txt_key")  # Nucleus: its projection, from an earlier step
        if text is named["hidden_states"]:  # Lumina 2 says so where it means itself
            text = None
        total = named["hidden_states"].shape[1] + (0 if text is None else text.shape[1])
        exact = total - image
        if exact < 0:
            raise GridError(
                f"{self.layer.name}: expected at least {image} tokens for {_describe(boxes)}, "
                f"got {total}"
            )
        return Sequence(boxes, *((exact, 0) if self.layer.text_first else (0, exact)))

    def process_as(self, seen: Any, named: dict[str, Any], call: Call) -> Any:
        """Runs the installed processor.

        Args:
            seen: the attention module as the processor is to see it.
            named: arguments of the module's forward.
            call: gets the attention call.

        Raises:
            UnsupportedModelError: the processor made no such call.
        """
        processor = self.owner.processor
        if type(processor) is not self.kind:
            self.bind(type(processor))
        if self.layer.rotary and self.layer.rotary_inside:
            named = {**named, self.layer.rotary_inside: named.get(self.layer.rotary)}
        if self.accepted is not None:
            named = {name: value for name, value in named.items() if name in self.accepted}
        outer = current.call
        current.call = call
        try:
            result = self.process(processor, seen, **named)
        finally:
            current.call = outer
        if not call.done:
            raise UnsupportedModelError(
                f"{self.layer.name}: {self.kind.__name__} made no attention call over the "
                f"{call.sequence.tokens} tokens of its sequence, so tokendown cannot work with it; "
                "remove_patch(model), or set one of diffusers' own processors"
            )
        return result


class JointKeys(JointAttention):
    """Self-attention to the kept tokens."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        scores = self.layer.take_scores()
        sequence = None
        named = self.named(args, kwargs)
        try:
            if self.layer.active and why_dense(self.owner) is None and not needs_all(named):
                sequence = self._sequence(named, scores)
        finally:
            self.layer.finish()
        if sequence is None:
            return MethodType(self.function, self.owner)(*args, **kwargs)
        return self._attend(named, sequence)

    def _sequence(self, named: dict[str, Any], scores: Tensor | None) -> Sequence | None:
        """What is kept, or None where that is everything."""
        rule = self.layer.rule
        assert rule is not None, "installed on layers with a rule only"
        ranks = _ranks(self.owner.processor)
        boxes = self.boxes(ranks)
        if all(box.kept == box.tokens for box in boxes):
            return None
        place, device = self.layer.place, named["hidden_states"].device
        sequence = self.among(tuple(box.at(place, device) for box in boxes), named)
        scores = self.layer.anchored(scores)
        if scores is None:
            return sequence
        sequence = sequence.with_anchors(scores, -(-rule.anchors // ranks), place)
        return None if sequence.kept == sequence.tokens else sequence

    def _attend(self, named: dict[str, Any], sequence: Sequence) -> Any:
        assert self.layer.rule is not None, "installed on layers with a rule only"
        rotated = self.layer.rotary is not None and named.get(self.layer.rotary) is not None
        view = View(self.owner, sequence, spread=rotated and not self.rotates_kept)
        keys, counted = sequence.behind(cached(named)), self.layer.rule.multiplicity
        if self.layer.by_sample:
            call: Call = CallBySample(keys, counted, len(named["hidden_states"]))
        else:
            call = Call(keys, counted)
        return self.process_as(view, named, call)


def needs_all(named: dict[str, Any]) -> bool:
    """Whether a call needs keys and values of all tokens.

    Guidance of LTX-2 puts values in place of attention, GLM-Image stores those of pictures to edit.
    """
    if named.get("perturbation_mask") is not None or named.get("all_perturbed"):
        return True
    return getattr(named.get("kv_cache"), "mode", None) == "write"


def cached(named: dict[str, Any]) -> int:
    """How many keys of other pictures GLM-Image's processor puts before those of its tokens."""
    cache: Any = named.get("kv_cache")
    if getattr(cache, "mode", None) != "read" or not cache.k_caches:
        return 0
    return int(cache.k_caches[0].shape[1])


def check(name: str, attention: Any) -> None:
    """Whether a patch can go in here.

    Args:
        name: of the module, for the message.
        attention: a diffusers attention module.

    Raises:
        UnsupportedModelError: its processor or its forward is out of reach.
    """
    rebound(type(attention.processor))
    if innermost(attention) is None and not any(
        isinstance(item, JointAttention) for item in intercepts(attention)
    ):
        raise UnsupportedModelError(
            f"{name}: its forward was replaced by something that tokendown does not know; call "
            "apply_patch before that"
        )


def _ranks(processor: Any) -> int:
    """Over how many processes the sequence is split."""
    config = getattr(processor, "_parallel_config", None)
    config = getattr(config, "context_parallel_config", None)
    if config is None:
        return 1
    return int(config.ring_degree or 1) * int(config.ulysses_degree or 1)


def _describe(boxes: tuple[Box, ...]) -> str:
    return " + ".join(f"{box.frames}x{box.height}x{box.width}" for box in boxes)
