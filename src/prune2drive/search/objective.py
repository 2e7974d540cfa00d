"""What a search maximises: the paper's M = R - lambda * P, with R made of any scores of answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real

from ..errors import PruneError, did_you_mean
from .task import PARTS


@dataclass(frozen=True)
class Objective:
    """``M(a) = R(a) - penalty * sum_v a_v``, where R is a weighted sum of scores and a_v the rates.

    Source: Prune2Drive, CVPR 2026, arXiv 2508.13305, section on view-adaptive pruning; the released
    search uses R = 0.5 language + 0.5 accuracy and lambda = 0.03.

    Args:
        parts: weight of each score in `PARTS`, such as ``{"exact": 0.5, "likelihood": 0.5}``.
        penalty: lambda, at least 0. The sum over six cameras is at most 6, so 0.03 takes up to 0.18.

    Raises:
        PruneError: an unknown part, a weight that is not positive, a negative penalty.
    """

    parts: Mapping[str, float] = field(default_factory=lambda: {"likelihood": 1.0})
    penalty: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.parts, Mapping) or not self.parts:
            raise PruneError(f"the objective needs scores, got {self.parts!r}. Known: {', '.join(PARTS)}.")
        for part, weight in self.parts.items():
            if part not in PARTS:
                raise PruneError(
                    f"unknown score {part!r}.{did_you_mean(part, PARTS)} Known: {', '.join(PARTS)}."
                )
            if not _number(weight) or weight <= 0:
                raise PruneError(f"weight of {part}, {weight!r}, is not a positive number.")
        if not _number(self.penalty) or self.penalty < 0:
            raise PruneError(
                f"penalty (lambda) {self.penalty!r} is negative or no number; more tokens would be a gain. "
                "Give 0 or more, such as 0.03."
            )

    def check(self, offered: Iterable[str]) -> None:
        """Refuse parts that a task does not score."""
        offered = list(offered)
        for part in self.parts:
            if part not in offered:
                raise PruneError(f"this data has no score {part!r}. It has: {', '.join(offered)}.")

    def reward(self, means: Mapping[str, float]) -> float:
        """R: the weighted sum of mean scores."""
        return sum(weight * means[part] for part, weight in self.parts.items())

    def value(self, means: Mapping[str, float], rates: Mapping[str, float]) -> float:
        """M: the reward less the penalty."""
        return self.reward(means) - self.penalty * sum(rates.values())

    def __str__(self) -> str:
        reward = " + ".join(f"{weight:g} {part}" for part, weight in self.parts.items())
        return f"{reward} - {self.penalty:g} x sum of rates" if self.penalty else reward


def _number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
