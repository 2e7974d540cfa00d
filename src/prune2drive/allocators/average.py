"""Layer-averaged budgets: as many visual tokens as a decoder layer sees on average.

The one number that makes methods comparable that choose at different layers: a method that keeps 64 tokens
from layer 2 on of 32 has its layers see 96 of 576 on average, one that keeps 64 before the first layer 64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from numbers import Real

from ..errors import PruneError
from ..rig import Rig
from ..tokens import View
from .base import Allocator, check_cameras, check_rate
from .total import split

_STEPS = 50


@dataclass(frozen=True)
class LayerAveraged:
    """Ask for a layer-averaged budget: ``retention`` of the tokens, or a number of ``tokens`` per sample.

    Every stage's count follows from it, evenly over the cameras, and the average is met from below: no
    stage could keep one token more without exceeding it, or keeping what the stage before dropped.

    Raises:
        PruneError: none of the two or both, or a value that is no share or no number of tokens.
    """

    retention: float | None = None
    tokens: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if (self.retention is None) == (self.tokens is None):
            raise PruneError("give LayerAveraged a retention, as in 0.10, or tokens=64, and not both")
        if self.retention is not None:
            check_rate(self.retention, "layer-averaged retention")
            return
        number = isinstance(self.tokens, Real) and not isinstance(self.tokens, bool)
        if not number or not 0 < self.tokens < math.inf:  # type: ignore[operator]
            raise PruneError(f"layer-averaged tokens={self.tokens!r} is not a positive number of tokens")

    def target(self, visual: int) -> Fraction:
        """Tokens that a layer should see on average, of a sample's ``visual``."""
        if self.retention is not None:
            return Fraction(round(self.retention * 1_000_000) * visual, 1_000_000)
        return min(Fraction(str(self.tokens)), Fraction(visual))


@dataclass(frozen=True)
class Plan:
    """How the stages of a method share a layer-averaged budget.

    ``starts``: the layer from which each stage's count holds, 0 before the language model; ascending.
    ``shares``: strength in [0, 1] -> share of the tokens each stage keeps, none falling with strength.
    """

    asked: LayerAveraged
    starts: tuple[int, ...]
    depth: int
    shares: Callable[[float], Sequence[float]]
    name: str

    def totals(self, visual: int, views: int) -> list[int]:
        """Tokens of a sample that each stage keeps; at least one for each of its ``views``.

        Raises:
            PruneError: even the fewest tokens are more on average than asked.
        """
        return list(_totals(self, visual, views))

    def solve(self, visual: int, views: int) -> list[int]:
        """`totals`, computed anew."""
        target = self.asked.target(visual)
        fewest = self.average(self._counts(0.0, visual, views), visual)
        if fewest > target:
            full = "" if self.starts[0] == 0 else f"; the layers before {self.starts[0]} see all {visual}"
            raise PruneError(
                f"{self.name}: {float(target):g} tokens on average asked, of {visual} in {self.depth} layers "
                f"it keeps at least {float(fewest):g}{full}. Ask for more, choose at an earlier layer, or "
                "put a method before the language model"
            )
        low, high = 0.0, 1.0
        for _ in range(_STEPS):
            middle = (low + high) / 2
            fits = self.average(self._counts(middle, visual, views), visual) <= target
            low, high = (middle, high) if fits else (low, middle)
        counts = self._counts(1.0, visual, views)
        if self.average(counts, visual) > target:
            counts = self._counts(low, visual, views)
        # What whole tokens left over goes to the last stages, where one more costs least; when one stage has
        # grown, those behind it may have room again.
        before: list[int] = []
        while counts != before:
            before = list(counts)
            for stage in reversed(range(len(counts))):
                spare = int((target - self.average(counts, visual)) * self.depth / self._layers()[stage])
                most = counts[stage - 1] if stage else visual
                counts[stage] += min(spare, most - counts[stage])
        return counts

    def average(self, counts: Sequence[int], visual: int) -> Fraction:
        """Mean over the layers of the visual tokens they see, if the stages keep ``counts``."""
        seen = visual * self.starts[0] + sum(n * k for n, k in zip(self._layers(), counts, strict=True))
        return Fraction(seen, self.depth)

    def _layers(self) -> list[int]:
        """How many layers each stage's count holds for."""
        ends = [*self.starts[1:], self.depth]
        return [end - start for start, end in zip(self.starts, ends, strict=True)]

    def _counts(self, strength: float, visual: int, views: int) -> list[int]:
        counts: list[int] = []
        for share in self.shares(strength):
            most = counts[-1] if counts else visual
            counts.append(min(max(int(share * visual), views), most))
        return counts


@lru_cache(maxsize=4096)
def _totals(plan: Plan, visual: int, views: int) -> tuple[int, ...]:
    return tuple(plan.solve(visual, views))


@dataclass(frozen=True)
class AveragedStage(Allocator):
    """What stage number ``stage`` of a plan keeps of each view: even shares of the stage's total."""

    plan: Plan
    stage: int

    def allocate(self, views: Sequence[View], rig: Rig | None, rounding: str = "half-up") -> list[int]:
        check_cameras(views, rig)
        counts = [len(view) for view in views]
        if not views:
            return []
        # Each stage shares out within what the one before left, so that no view's count ever grows.
        for total in self.plan.totals(sum(counts), len(views))[: self.stage + 1]:
            counts = split(total, counts, [1.0] * len(counts))
        return counts
