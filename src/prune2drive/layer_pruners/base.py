"""The interface of a method that chooses inside the language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from ..tokens import Selection, VisualTokens


class LayerPruner(ABC):
    """Chooses tokens of each view at the input of a decoder layer.

    Subclasses are dataclasses; ``layer`` is counted from 0. Layers before it run, and cache, the
    full sequence. As with selectors, the engine does all surgery.
    """

    name: ClassVar[str]
    layer: int
    rounding: str = "half-up"

    @abstractmethod
    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        """Choose ``counts[v]`` tokens of view ``v``.

        Args:
            tokens: hidden states ``(V, N, D)`` entering the layer, for the tokens still there.
            counts: one integer per view, ``1 <= counts[v] <= len(tokens.views[v])``.
        """
