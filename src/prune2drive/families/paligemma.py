"""PaliGemma: pictures stand side by side in front of the text; positions count from one."""

from __future__ import annotations

from .base import Family


class PaliGemma(Family):
    """Adjacent pictures share one run of placeholders, so the container's rows tell them apart.

    ``generate`` adds the one itself, a bare ``forward`` does not.
    """

    first_position = 1
    scatters = False  # the mask looks both ways over pictures and prefix
