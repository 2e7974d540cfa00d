"""Which rates a search may try: free rates within bounds, or every split of an exact budget."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from ..allocators.base import check_rate, count
from ..allocators.total import split
from ..errors import PruneError

Parameters = dict[str, float]


class Space(ABC):
    """Parameters of a search and what they mean. All are positive and searched on a log scale.

    Args:
        tokens: visual tokens of each camera, unpruned; its order is that of the cameras.
        rounding: how the method turns a rate into a count, see `allocators.count`.
    """

    low: float
    high: float

    def __init__(self, tokens: Mapping[str, int], rounding: str = "half-up") -> None:
        self.tokens, self.rounding = dict(tokens), rounding

    @abstractmethod
    def rates(self, parameters: Mapping[str, float]) -> dict[str, float]:
        """Rate of every camera, in (0, 1]."""

    @abstractmethod
    def starts(self) -> list[Parameters]:
        """What is tried before anything is sampled; the first is uniform."""

    @abstractmethod
    def levels(self) -> list[float]:
        """Values of every parameter in a grid search."""

    @property
    def names(self) -> list[str]:
        """One parameter per camera, called like it."""
        return list(self.tokens)

    def suggest(self, trial: Any) -> Parameters:
        """Let an Optuna trial choose."""
        return {name: trial.suggest_float(name, self.low, self.high, log=True) for name in self.names}

    def counts(self, rates: Mapping[str, float]) -> dict[str, int]:
        """Tokens that each camera keeps at these rates."""
        return {camera: count(n, rates[camera], self.rounding) for camera, n in self.tokens.items()}


class FreeRates(Space):
    """Every camera's rate on its own, within bounds. The released search has 0.1 to 1.

    Args:
        starts: uniform rates to try first.
    """

    def __init__(
        self,
        tokens: Mapping[str, int],
        low: float = 0.02,
        high: float = 1.0,
        starts: Sequence[float] = (0.1,),
        rounding: str = "half-up",
    ) -> None:
        super().__init__(tokens, rounding)
        self.low, self.high = check_rate(low, "lowest rate"), check_rate(high, "highest rate")
        if low >= high:
            raise PruneError(f"bounds {low:g} to {high:g} leave nothing to search. Put the lower one first.")
        self._starts = [min(max(check_rate(share, "first rate"), low), high) for share in starts]

    def rates(self, parameters: Mapping[str, float]) -> dict[str, float]:
        # Rounded to what makes a count, in parts per million, so that files and processes agree.
        return {camera: max(round(parameters[camera], 6), 1e-6) for camera in self.tokens}

    def starts(self) -> list[Parameters]:
        return [dict.fromkeys(self.tokens, share) for share in dict.fromkeys(self._starts)]

    def levels(self) -> list[float]:
        known = [level for level in (0.05, 0.1, 0.25, 0.5, 1.0) if self.low <= level <= self.high]
        return sorted({self.low, self.high, *known})


class BudgetSplit(Space):
    """Every split of the tokens that a uniform rate would keep: no trial keeps more, none fewer.

    A parameter is how a camera's rate compares with the others', from 1/``spread`` to ``spread``. So
    rates far below the uniform one can be reached, and the uniform split is the point in the middle.

    Args:
        share: the uniform rate whose number of tokens is the budget.

    Raises:
        PruneError: a share outside (0, 1], or a spread of 1 or less.
    """

    def __init__(
        self, tokens: Mapping[str, int], share: float, spread: float = 4.0, rounding: str = "half-up"
    ) -> None:
        super().__init__(tokens, rounding)
        self.share = check_rate(share, "budget")
        if not math.isfinite(spread) or spread <= 1:
            raise PruneError(f"spread {spread!r} leaves nothing to search. Give more than 1, such as 4.")
        self.low, self.high = 1 / spread, spread
        self._uniform = [count(n, share, rounding) for n in self.tokens.values()]
        self.total = sum(self._uniform)
        if len(self.tokens) < 2 or self.total in (len(self.tokens), sum(self.tokens.values())):
            raise PruneError(
                f"budget {share:g} keeps {self.total} of {sum(self.tokens.values())} tokens of "
                f"{len(self.tokens)} cameras, which can be split in one way only. Give another one."
            )

    def rates(self, parameters: Mapping[str, float]) -> dict[str, float]:
        weights = [parameters[camera] for camera in self.tokens]
        if len(set(weights)) == 1:  # cameras of unequal length: proportions would round otherwise
            return exact_rates(self.tokens, self._uniform)
        return exact_rates(self.tokens, split(self.total, list(self.tokens.values()), weights))

    def starts(self) -> list[Parameters]:
        return [dict.fromkeys(self.tokens, 1.0)]

    def levels(self) -> list[float]:
        return [self.high**-0.5, 1.0, self.high**0.5]


def even_rates(tokens: Mapping[str, int], kept: int) -> dict[str, float]:
    """Rates that share out ``kept`` tokens evenly: what a search of as many tokens has to beat."""
    return exact_rates(tokens, split(kept, list(tokens.values()), [1.0] * len(tokens)))


def exact_rates(tokens: Mapping[str, int], kept: Sequence[int]) -> dict[str, float]:
    """Rates, in whole millionths, that keep just so many tokens of each camera however they are rounded."""
    return {camera: _exact(n, k) for (camera, n), k in zip(tokens.items(), kept, strict=True)}


def _exact(n: int, k: int) -> float:
    """The lowest such rate: upwards, since some methods cut off, and floating point may fall short."""
    millionths = -(-1_000_000 * k // n)
    while count(n, millionths / 1_000_000, "truncate") < k:
        millionths += 1
    return min(millionths / 1_000_000, 1.0)
