"""Mistral 3: a Pixtral grid; a break token in the text ends every row of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import PruneError
from ..tokens import Segment
from .base import Family, Prompt, Size
from .llava import given_size, packed_lengths
from .vision import pooled


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

    def patch_lengths(self, encoder_kwargs: dict[str, Any]) -> list[int] | None:
        return packed_lengths(encoder_kwargs, self.config.vision_config.patch_size)

    def per_token(self, values: Tensor, encoder_kwargs: dict[str, Any], out: Any) -> Tensor:
        patch, merge = self.config.vision_config.patch_size, self.config.spatial_merge_size
        grids = [(int(high) // patch, int(wide) // patch) for high, wide in encoder_kwargs["image_sizes"]]
        pictures = values.split([rows * cols for rows, cols in grids])
        return torch.cat([pooled(p, grid, merge) for p, grid in zip(pictures, grids, strict=True)])
