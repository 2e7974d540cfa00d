"""Aya Vision: tiles behind numbered markers, the whole picture last behind its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..tokens import Segment
from .base import Prompt, Size
from .grouped import GroupedFamily
from .internvl import tiled
from .vision import pooled_tiles


class AyaVision(GroupedFamily):
    """Each tile is a run; the container has one row per tile."""

    def segments(
        self, prompt: Prompt, row: int, number: int, start: int, length: int, size: Size | None
    ) -> Sequence[Segment]:
        return tiled(length, prompt.entries[0], size)

    def rotates(self, layer: Any) -> bool:
        return layer.self_attn.sliding_window is not None  # Cohere 2: full attention goes without positions

    def per_token(self, values: Tensor, encoder_kwargs: dict[str, Any], out: Any) -> Tensor:
        return pooled_tiles(values, out.pooler_output)
