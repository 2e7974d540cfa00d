"""V2Drop: drop, at three depths, the tokens that a layer changed least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..layer_pruners.checks import check_choice, check_scope
from ..layer_pruners.v2drop import METRICS, V2DropStage
from .base import Schedule
from .placing import check_layers, check_strength, place

LAYERS = (3, 17, 22)
"""The released code's, of 32."""


@dataclass(frozen=True)
class V2Drop(Schedule):
    """V2Drop: three times, keep the tokens that the layer before changed most.

    Tokens that a layer leaves as they were can go early, and by the last third of the language model nearly
    all of them have been read. Source: "Variation-aware Vision Token Dropping for Faster Large
    Vision-Language Models" (V2Drop), CVPR 2026, arXiv 2509.01552, released code: layers 3, 17 and 22 of 32.

    Formula::

        score_i = |h_l,i - h_(l-1),i|_2, see `V2DropStage`
        shares of the original tokens at strength s: s, s^2, max(0, 2 s - 1)

    Args:
        layers: the three decoder layers; None takes 3, 17 and 22 of 32 at the same depth of the model.
        metric: "l2" as released, or "l1" or "cosine" of the paper's ablation.
        scope: "sample" as released: all pictures form one pool. "view" treats each picture by itself.

    Needs: at each stage, the hidden states entering the layer before.

    Costs: O(N D) and one sort per stage.

    Decisions:

    - Shares: the paper keeps half, half of that, and then a single token, which is strength 1/2. The
      first two stages keep the same share of what is left, as there; the last is 0 up to that strength and
      rises from there, on the tangent to the second, to everything at strength 1. Where it is 0 one token
      per camera is kept.
    - The layers before the first stage see all tokens: 3 of 32 layers are 9.4% on average, and no budget
      below that can be met. Give other ``layers`` for less.
    """

    name: ClassVar[str] = "v2drop"

    layers: tuple[int, ...] | None = None
    metric: str = "l2"
    scope: str = "sample"

    def __post_init__(self) -> None:
        check_layers(self.name, self.layers, len(LAYERS))
        check_choice(self.name, "metric", self.metric, METRICS)
        check_scope(self.name, self.scope)

    def stages(self, depth: int) -> Sequence[V2DropStage]:
        layers = place(self.name, self.layers, LAYERS, depth)
        return [V2DropStage(layer, self.metric, self.scope) for layer in layers]

    def shares(self, strength: float) -> Sequence[float]:
        check_strength(self.name, strength)
        return strength, strength**2, max(0.0, 2 * strength - 1)
