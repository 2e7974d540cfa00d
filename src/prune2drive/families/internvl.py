"""InternVL (HF-native): tiles row by row, a thumbnail of the whole picture last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..tokens import Segment
from .base import Family, Prompt, Size, near_square, tile_grid, tiles
from .vision import pooled_tiles


class InternVL(Family):
    """One run of placeholders per picture; the number of tiles shows only in its length."""

    def image_lengths(self, prompt: Prompt) -> list[list[int]]:
        # The container has one entry per tile, so pictures are told apart by their <img> tokens.
        return [[end - start for start, end in prompt.runs(row)] for row in range(len(prompt.ids))]

    def segments(
        self, prompt: Prompt, row: int, number: int, start: int, length: int, size: Size | None
    ) -> Sequence[Segment]:
        return tiled(length, prompt.entries[0], size)

    def per_token(self, values: Tensor, encoder_kwargs: dict[str, Any], out: Any) -> Tensor:
        return pooled_tiles(values, out.pooler_output)

    def projected(self, rows: Tensor, encoder_kwargs: dict[str, Any], out: Any) -> Tensor:
        return rows  # the model sets the four patches of a token side by side before its projector


def tiled(length: int, per_tile: int, size: Size | None) -> list[Segment]:
    """Tiles of ``per_tile`` tokens with the thumbnail last, or a single tile."""
    side = near_square(per_tile)
    count = length // per_tile
    if count == 1:
        return [Segment(0, side)]
    cut = tiles(*tile_grid(count - 1, size), side)
    return [*cut, Segment((count - 1) * per_tile, side, thumbnail=True)]
