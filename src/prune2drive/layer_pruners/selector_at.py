"""Any selector inside the language model: it sees the hidden states entering a layer.

Idea: a comparison of places must hold the method fixed. The controls that ignore features choose the
same tokens here as before the language model; what changes is how many layers those tokens have met.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ..errors import PruneError
from ..selectors.base import Selector
from ..selectors.random import Random
from ..selectors.stratified import Stratified
from ..selectors.stride import Stride
from ..tokens import Selection, VisualTokens
from .base import LayerPruner


@dataclass(frozen=True)
class SelectorAt(LayerPruner):
    """Let ``selector`` choose at the input of ``layer`` (1 or later).

    `TFPSLayer` is ``SelectorAt(TFPS())`` with its options at hand.

    Raises:
        PruneError: a layer below 1, or something that is no selector.
    """

    name: ClassVar[str] = "selector-at"
    selector: Selector
    layer: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.selector, Selector):
            raise PruneError(f"selector={self.selector!r} is no Selector; pass one such as Random()")
        if isinstance(self.layer, bool) or not isinstance(self.layer, int) or self.layer < 1:
            raise PruneError(
                f"layer={self.layer!r}: a stage inside the language model starts at layer 1 or later; "
                f"to choose before the model use method={self.selector.name!r}"
            )

    @property
    def rounding(self) -> str:  # type: ignore[override]
        return self.selector.rounding

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        return self.selector.select(tokens, counts)


@dataclass(frozen=True)
class RandomLayer(SelectorAt):
    """Random selection at the input of a decoder layer: the control of methods that choose there."""

    name: ClassVar[str] = "random-layer"
    selector: Selector = field(default_factory=Random)


@dataclass(frozen=True)
class StratifiedLayer(SelectorAt):
    """Stratified selection at the input of a decoder layer: even cover of each picture."""

    name: ClassVar[str] = "stratified-layer"
    selector: Selector = field(default_factory=Stratified)


@dataclass(frozen=True)
class StrideLayer(SelectorAt):
    """Every m-th token at the input of a decoder layer: the cheapest control there."""

    name: ClassVar[str] = "stride-layer"
    selector: Selector = field(default_factory=Stride)
