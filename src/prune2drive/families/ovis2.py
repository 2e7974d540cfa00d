"""Ovis2: a thumbnail first, then tiles separated by column and row tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..tokens import Segment
from .base import Prompt, Size, near_square, tiles
from .grouped import GroupedFamily, Run
from .vision import pooled_tiles


class Ovis2(GroupedFamily):
    """``<IMG_START> whole <IMG_GRID> tile <IMG_COL> tile <IMG_ROW> ... <IMG_END>``.

    The five indicator tokens stand in the config in that order: start, grid, column, row, end.
    """

    projector = "vision_tower.head_linear"
    scatters = False  # indicator tokens have embeddings of their own
    constant_outputs = ("visual_indicator_features",)

    def groups(self, prompt: Prompt, row: int) -> list[list[Run]]:
        """Runs of a sample, grouped by picture."""
        opening = self.config.visual_indicator_token_ids[0]
        out: list[list[Run]] = []
        for run in prompt.runs(row):
            if prompt.ids[row, run[0] - 1] == opening:
                out.append([])
            out[-1].append(run)
        return out

    def segments(
        self, prompt: Prompt, row: int, number: int, start: int, length: int, size: Size | None
    ) -> Sequence[Segment]:
        whole, *cut = self.group_at(prompt, row, start)
        side = near_square(whole[1] - whole[0])
        if not cut:
            return [Segment(0, side)]
        line = self.config.visual_indicator_token_ids[3]
        down = 1 + sum(int(prompt.ids[row, run[0] - 1] == line) for run in cut)
        each = side[0] * side[1]
        return [Segment(0, side, thumbnail=True), *tiles(down, len(cut) // down, side, start=each)]

    def per_token(self, values: Tensor, encoder_kwargs: dict[str, Any], out: Any) -> Tensor:
        # A grid that the merge does not divide is padded: the last tokens of a row stand for fewer patches.
        return pooled_tiles(values, out.pooler_output, ceil=True)

    def projected(self, rows: Tensor, encoder_kwargs: dict[str, Any], out: Any) -> Tensor:
        return rows  # the tower sets the patches of a token side by side before its head
