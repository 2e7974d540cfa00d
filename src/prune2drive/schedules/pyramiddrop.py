"""PyramidDrop: drop a fixed part of the visual tokens at every quarter of the depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..layer_pruners.attention_rank import AttentionRank
from ..layer_pruners.checks import check_scope
from .base import Schedule
from .placing import check_layers, check_strength, place

LAYERS = (8, 16, 24)


@dataclass(frozen=True)
class PyramidDrop(Schedule):
    """PyramidDrop: at every quarter of the depth, keep a part, by the last token's attention.

    Visual tokens grow redundant with depth, so shallow layers keep all of them and each later quarter of the
    layers a fixed part of the quarter before. Source: "PyramidDrop: Accelerating Your Large Vision-Language
    Models via Pyramid Visual Redundancy Reduction", CVPR 2025, arXiv 2410.17247, and its released code.

    Formula: stage ``s = 1, 2, 3`` (`AttentionRank`, at layers 8, 16, 24 of 32) keeps ``strength ** s`` of the
    original tokens; the paper's 0.5, 0.25, 0.125 are strength 0.5.

    Args:
        layers: layers whose input loses tokens, ascending, as many as you like; None (default) for the
            paper's, at the same shares of the model's depth.
        scope: "sample" (the paper's): all images of a sample are ranked together; "view": each camera keeps
            its own budget.

    Needs: at every stage, the attention that its layer is about to pay from the instruction.

    Costs: one row of attention and one sort per stage, ``O(N D + N log N)``.

    Decisions:
        * One ratio serves all stages, as in the paper. The layers before the first stage see every token: at
          the paper's layers the average over depth cannot fall below 25%; ``layers=(1, ...)`` goes lower.
        * Published numbers renumber the positions (``positions="reindex"``).
    """

    name: ClassVar[str] = "pyramiddrop"

    layers: tuple[int, ...] | None = None
    scope: str = "sample"

    def __post_init__(self) -> None:
        check_layers(self.name, self.layers)
        check_scope(self.name, self.scope)

    def stages(self, depth: int) -> Sequence[AttentionRank]:
        layers = place(self.name, self.layers, LAYERS, depth)
        return [AttentionRank(layer, rows="last", scope=self.scope) for layer in layers]

    def shares(self, strength: float) -> Sequence[float]:
        check_strength(self.name, strength)
        return tuple(strength**stage for stage in range(1, len(self.layers or LAYERS) + 1))
