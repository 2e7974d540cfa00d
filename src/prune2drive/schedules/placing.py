"""Where the stages of a schedule go, and how much they keep between two settings: what schedules share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from ..errors import PruneError
from .base import scaled


def check_layers(name: str, layers: Any, number: int | None = None) -> None:
    """Refuse layers that are not ascending integers from 1; ``number`` of them if that is fixed."""
    if layers is None:
        return
    fine = isinstance(layers, tuple) and all(
        isinstance(layer, int) and not isinstance(layer, bool) and layer >= 1 for layer in layers
    )
    if not fine or not layers or any(b <= a for a, b in pairwise(layers)):
        raise PruneError(
            f"{name}: layers={layers!r}; give a tuple of ascending layers from 1, such as (4, 8, 12)"
        )
    if number is not None and len(layers) != number:
        raise PruneError(f"{name}: layers={layers!r} are {len(layers)} layers; give {number}, one per stage")


def check_strength(name: str, strength: float) -> None:
    """Refuse a strength outside [0, 1]."""
    if not 0 <= strength <= 1:
        raise PruneError(f"{name}: strength {strength!r} is outside 0 to 1; 0 keeps fewest tokens, 1 all")


def place(name: str, layers: Sequence[int] | None, paper: Sequence[int], depth: int) -> tuple[int, ...]:
    """The user's ``layers``, or the ``paper``'s of 32 brought to a model of ``depth`` layers."""
    if layers is None:
        return scaled(paper, depth)
    if layers[-1] >= depth:
        raise PruneError(
            f"{name}: layers={tuple(layers)!r}, but the language model has {depth} layers, 0 to {depth - 1}; "
            "give earlier ones"
        )
    return tuple(layers)


def between(strength: float, knots: Sequence[tuple[float, Sequence[float]]]) -> tuple[float, ...]:
    """Read a row off a table by linear interpolation.

    Args:
        knots: (strength, row) with strengths ascending from 0 to 1. No entry of a row exceeds the one before
            it nor the same entry of the next row, and so it is with what is returned.
    """
    for (low, below), (high, above) in pairwise(knots):
        if strength < high:
            t = (strength - low) / (high - low)
            # Rounding must let no share fall when strength grows, nor a later stage keep more.
            row = (min(a + t * (b - a), b) for a, b in zip(below, above, strict=True))
            return tuple(accumulate(row, min))
    return tuple(knots[-1][1])
