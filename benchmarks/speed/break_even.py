"""Where pruning does not pay: choosing and the shorter prefill against the prefill as it was."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from prune2drive.profiling.timing import summary

from .bench import Bench
from .calls import Variant, alternate, make

RETENTIONS = (1.0, 0.95, 0.75, 0.5, 0.25)
QUICK = (1.0, 0.75, 0.25)

Point = tuple[float, float]
"""Retention, and choosing, cutting the prompt and prefill there over the unpruned prefill."""


def measure(bench: Bench, shape: str, cameras: int, mode: str) -> dict[str, dict[str, Any]]:
    """The row of one prompt at batch 1."""
    inputs = bench.inputs(shape, 1, cameras)
    retentions = QUICK if bench.setting.quick else RETENTIONS
    variants: dict[float, Variant] = {r: make(mode, bench, shape, inputs, r, cameras, 0) for r in retentions}
    alternate(variants, max(2, bench.setting.repeat // 2 + 1), 0)
    # Against the unpruned reading of the same round: a slow minute hits both.
    base = variants[1.0].after_encoding()
    points, chosen = [], []
    for r in retentions[1:]:
        both = zip(variants[r].after_encoding(), base, strict=True)
        points.append((r, statistics.median(own / whole for own, whole in both)))
        chosen.append(summary(variants[r].times["select_ms"]))
    name = f"break_even/{shape}-b1-{cameras}cam-{mode}"
    return {
        name: {
            "shape": shape,
            "batch": 1,
            "cameras": cameras,
            "mode": mode,
            "tokens": variants[1.0].tokens,
            "select_ms": dict(zip((f"{r:g}" for r, _ in points), chosen, strict=True)),
            "unpruned_ms": summary(base),
            "points": [list(point) for point in points],
            "pays_at": {f"{r:g}": ratio < 1 for r, ratio in points},
            "break_even_retention": crossing(points),
        }
    }


def crossing(points: Sequence[Point]) -> float | None:
    """The retention above which choosing costs more than it saves, between measured points by a line.

    Seen from below: the first retention at which the ratio reaches 1. None: it never does where it was
    measured. 0.0: it is never below.
    """
    ordered = sorted(points)
    if ordered[0][1] >= 1:
        return 0.0
    for (low, under), (high, over) in pairwise(ordered):
        if over >= 1:
            return low + (high - low) * (1 - under) / (over - under)
    return None
