"""Shares of right answers with bootstrap intervals over scenes.

The questions of a scene share its pictures, so they are not independent; scenes are. A resample draws as
many scenes as there are, with replacement, and counts a scene as often as it was drawn. The same
resamples serve every setting and group, so differences are paired.
"""

from __future__ import annotations

from typing import Any

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
FEWEST = 5
"""Scenes with questions below which no interval is given: resampling so few says little."""

Array = np.ndarray


def resamples(scenes: int, seed: int = 0, count: int = RESAMPLES) -> Array:
    """How often each resample holds each scene: int64 (count, scenes), rows sum to ``scenes``."""
    if scenes == 0:
        return np.zeros((count, 0), dtype=np.int64)
    return np.random.default_rng(seed).multinomial(scenes, [1 / scenes] * scenes, size=count)


def share(right: Array, asked: Array, drawn: Array) -> dict[str, Any]:
    """Share of right answers.

    Args:
        right, asked: int (scenes,): right answers, and questions, of each scene.
        drawn: what `resamples` returns.

    Returns:
        ``value``, ``low``, ``high`` (95 % interval) and ``n`` questions; None where nothing was asked,
        and no interval where fewer than `FEWEST` scenes ask.
    """
    return {**difference(right, np.zeros_like(right), asked, drawn), "n": int(asked.sum())}


def difference(right: Array, other: Array, asked: Array, drawn: Array) -> dict[str, Any]:
    """Difference of two shares on the same questions, ``right`` minus ``other``; arguments as `share`."""
    if not asked.sum():
        return {"value": None, "low": None, "high": None}
    gain = right - other
    value = float(gain.sum() / asked.sum())
    if (asked > 0).sum() < FEWEST:
        return {"value": value, "low": None, "high": None}
    total = drawn @ asked
    # A small group may be missing from a resample, which then says nothing about it.
    found = total > 0
    spread = (drawn @ gain)[found] / total[found]
    low, high = np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"value": value, "low": float(low), "high": float(high)}
