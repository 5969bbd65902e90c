"""Where a transformer says how its image tokens are laid out: (frames, height, width) in tokens.

Never guessed from a number of tokens: 64 x 36 and 36 x 64 are equally many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .._errors import GridError

Shapes = tuple[tuple[int, int, int], ...]
# From the configuration of a model and the arguments of its forward by name.
GridSource = Callable[[Any, Mapping[str, Any]], Shapes]


class LatentGrid:
    """A latent [..., height, width] that the model cuts into patches.

    Args:
        argument: of the model's forward.
        frames: dimension of the frames, counted from the end (-3, or -4 where channels lie
            between), or None for pictures. Without effect where a latent has no frames.
        patch: name of the patch size in the model's configuration: a number a side,
            (height, width), or (frames, height, width).
        temporal: name of the patch size in time, where that is separate.
        channels_last: whether it is [..., height, width, channels] instead.
    """

    def __init__(
        self,
        argument: str = "hidden_states",
        frames: int | None = None,
        patch: str = "patch_size",
        temporal: str | None = None,
        channels_last: bool = False,
    ) -> None:
        self.argument, self.frames, self.patch, self.temporal = argument, frames, patch, temporal
        self.channels_last = channels_last

    def __call__(self, config: Any, arguments: Mapping[str, Any]) -> Shapes:
        return (self.of(config, arguments[self.argument]),)

    def of(self, config: Any, latent: Tensor) -> tuple[int, int, int]:
        """(frames, height, width) of one latent."""
        shape = latent.movedim(-1, 1).shape if self.channels_last else latent.shape
        patch = getattr(config, self.patch)
        if isinstance(patch, int):
            in_time = getattr(config, self.temporal) if self.temporal else 1
            patch = (in_time or 1, patch, patch)
        patch = (1, *patch)[-3:]
        frames = 1 if self.frames is None or len(shape) < 5 else shape[self.frames]
        # A last frame that does not fill a patch is padded by the model (CogVideoX 1.5).
        return -(-frames // patch[0]), shape[-2] // patch[1], shape[-1] // patch[2]


class DenseGrid(LatentGrid):
    """Kandinsky 5, whose tokens are in rows unless its attention is sparse."""

    def __call__(self, config: Any, arguments: Mapping[str, Any]) -> Shapes:
        if arguments.get("sparse_params") is not None:
            raise GridError(
                "with sparse_params, tokens are ordered in squares of 8 x 8, and a block mask says "
                "which of those see each other: neither can be cut down to kept keys; use a model "
                "with regular attention (attention_type), or remove_patch(model)"
            )
        return super().__call__(config, arguments)


class ShapeGrid:
    """(frames, height, width) of every picture in tokens, one list an image of the batch.

    Args:
        argument: of the model's forward.
    """

    def __init__(self, argument: str = "img_shapes") -> None:
        self.argument = argument

    def __call__(self, config: Any, arguments: Mapping[str, Any]) -> Shapes:
        images = [_as_list(image) for image in arguments[self.argument]]
        if any(image != images[0] for image in images):
            raise GridError(f"expected one layout for the whole batch, got {images}")
        return tuple((int(f), int(h), int(w)) for f, h, w in images[0])


def _as_list(image: Any) -> list[tuple[int, ...]]:
    """One picture may stand without a list around it."""
    return [tuple(image)] if isinstance(image[0], int) else [tuple(shape) for shape in image]


class NumberGrid:
    """Frames, height and width as arguments of the forward.

    Args:
        arguments: their names.
        patched: whether they are of the latent, of which the model makes a token a patch.
    """

    def __init__(
        self,
        arguments: tuple[str, str, str] = ("num_frames", "height", "width"),
        patched: bool = False,
    ) -> None:
        self.arguments, self.patched = arguments, patched

    def __call__(self, config: Any, arguments: Mapping[str, Any]) -> Shapes:
        frames, height, width = (arguments[name] for name in self.arguments)
        if self.patched:
            frames = -(-frames // config.patch_size_t)
            height, width = (-(-side // config.patch_size) for side in (height, width))
        return ((frames, height, width),)


class ListGrid:
    """Z-Image: a list of latents [channels, frames, height, width], one an image of the batch."""

    def __call__(self, config: Any, arguments: Mapping[str, Any]) -> Shapes:
        latents = arguments["x"]
        if not isinstance(latents[0], Tensor) or any(x.shape != latents[0].shape for x in latents):
            raise GridError(
                "expected one latent of one size for every image of the batch; several pictures "
                "an image (omni mode) and several sizes in one batch are not supported"
            )
        patch, in_time = arguments.get("patch_size", 2), arguments.get("f_patch_size", 1)
        _, frames, height, width = latents[0].shape
        return ((frames // in_time, height // patch, width // patch),)


class CaptionedGrid(LatentGrid):
    """Lumina 2: captions come first, each as long as it is, so that images start anywhere.

    The model reads the lengths of the captions at every call itself.
    """

    def __call__(self, config: Any, arguments: Mapping[str, Any]) -> Shapes:
        lengths = arguments["encoder_attention_mask"].sum(dim=1).tolist()
        if any(length != lengths[0] for length in lengths):
            raise GridError(
                f"expected captions of one length in a batch, got {lengths} tokens: the image "
                "tokens would start at different places; call the transformer once a caption, as "
                "diffusers' pipeline does for one prompt"
            )
        return super().__call__(config, arguments)


class GistGrid(LatentGrid):
    """Bria FIBO 2: a gist of the caption, the picture, and pictures that are to be edited.

    The model reads the lengths of the captions at every call itself, and puts the gist behind the
    pictures where the captions of a batch make more of it and less.
    """

    def __call__(self, config: Any, arguments: Mapping[str, Any]) -> Shapes:
        mask = arguments.get("encoder_attention_mask")
        lengths = [] if mask is None else mask.sum(dim=1).tolist()
        if len(set(_gist_tokens(config, lengths))) > 1:
            raise GridError(
                f"captions of {lengths} tokens in a batch make gists of several lengths, and are "
                "padded then; call the transformer once a caption, as diffusers' pipeline does for "
                "one prompt"
            )
        others = arguments.get("context_latents") or []
        return (
            *super().__call__(config, arguments),
            *(self.of(config, latent) for latent in others),
        )


def _gist_tokens(config: Any, lengths: list[int]) -> list[int]:
    """As the model counts them."""
    from diffusers.models.transformers.transformer_bria_fibo2 import compute_gist_count

    counts: list[int] = compute_gist_count(
        lengths,
        min_gist=config.min_num_gist_tokens,
        max_gist=config.max_num_gist_tokens,
        gist_step=config.gist_step,
        min_text_len=config.gist_min_text_len,
        max_text_len=config.gist_max_text_len,
    )
    return counts
