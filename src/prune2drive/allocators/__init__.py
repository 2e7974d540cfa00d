"""Allocators: how many tokens each camera may keep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import PruneError
from ..files import read_json
from .base import Allocator, check_rate, count
from .rates import Rates
from .total import Total
from .uniform import Uniform

__all__ = ["Allocator", "Rates", "Total", "Uniform", "count", "load_allocator"]


def load_allocator(retention: float | Mapping[str, float] | Allocator | str | Path) -> Allocator:
    """Return the allocator that ``retention`` describes.

    Args:
        retention: a share in (0, 1] of every camera; ``{camera: share}``, with ``"*"`` for the
            rest; an `Allocator`; or the path of a preset, a JSON file with ``{"rates": {...}}``.

    Raises:
        PruneError: anything else, with the value and the remedy.
    """
    if isinstance(retention, Allocator):
        return retention
    if isinstance(retention, Mapping):
        return Rates(retention)
    if isinstance(retention, str | Path):
        preset = read_json(retention, "preset")
        if not isinstance(preset, Mapping) or "rates" not in preset:
            raise PruneError(f"the preset file {str(retention)!r} has no 'rates': {{camera: share}}")
        return Rates(preset["rates"])
    return Uniform(check_rate(retention))
