"""The interface of a method that chooses before the language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from ..tokens import Selection, VisualTokens


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

    @abstractmethod
    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        """Choose ``counts[v]`` tokens of view ``v``.

        Args:
            tokens: features ``(V, N, D)`` of every view of every sample, with their geometry.
            counts: one integer per view, ``1 <= counts[v] <= len(tokens.views[v])``.
        """
