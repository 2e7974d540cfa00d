"""FastV: keep the tokens that the prompt's last token looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..functional.ranking import top
from ..tokens import Selection, Signal, VisualTokens
from .base import LayerPruner
from .checks import check_layer, check_scope


@dataclass(frozen=True)
class FastV(LayerPruner):
    """FastV: keep the visual tokens that the prompt's last token attends to most in an early layer.

    After a few layers most visual tokens receive next to no attention, so the attention that the last token
    paid in the layer before tells which ones the answer will use. Source: "An Image is Worth 1/2 Tokens After
    Layer 2: Plug-and-Play Inference Acceleration for Large Vision-Language Models", ECCV 2024,
    arXiv 2403.06764, and its released code.

    Formula: ``score_i = mean over heads of attention[layer - 1][last token, i]``; the highest scores stay.

    Args:
        layer: the layer whose input loses the tokens. 2 is the paper's K; the released demo uses 3.
        scope: "sample" (the paper's): all images of a sample are ranked together; "view": each camera keeps
            its own budget.

    Needs: the attention of the last token in layer ``layer - 1``.

    Costs: one sort, ``O(N log N)`` per row; the one row of attention that it reads dominates, ``O(N D)``.

    Decisions:
        * The paper speaks of the attention a token receives on average, its code reads the last token's row:
          the row it is.
        * The number of tokens is the budget's, not ``round(N (1 - R))``; the choice is made once, at prefill.
        * Published numbers keep the original positions (``positions="keep"``).
    """

    name: ClassVar[str] = "fastv"
    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.LAST_ATTENTION})

    layer: int = 2
    scope: str = "sample"

    def __post_init__(self) -> None:
        check_layer(self.name, self.layer)
        check_scope(self.name, self.scope)

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        attention = tokens.signals.last_attention
        assert attention is not None
        return Selection(top(attention.float().mean(-1), counts, tokens.mask), list(counts))
