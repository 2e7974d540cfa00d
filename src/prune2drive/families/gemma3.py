"""Gemma 3: one pooled square grid per picture, attended both ways inside the picture."""

from __future__ import annotations

from .base import Family


class Gemma3(Family):
    """Container rows are pictures; ``token_type_ids`` mark them and are cut with the prompt."""
