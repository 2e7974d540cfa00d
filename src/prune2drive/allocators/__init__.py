"""Allocators: how many tokens each camera may keep."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import PruneError
from .average import LayerAveraged
from .base import Allocator, check_rate, count
from .preset import Preset, list_presets, load_preset
from .rates import Rates
from .total import Total
from .uniform import Uniform

__all__ = [
    "Allocator",
    "LayerAveraged",
    "Preset",
    "Rates",
    "Total",
    "Uniform",
    "count",
    "list_presets",
    "load_allocator",
    "load_preset",
]


def load_allocator(
    retention: float | Mapping[str, float] | Allocator | LayerAveraged | str | Path,
) -> Allocator:
    """Return the allocator that ``retention`` describes.

    Args:
        retention: a share in (0, 1] of every camera; ``{camera: share}``, with ``"*"`` for the
            rest; an `Allocator`; or a preset: a name from `list_presets`, or the path of a JSON file
            with ``{"rates": {...}}``.

    Raises:
        PruneError: anything else, with the value and the remedy.
    """
    if isinstance(retention, Allocator):
        return retention
    if isinstance(retention, LayerAveraged):
        raise PruneError(
            "a layer-averaged budget is asked of all stages at once, not in a list of retentions"
        )
    if isinstance(retention, Mapping):
        return Rates(retention)
    if isinstance(retention, str | Path):
        return Rates(load_preset(retention).rates)
    return Uniform(check_rate(retention))
