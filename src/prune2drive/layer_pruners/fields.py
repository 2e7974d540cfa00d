"""What the methods inside the language model refuse in fields that hold numbers."""

from __future__ import annotations

import math
from typing import Any

from ..errors import PruneError


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
