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
    """Any selector at a layer: ``selector`` chooses at the input of ``layer``.

    A comparison of places must hold the method fixed: here a method for tokens before the language model sees
    the hidden states that enter a layer. `TFPSLayer` is ``SelectorAt(TFPS())`` with its options at hand.
    Source: that of its selector.

    Formula: that of its selector, on the hidden states entering the layer.

    Args:
        selector: the method that chooses. It must need no signals: those of the vision tower and of the
            prompt are not given inside the language model.
        layer: the layer whose input loses the tokens, from 1.

    Needs: the hidden states only.

    Costs: those of its selector.

    Decisions:

    - Counts are rounded as the selector rounds them.
    - Each view is chosen from by itself, whatever the selector's ``scope``.

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
        if self.selector.needs or self.selector.allocates:
            raise PruneError(
                f"selector={self.selector.name!r} reads more than the features it is given, which is not "
                "there inside the language model; choose with it before the model"
            )

    @property
    def scope(self) -> str:  # type: ignore[override]
        return self.selector.scope

    @property
    def rounding(self) -> str:  # type: ignore[override]
        return self.selector.rounding

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        return self.selector.select(tokens, counts)


@dataclass(frozen=True)
class RandomLayer(SelectorAt):
    """Random at a layer: the first k tokens of a fixed shuffle, inside the language model.

    It chooses the same tokens as `Random` does before the language model; what changes is how many layers
    those tokens have met before the others leave. Source: none, the control of methods that choose there.

    Formula: that of `Random`.

    Args:
        selector: the `Random` that chooses; its own fields are set there.
        layer: the layer whose input loses the tokens, from 1.

    Needs: nothing, not even the hidden states.

    Costs: those of `Random`; the layers before the chosen one see every token.

    Decisions:

    - Layer 1 by default, the first that can be chosen at, as close as can be to choosing before the model.

    Raises:
        PruneError: a layer below 1, or something that is no selector.
    """

    name: ClassVar[str] = "random-layer"
    selector: Selector = field(default_factory=Random)


@dataclass(frozen=True)
class StratifiedLayer(SelectorAt):
    """Stratified at a layer: an even cover of each picture, inside the language model.

    It chooses the same tokens as `Stratified` does before the language model; what changes is how many layers
    those tokens have met before the others leave. Source: none, the control of methods that spread their
    tokens there.

    Formula: that of `Stratified`.

    Args:
        selector: the `Stratified` that chooses; its own fields are set there.
        layer: the layer whose input loses the tokens, from 1.

    Needs: nothing, not even the hidden states.

    Costs: those of `Stratified`; the layers before the chosen one see every token.

    Decisions:

    - Layer 1 by default, the first that can be chosen at, as close as can be to choosing before the model.

    Raises:
        PruneError: a layer below 1, or something that is no selector.
    """

    name: ClassVar[str] = "stratified-layer"
    selector: Selector = field(default_factory=Stratified)


@dataclass(frozen=True)
class StrideLayer(SelectorAt):
    """Stride at a layer: every m-th token, inside the language model.

    It chooses the same tokens as `Stride` does before the language model; what changes is how many layers
    those tokens have met before the others leave. Source: none, the control that costs least there.

    Formula: that of `Stride`.

    Args:
        selector: the `Stride` that chooses; its own fields are set there.
        layer: the layer whose input loses the tokens, from 1.

    Needs: nothing, not even the hidden states.

    Costs: those of `Stride`; the layers before the chosen one see every token.

    Decisions:

    - Layer 1 by default, the first that can be chosen at, as close as can be to choosing before the model.

    Raises:
        PruneError: a layer below 1, or something that is no selector.
    """

    name: ClassVar[str] = "stride-layer"
    selector: Selector = field(default_factory=Stride)
