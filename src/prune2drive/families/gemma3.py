"""Gemma 3: one pooled square grid per picture, attended both ways inside the picture."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import Family
from .vision import pooled_tiles


class Gemma3(Family):
    """Container rows are pictures; ``token_type_ids`` mark them and are cut with the prompt."""

    scatters = False  # the mask looks both ways inside a picture

    def per_token(self, values: Tensor, encoder_kwargs: dict[str, Any], out: Any) -> Tensor:
        return pooled_tiles(values, out.pooler_output)
