"""Mistral 3: a Pixtral grid; a break token in the text ends every row of it."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import PruneError
from ..tokens import Segment
from .base import Family, Prompt, Size
from .llava import given_size


class Mistral3(Family):
    """One container entry per picture although each of its rows is a run of its own."""

    def segments(
        self, prompt: Prompt, row: int, number: int, start: int, length: int, size: Size | None
    ) -> Sequence[Segment]:
        picture = given_size(prompt, number)
        if picture is None:
            raise PruneError("image_sizes is missing; pass everything the processor returns")
        patch = self.config.vision_config.patch_size * self.config.spatial_merge_size
        return [Segment(0, (picture[1] // patch, picture[0] // patch))]
