"""Total: an exact number of tokens for the whole sample, shared out over its cameras."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Real

from ..errors import PruneError
from ..rig import Rig
from ..tokens import View
from .base import Allocator, check_cameras, check_named


@dataclass(frozen=True)
class Total(Allocator):
    """Keep exactly ``tokens`` tokens of a sample, in proportion to view length times weight.

    ``weights``: relative weight per camera; ``"*"`` (else 1) for those not named. Every view keeps
    at least one token and at most all it has; what a bound takes or leaves, the others share.
    Fractions go to the largest remainders, the first view first. Rounding rules do not apply.

    Unlike with `Uniform` and `Rates`, a view's count depends on which others are in the sample.

    Raises:
        PruneError: ``tokens`` or a weight is not positive; in `allocate`, fewer tokens than views,
            or more than there are.
    """

    tokens: int
    weights: Mapping[str, float] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if isinstance(self.tokens, bool) or not isinstance(self.tokens, int) or self.tokens < 1:
            raise PruneError(
                f"total {self.tokens!r} is not a whole number of tokens; for a share write retention=0.10"
            )
        for name, weight in (self.weights or {}).items():
            number = isinstance(weight, Real) and not isinstance(weight, bool)
            if not number or not math.isfinite(weight) or weight <= 0:
                raise PruneError(f"weight of {name}, {weight!r}, is not a positive number")

    def allocate(self, views: Sequence[View], rig: Rig | None, rounding: str = "half-up") -> list[int]:
        weights = self.weights or {}
        check_named(weights, views, rig, "a weight")
        check_cameras(views, rig, weights)
        if not views:
            return []
        lengths = [len(view) for view in views]
        if self.tokens < len(views):
            raise PruneError(
                f"total {self.tokens} is less than one token for each of {len(views)} views "
                f"({', '.join(view.name for view in views)}); give at least {len(views)}"
            )
        if self.tokens > sum(lengths):
            raise PruneError(
                f"total {self.tokens} is more than the {sum(lengths)} visual tokens of the sample"
            )
        default = weights.get("*", 1)
        return split(self.tokens, lengths, [float(weights.get(view.name, default)) for view in views])


def split(tokens: int, lengths: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Share out ``tokens`` over views in proportion to length times weight, 1 <= k <= length each.

    ``tokens`` lies between the number of views and their total length; weights are positive.
    """
    # Fractions: exact, so that no platform's rounding moves a token between cameras.
    shares = [n * Fraction(weight) for n, weight in zip(lengths, weights, strict=True)]
    return largest_remainder(_water_fill(shares, lengths, tokens))


def largest_remainder(quotas: Sequence[Fraction]) -> list[int]:
    """Round quotas that sum to a whole number to integers of the same sum; ties to the first."""
    counts = [math.floor(quota) for quota in quotas]
    left = int(sum(quotas)) - sum(counts)
    by_remainder = sorted(range(len(quotas)), key=lambda v: counts[v] - quotas[v])
    for v in by_remainder[:left]:
        counts[v] += 1
    return counts


def _water_fill(shares: Sequence[Fraction], lengths: Sequence[int], total: int) -> list[Fraction]:
    """Return q with ``sum(q) == total`` and ``q[v] == clip(level * shares[v], 1, lengths[v])``."""
    fixed: dict[int, int] = {}
    while True:
        free = [v for v in range(len(shares)) if v not in fixed]
        if not free:
            return [Fraction(fixed[v]) for v in range(len(shares))]
        level = (total - sum(fixed.values())) / sum((shares[v] for v in free), Fraction(0))
        low = [v for v in free if level * shares[v] < 1]
        high = [v for v in free if level * shares[v] > lengths[v]]
        if not low and not high:
            return [Fraction(fixed[v]) if v in fixed else level * shares[v] for v in range(len(shares))]
        missing = sum((1 - level * shares[v] for v in low), Fraction(0))
        excess = sum((level * shares[v] - lengths[v] for v in high), Fraction(0))
        # Pinning the side that is further out moves the level the other way, so a pin never has to
        # be taken back. When both are equal the level is already right and both sides are pinned.
        if missing >= excess:
            fixed.update(dict.fromkeys(low, 1))
        if excess >= missing:
            fixed.update({v: lengths[v] for v in high})
