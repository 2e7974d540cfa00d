"""What the engine asks of a model family; the one place that knows transformers' internals.

A family says how its images' tokens lie in a prompt (`image_lengths`, `segments`), how it encodes
pictures, and which position ids an unpruned call would use. Everything else is common.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..layout import Size
from ..tokens import ImageTokens, Segment
from .vision import VisionSide


@dataclass(frozen=True, eq=False)
class Prompt:
    """A call's prompt on the host: who is a visual token, and what came with the pictures."""

    ids: Tensor
    """int64 ``(B, L)``."""
    mask: Tensor
    """Bool ``(B, L)``, False at padding."""
    visual: Tensor
    """Bool ``(B, L)``, True at image placeholders."""
    entries: Sequence[int]
    """Rows of each entry of the encoder's container (images, tiles or samples, by family)."""
    encoder_kwargs: dict[str, Any]
    picture_sizes: Callable[[int, int], Sequence[Size | None]] = field(default=lambda row, n: [None] * n)
    """(sample, images) -> size of each picture, None where unknown."""

    def per_row(self) -> list[int]:
        """Visual tokens of each sample."""
        return [int(n) for n in self.visual.sum(-1)]

    def runs(self, row: int) -> list[tuple[int, int]]:
        """Contiguous placeholders of a sample: (first column, one past the last)."""
        return runs(self.visual[row])


