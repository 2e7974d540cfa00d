"""The interface of a method that chooses before the language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from ..tokens import Selection, Signal, VisualTokens


class Selector(ABC):
    """Chooses tokens of each view, given how many to keep.

    A method only chooses: it never sorts, gathers, masks or touches positions; the engine does.
    Subclasses are dataclasses whose fields are the method's hyper-parameters.
    """

    name: ClassVar[str]
    """The name users write in ``method="..."``."""
    rounding: str = "half-up"
    """How a rate becomes a count: "half-up", or "truncate" for the released code's rule."""
    nested: ClassVar[bool] = False
    """Whether fewer tokens are always the first of more, so that one order serves every rate."""
    needs: ClassVar[frozenset[Signal]] = frozenset()
    """Signals it reads besides the features; a model that cannot give one refuses the method."""
    scope: str = "view"
    """"view": rows are views; "sample": a row is all views of a sample, and they share its total."""
    allocates: ClassVar[bool] = False
    """Whether it splits a sample's total over the views by itself: only the sum of its counts is asked."""
    merges: ClassVar[bool] = False
    """Whether its selections have ``features``: kept tokens take in some of those that leave."""
    proportional: ClassVar[bool] = False
    """Whether attention counts its merged tokens for as many as they are, by the ``sizes`` it returns."""

    @abstractmethod
    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        """Choose ``counts[v]`` tokens of view ``v``.

        Args:
            tokens: features ``(V, N, D)`` of every view of every sample, with their geometry.
            counts: one integer per row, ``1 <= counts[v] <= len(tokens.views[v])``. Views that an earlier
                stage emptied are left out.
        """
