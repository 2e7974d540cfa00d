"""LLaVA-OneVision: as LLaVA-NeXT for one picture; several pictures get one tile and one newline each."""

from __future__ import annotations

import math

from .base import Size
from .llava_next import LlavaNext


class LlavaOnevision(LlavaNext):
    """SigLIP tower; very large grids are shrunk to ``anyres_max_K`` tiles' worth of tokens."""

    model_types = ("llava_onevision",)

    def fine_grid(self, picture: Size) -> tuple[int, int]:
        rows, cols = super().fine_grid(picture)
        most = int(self.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * cols / (most * self.side**2))
        return (int(rows // ratio), int(cols // ratio)) if ratio > 1.1 else (rows, cols)
