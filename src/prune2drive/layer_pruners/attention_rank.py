"""Attention rank: keep the tokens that the instruction is about to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..errors import PruneError
from ..functional.ranking import top
from ..functional.text_rows import last_only, mean_paid, of_samples
from ..tokens import Selection, Signal, VisualTokens
from .base import LayerPruner
from .checks import check_choice, check_layer, check_scope

ROWS = ("last", "text")


@dataclass(frozen=True)
class AttentionRank(LayerPruner):
    """Attention rank: keep the visual tokens that the instruction is about to attend to in this layer.

    The layer's own norm, projections and positions applied to what enters it give its attention before it
    runs, at the price of a few rows; the visual tokens those rows look past can leave. Source: one stage of
    "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
    CVPR 2025, arXiv 2410.17247, and its released code; averaged over the text, the second stage of DUET-VLM
    (CVPR 2026, arXiv 2602.18846).

    Formula: ``score_i = mean over heads and rows r of softmax(q_r K^T / sqrt(d))_i`` with the queries and
    keys of layer ``layer``; the highest scores stay.

    Args:
        layer: the layer whose input loses the tokens. 8 is the first of the paper's stages in a model of 32
            layers.
        rows: whose attention counts. "last" (PyramidDrop's): the last instruction token; "text": all
            instruction tokens, averaged.
        scope: "sample" (the papers'): all images of a sample are ranked together; "view": each camera keeps
            its own budget.

    Needs: the attention that layer ``layer`` is about to pay from the instruction.

    Costs: the rows of attention dominate, ``O(N D)`` per row of text, then a sort, ``O(N log N)``.

    Decisions:
        * Equal scores go to the token that comes first.
        * DUET's salient words need part-of-speech tags, and a method sees no words: ``rows="salient"`` is
          refused, "text" is that paper's own fallback.
    """

    name: ClassVar[str] = "attention-rank"
    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.OWN_ATTENTION})

    layer: int = 8
    rows: str = "last"
    scope: str = "sample"

    def __post_init__(self) -> None:
        check_layer(self.name, self.layer)
        check_scope(self.name, self.scope)
        if self.rows == "salient":
            raise PruneError(
                f"{self.name}: rows='salient' needs part-of-speech tags, and a method sees token states "
                "only; use rows='text'"
            )
        check_choice(self.name, "rows", self.rows, ROWS)

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        attention, real = tokens.signals.own_attention, tokens.signals.text_mask
        assert attention is not None and real is not None
        rows = of_samples(last_only(real) if self.rows == "last" else real, tokens.samples)
        return Selection(top(mean_paid(attention, rows), counts, tokens.mask), list(counts))
