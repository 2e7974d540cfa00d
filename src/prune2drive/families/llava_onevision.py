"""LLaVA-OneVision: as LLaVA-NeXT for one picture; several pictures get one tile and one newline each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..tokens import Segment
from .base import Prompt, Size
from .llava import given_size
from .llava_next import LlavaNext


class LlavaOnevision(LlavaNext):
    """SigLIP tower; very large grids are shrunk to ``anyres_max_K`` tiles' worth of tokens."""

    def fine_grid(self, picture: Size) -> tuple[int, int]:
        rows, cols = super().fine_grid(picture)
        most = int(self.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * cols / (most * self.side**2))
        return (int(rows // ratio), int(cols // ratio)) if ratio > 1.1 else (rows, cols)

    def segments(
        self, prompt: Prompt, row: int, number: int, start: int, length: int, size: Size | None
    ) -> Sequence[Segment]:
        picture = given_size(prompt, number)
        if length - self.side**2 > 1 or picture is None:
            return super().segments(prompt, row, number, start, length, size)
        # Pictures that share a prompt are padded to a square: the grid reaches beyond the picture.
        wide, high = picture
        x, y = (max(wide, high) / wide - 1) / 2, (max(wide, high) / high - 1) / 2
        return [Segment(0, (self.side, self.side), (-x, -y, 1 + x, 1 + y))]

    def tile_counts(self, encoder_kwargs: dict[str, Any]) -> list[int]:
        counts = super().tile_counts(encoder_kwargs)
        together = encoder_kwargs.get("batch_num_images")
        if together is None:
            return counts
        alone = [n == 1 for n in together.tolist() for _ in range(n)]
        return [count if one else 1 for count, one in zip(counts, alone, strict=True)]

    def packing(self, encoder_kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"vision_aspect_ratio": self.encoder_option("vision_aspect_ratio", encoder_kwargs)}
