"""Aya Vision: tiles behind numbered markers, the whole picture last behind its own."""

from __future__ import annotations

from collections.abc import Sequence

from ..tokens import Segment
from .base import Prompt, Size
from .grouped import GroupedFamily
from .internvl import tiled


class AyaVision(GroupedFamily):
    """Each tile is a run; the container has one row per tile."""

    def segments(
        self, prompt: Prompt, row: int, number: int, start: int, length: int, size: Size | None
    ) -> Sequence[Segment]:
        return tiled(length, prompt.entries[0], size)
