"""LLaVA-1.5: one square grid of tokens per picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..tokens import Segment
from .base import Family, Prompt, Size, near_square


class Llava(Family):
    """CLIP (or Pixtral) tower, one container entry per picture."""

    def segments(
        self, prompt: Prompt, row: int, number: int, start: int, length: int, size: Size | None
    ) -> Sequence[Segment]:
        return [Segment(0, near_square(length, given_size(prompt, number) or size))]

    def patch_lengths(self, encoder_kwargs: dict[str, Any]) -> list[int] | None:
        return packed_lengths(encoder_kwargs, self.config.vision_config.patch_size)


def packed_lengths(encoder_kwargs: dict[str, Any], patch: int) -> list[int] | None:
    """Patches of each picture if ``image_sizes`` (height, width) came along: a Pixtral tower's one row."""
    sizes = encoder_kwargs.get("image_sizes")
    if sizes is None:
        return None
    return [(int(high) // patch) * (int(wide) // patch) for high, wide in sizes]


def given_size(prompt: Prompt, number: int) -> Size | None:
    """Width and height of picture ``number`` if the processor passed ``image_sizes`` (height, width)."""
    sizes = prompt.encoder_kwargs.get("image_sizes")
    if sizes is None:
        return None
    height, width = (int(x) for x in sizes[number])
    return width, height
