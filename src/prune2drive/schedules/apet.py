"""ApET: keep what a small basis explains worst, before the language model and half-way through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..layer_pruners.apet import ApETStage
from ..layer_pruners.base import LayerPruner
from ..selectors.base import Selector
from .base import Schedule
from .placing import check_layers, check_strength, place

LAYERS = (16,)
"""Of the second stage, of 32."""


@dataclass(frozen=True)
class ApET(Schedule):
    """ApET: twice, keep the tokens that a small linear basis approximates worst and merge the others.

    Neither attention nor text is asked, so every attention kernel will do. Source: ApET, CVPR 2026,
    arXiv 2602.19870, released code: 96 of 576 tokens before the language model, 32 from layer 16 of 32 on.

    Formula::

        err_i = |x_i - S^T (S S^T + ridge I)^-1 S x_i|_2, S a basis of 10 tokens, see `ApETStage`
        shares of the original tokens at strength s: s, max(s, 4 s - 1) / 3

    Args:
        layers: the decoder layer of the second stage, as a tuple; None takes 16 of 32 at the same depth
            of the model (14 of 28, as the released code for Qwen2.5-VL does).

    Needs: what its first stage needs; the second needs hidden states alone.

    Costs: O(N^2 D) per view for the first stage's farthest point sampling.

    Decisions:

    - Shares: all settings of the paper keep a third in the second stage (96 -> 32 of 576, 192 -> 64 of
      2880, 0.3 -> 0.1), so the second share is a third of the first up to strength 1/3; from there it
      rises in a straight line to everything at strength 1.
    """

    name: ClassVar[str] = "apet"

    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_layers(self.name, self.layers, len(LAYERS))

    def stages(self, depth: int) -> Sequence[Selector | LayerPruner]:
        from ..selectors.apet import ApETSelect

        return [ApETSelect(), *(ApETStage(at) for at in place(self.name, self.layers, LAYERS, depth))]

    def shares(self, strength: float) -> Sequence[float]:
        check_strength(self.name, strength)
        return strength, max(strength, 4 * strength - 1) / 3