class Family(VisionSide):
    """A VLM architecture on stock transformers.

    The features a family's ``get_image_features`` returns fill the placeholders in order, over
    batch and sequence; that invariant is all the engine needs to cut a prompt.
    """

    mrope: ClassVar[bool] = False
    """Position ids have several rows (text, time, height, width)."""
    scatters: ClassVar[bool] = True
    """All that the model does with features is to put them in place of the placeholders' embeddings."""
    constant_outputs: ClassVar[tuple[str, ...]] = ()
    """Fields of the encoder's output that the model needs besides features, the same for all pictures."""
    first_position: ClassVar[int] = 0
    """Position id of the first token in a bare ``forward``."""

    def __init__(self, model: nn.Module) -> None:
        # Attributes of a module are unions to a type checker; these are known by duck.
        self.model: Any = model
        self.core: Any = model.base_model
        self.config: Any = model.config
        if getattr(self.config, "image_token_id", None) is None:
            raise PruneError(
                f"{type(model).__name__} has no image_token_id in its config, so its visual tokens cannot "
                "be found; load the vision-language class (AutoModelForImageTextToText)"
            )

    @property
    def image_token_id(self) -> int:
        return int(self.config.image_token_id)

    @property
    def language_model(self) -> Any:
        """The decoder stack: the module that owns ``layers``."""
        for name in ("language_model", "text_model"):
            if (found := getattr(self.core, name, None)) is not None:
                return found
        return self.core

    @property
    def depth(self) -> int | None:
        """Decoder layers of the language model, None if it does not show them."""
        layers = getattr(self.language_model, "layers", None)
        return None if layers is None else len(layers)

    def rotates(self, layer: Any) -> bool:
        """Whether a decoder layer uses rotary positions; some families leave them out in some layers."""
        return True

    # -- encoding -------------------------------------------------------------------------------

    def encoder_names(self) -> set[str]:
        """Keywords of a call that belong to the vision encoder."""
        return set(inspect.signature(self.core.get_image_features).parameters) - {"self", "kwargs"}

    def encode(self, encoder_kwargs: dict[str, Any]) -> Any:
        """Pictures -> the encoder's output object, features in ``pooler_output``."""
        return self.core.get_image_features(**encoder_kwargs, return_dict=True)

    def encode_frozen(self, encoder_kwargs: dict[str, Any]) -> Any:
        """As `encode`, given `frozen_encoder_kwargs` and pixels."""
        return self.encode(encoder_kwargs)

    def frozen_encoder_kwargs(self, encoder_kwargs: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """The encoder's keywords besides pixels, so that a call with them reads nothing back from ``device``.

        Sizes and counts, which towers read number by number, go to the host; families add what a tower would
        otherwise work out from them.
        """

        def small(value: Any) -> bool:
            return isinstance(value, Tensor) and not value.is_floating_point() and value.dim() <= 2

        return {k: v.cpu() if small(v) else v for k, v in encoder_kwargs.items()}

    def flatten(self, container: Any) -> tuple[Tensor, list[int]]:
        """Features of all placeholders in order ``(T, D)``, and the rows of each container entry."""
        entries = [entry.reshape(-1, entry.shape[-1]) for entry in container]
        return torch.cat(entries), [entry.shape[0] for entry in entries]

    def hand_over(self, out: Any, kept: Tensor, flat: Tensor, per_row: Sequence[int]) -> Any:
        """Replace the features of an encoder output by the kept rows.

        ``kept`` int64 ``(K,)`` ascending rows of ``flat``; ``per_row`` how many belong to each
        sample. A list container gets one entry per sample; a tensor container becomes
        ``(K, 1, D)``: generation counts ``len(entry)`` tokens when it repeats entries for beams.
        """
        sizes = [n for n in per_row if n]

        def cut(container: Any, rows: Tensor) -> Any:
            picked = rows.index_select(0, kept.to(rows.device))
            return picked[:, None] if isinstance(container, Tensor) else list(picked.split(sizes))

        planes = getattr(out, "deepstack_features", None)
        out.pooler_output = cut(out.pooler_output, flat)
        if planes is not None:
            out.deepstack_features = [cut(plane, self.flatten(plane)[0]) for plane in planes]
        return out

    # -- where the images are -------------------------------------------------------------------

    def images(self, prompt: Prompt) -> list[list[ImageTokens]]:
        """The images of each sample, in prompt order."""
        out: list[list[ImageTokens]] = []
        number = 0
        for row, lengths in enumerate(self.image_lengths(prompt)):
            sizes = prompt.picture_sizes(row, len(lengths))
            start, images = 0, []
            for length, size in zip(lengths, sizes, strict=True):
                segments = self.segments(prompt, row, number, start, length, size)
                images.append(ImageTokens(start, length, tuple(segments)))
                start += length
                number += 1
            out.append(images)
        return out

    def image_lengths(self, prompt: Prompt) -> list[list[int]]:
        """Visual tokens of each image of each sample. Default: one container entry per image."""
        out, entries = [], iter(prompt.entries)
        for row, total in enumerate(prompt.per_row()):
            lengths: list[int] = []
            while sum(lengths) < total:
                lengths.append(next(entries))
            if sum(lengths) != total:
                raise PruneError(
                    f"sample {row}: {total} image placeholders, but its pictures have {sum(lengths)} tokens; "
                    "was the prompt truncated?"
                )
            out.append(lengths)
        return out

    def segments(
        self, prompt: Prompt, row: int, number: int, start: int, length: int, size: Size | None
    ) -> Sequence[Segment]:
        """Rectangles of tokens of one image.

        Args:
            row, number: the sample, and the image counted over the whole batch.
            start, length: its tokens, counted over the sample's visual tokens.
            size: width and height of the picture if the layout knows it.
        """
        return [Segment(0, near_square(length, size))]

    # -- positions ------------------------------------------------------------------------------

    def positions(self, prompt: Prompt, generating: bool, kwargs: dict[str, Any]) -> Tensor:
        """Position ids an unpruned call would use: int64 host tensor ``(B, L)`` or ``(4, B, L)``."""
        if (given := kwargs.get("position_ids")) is not None:
            given = given.cpu()
            if given.shape[-2:] == (1, prompt.ids.shape[1]):
                given = given.expand(*given.shape[:-2], *prompt.ids.shape)
            return given
        if generating:
            return counted(prompt.mask)
        length = prompt.ids.shape[1]
        return (torch.arange(length) + self.first_position).expand(prompt.ids.shape[0], length)

    def remember(self, positions: Tensor | None, mask: Tensor | None) -> None:
        """Leave on the model what an unpruned call leaves there for decode loops of the caller's own."""


def runs(flags: Tensor) -> list[tuple[int, int]]:
    """Stretches of True in a host bool vector: (first, one past the last)."""
    edges = torch.cat([torch.zeros(1), flags.float(), torch.zeros(1)]).diff()
    starts, ends = (edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist()
    return list(zip(starts, ends, strict=True))


def bound(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments by name, those of ``**kwargs`` included."""
    call = dict(signature.bind_partial(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            call |= call.pop(parameter.name, {})
    return call


def counted(mask: Tensor) -> Tensor:
    """Positions as ``generate`` counts them: 0, 1, ... over real tokens, 0 at padding."""
    return (mask.long().cumsum(-1) - 1).masked_fill(~mask, 0)


def near_square(length: int, size: Size | None = None) -> tuple[int, int]:
    """Rows and columns of ``length`` tokens: square if it is one, else the factors nearest the picture."""
    side = math.isqrt(length)
    if side * side == length:
        return side, side
    return tile_grid(length, size)


def tile_grid(count: int, size: Size | None) -> tuple[int, int]:
    """Rows and columns of ``count`` tiles: the factors whose shape is nearest the picture's.

    The processors cut a picture into the canvas of nearest aspect ratio; given the number of tiles
    that leaves one answer. Without a size the picture is taken as 16:9, a driving camera's.
    """
    aspect = size[0] / size[1] if size else 16 / 9
    pairs = [(count // cols, cols) for cols in range(1, count + 1) if count % cols == 0]
    return min(pairs, key=lambda pair: abs(aspect - pair[1] / pair[0]))


def tiles(rows: int, cols: int, side: tuple[int, int], start: int = 0) -> list[Segment]:
    """Segments of a picture cut into ``rows`` x ``cols`` tiles of ``side`` tokens each, row by row."""
    each = side[0] * side[1]
    out = []
    for number in range(rows * cols):
        r, c = divmod(number, cols)
        box = (c / cols, r / rows, (c + 1) / cols, (r + 1) / rows)
        out.append(Segment(start + number * each, side, box))
    return out
