"""Idefics3 and SmolVLM: every tile is its own run of placeholders, the whole picture comes last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..tokens import Segment
from .base import Prompt, Size, near_square, tile_grid, tiles
from .grouped import GroupedFamily
from .vision import pooled


class Idefics3(GroupedFamily):
    """``<fake><row_1_col_1> tile ... <fake><global-img> whole <fake>`` for each picture."""

    tower = "vision_model"
    projector = "connector"

    def segments(
        self, prompt: Prompt, row: int, number: int, start: int, length: int, size: Size | None
    ) -> Sequence[Segment]:
        *cut, whole = self.group_at(prompt, row, start)
        side = near_square(whole[1] - whole[0])
        if not cut:
            return [Segment(0, side)]
        # A row of tiles ends with a line break; between its tiles comes the token that also follows
        # the whole picture.
        ids = prompt.ids[row]
        inner = ids[whole[1]] if whole[1] < len(ids) else None
        cols = next((n for n, run in enumerate(cut, 1) if ids[run[1]] != inner), len(cut))
        down, across = (len(cut) // cols, cols) if len(cut) % cols == 0 else tile_grid(len(cut), size)
        thumbnail = Segment(len(cut) * side[0] * side[1], side, thumbnail=True)
        return [*tiles(down, across, side), thumbnail]

    def per_token(self, values: Tensor, encoder_kwargs: dict[str, Any], out: Any) -> Tensor:
        high, wide = encoder_kwargs["pixel_values"].shape[-2:]
        patch = self.config.vision_config.patch_size
        return pooled(values, (high // patch, wide // patch), self.config.scale_factor)
