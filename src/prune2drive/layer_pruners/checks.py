"""What the methods inside the language model refuse in their fields, and in which words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..errors import PruneError, did_you_mean

SCOPES = ("sample", "view")


def check_layer(method: str, layer: Any) -> None:
    """Refuse what is no layer inside the language model."""
    if isinstance(layer, bool) or not isinstance(layer, int) or layer < 1:
        raise PruneError(
            f"{method}: layer={layer!r}, but a stage inside the language model starts at layer 1 or later; "
            "give an integer from 1"
        )


def check_scope(method: str, scope: Any) -> None:
    """Refuse what is neither "sample" nor "view"."""
    if scope not in SCOPES:
        raise PruneError(
            f"{method}: scope={scope!r}; use 'sample' to rank all images of a sample together or 'view' to "
            "rank each camera alone"
        )


def check_choice(method: str, field: str, value: Any, known: Sequence[str]) -> None:
    """Refuse a name that is not among those known."""
    if value not in known:
        raise PruneError(f"{method}: unknown {field}={value!r}.{did_you_mean(str(value), known)}")


def check_share(method: str, field: str, value: Any, *, zero: bool) -> None:
    """Refuse what is no number up to 1, from 0 (``zero``) or above it."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 <= value <= 1 and (zero or value > 0)):
        least = "from 0" if zero else "above 0 and"
        raise PruneError(f"{method}: {field}={value!r}; give a number {least} up to 1")


def check_count(method: str, field: str, value: Any, least: int) -> None:
    """Refuse what is no integer from ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise PruneError(f"{method}: {field}={value!r}; give an integer from {least}")


def check_positive(method: str, field: str, value: Any, most: float = math.inf) -> None:
    """Refuse what is no finite number above 0, up to ``most``."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 < value <= most and math.isfinite(value)):
        up_to = f" up to {most:g}" if math.isfinite(most) else ""
        raise PruneError(f"{method}: {field}={value!r}; give a number above 0{up_to}")
