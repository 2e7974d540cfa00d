"""The interface of a method that chooses inside the language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from ..tokens import Selection, Signal, VisualTokens


class LayerPruner(ABC):
    """Chooses tokens of each view at the input of a decoder layer.

    Subclasses are dataclasses; ``layer`` is counted from 0. Layers before it run, and cache, the
    full sequence. As with selectors, the engine does all surgery.
    """

    name: ClassVar[str]
    layer: int
    rounding: str = "half-up"
    needs: ClassVar[frozenset[Signal]] = frozenset()
    """As `Selector.needs`."""
    scope: str = "view"
    """As `Selector.scope`."""
    allocates: ClassVar[bool] = False
    """As `Selector.allocates`."""
    merges: ClassVar[bool] = False
    """As `Selector.merges`."""
    proportional: ClassVar[bool] = False
    """As `Selector.proportional`."""

    @abstractmethod
    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        """Choose ``counts[v]`` tokens of view ``v``.

        Args:
            tokens: hidden states ``(V, N, D)`` entering the layer, for the tokens still there.
            counts: one integer per row, ``1 <= counts[v] <= len(tokens.views[v])``. Views that an earlier
                stage emptied are left out.
        """
