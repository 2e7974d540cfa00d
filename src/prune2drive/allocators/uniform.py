"""Uniform: every camera keeps the same share of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..rig import Rig
from ..tokens import View
from .base import Allocator, check_cameras, check_rate, count


@dataclass(frozen=True)
class Uniform(Allocator):
    """Keep the share ``retention``, in (0, 1], of every view.

    A view's count depends on its own length only, never on which other views are in the sample.
    """

    retention: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "retention", check_rate(self.retention))

    def allocate(self, views: Sequence[View], rig: Rig | None, rounding: str = "half-up") -> list[int]:
        check_cameras(views, rig)
        return [count(len(view), self.retention, rounding) for view in views]
