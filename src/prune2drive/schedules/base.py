"""The interface of a method that works in several stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from ..errors import PruneError
from ..layer_pruners.base import LayerPruner
from ..selectors.base import Selector


class Schedule(ABC):
    """Which stages a model of some depth gets, and what share of the tokens each one keeps.

    One number asks for the whole: with ``retention=0.10`` a decoder layer sees 10% of the visual tokens
    on average, and the engine finds the strength at which `shares` keeps that many. A list of one
    retention per stage sets them by hand.
    """

    name: ClassVar[str]

    @abstractmethod
    def stages(self, depth: int) -> Sequence[Selector | LayerPruner]:
        """The stages for a language model of ``depth`` layers, in the order a token meets them."""

    @abstractmethod
    def shares(self, strength: float) -> Sequence[float]:
        """Share of the original tokens that each stage keeps, in [0, 1] and never growing.

        Args:
            strength: in [0, 1], 0 the fewest tokens and 1 the most; no share falls when it grows.
        """


def scaled(layers: Sequence[int], depth: int, of: int = 32) -> tuple[int, ...]:
    """Layers of a model of ``of`` layers, at the same share of the way through one of ``depth``.

    They stay ascending, distinct and at least 1 (a 0 stays 0).

    Raises:
        PruneError: the model is too shallow to hold them all.
    """
    out: list[int] = []
    for number, layer in enumerate(layers):
        nearest = (2 * layer * depth + of) // (2 * of)
        last = depth - (len(layers) - number)  # room for the stages to come
        at = 0 if layer == 0 else max(1, min(nearest, last))
        out.append(max(at, out[-1] + 1) if out else at)
    if out[-1] >= depth:
        raise PruneError(
            f"stages at layers {list(layers)} of {of} do not fit a language model of {depth} layers; "
            "give layers=(...) of your own"
        )
    return tuple(out)
