"""Aya Vision: tiles behind numbered markers, the whole picture last behind its own."""

from __future__ import annotations

from collections.abc import Sequence

from ..tokens import Segment
from .base import Family, Prompt, Size
from .internvl import tiled
from .markers import last_tile_groups


class AyaVision(Family):
    """Each tile is a run; the container has one row per tile."""

    model_types = ("aya_vision",)

    def image_lengths(self, prompt: Prompt) -> list[list[int]]:
        rows = range(len(prompt.ids))
        return [[sum(b - a for a, b in group) for group in last_tile_groups(prompt, row)] for row in rows]

    def segments(
        self, prompt: Prompt, row: int, number: int, start: int, length: int, size: Size | None
    ) -> Sequence[Segment]:
        return tiled(length, prompt.entries[0], size)
