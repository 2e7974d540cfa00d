"""V2Drop, one stage: drop the tokens that a decoder layer changed least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..functional import ranking
from ..tokens import Selection, Signal, VisualTokens
from .base import LayerPruner
from .checks import check_choice, check_layer, check_scope

METRICS = ("l2", "l1", "cosine")


@dataclass(frozen=True)
class V2DropStage(LayerPruner):
    """V2Drop stage: keep the tokens that the layer before changed most.

    A token that a layer leaves as it was has nothing more to say or to hear, and may go. No attention, no
    text, no distances: the cheapest rule there is inside a language model. Source: "Variation-aware Vision
    Token Dropping for Faster Large Vision-Language Models" (V2Drop), CVPR 2026,
    arXiv 2509.01552, released code.

    Formula::

        score_i = |h_l,i - h_(l-1),i|_2, the hidden states entering this layer and the one before
        kept = the k largest scores

    Args:
        layer: decoder layer before which tokens leave; 3, the first of the released code's, by default.
        metric: "l2" as released, or "l1" or "cosine" (1 - cos) of the paper's ablation.
        scope: "sample" as released: all pictures form one pool. "view" treats each picture by itself.

    Needs: the hidden states entering the layer before.

    Costs: O(N D) and one sort.

    Decisions:

    - The change is that of a token as it entered the layer before, so a stage right behind another one
      reads hidden states from before that stage for the tokens still there.
    - For "cosine" a zero vector has cosine 0 with everything.
    """

    name: ClassVar[str] = "v2drop-stage"
    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.PREVIOUS})

    layer: int = 3
    metric: str = "l2"
    scope: str = "sample"

    def __post_init__(self) -> None:
        check_layer(self.name, self.layer)
        check_choice(self.name, "metric", self.metric, METRICS)
        check_scope(self.name, self.scope)

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        assert tokens.signals.previous is not None
        scores = variation(tokens.features, tokens.signals.previous, self.metric)
        return Selection(ranking.top(scores, counts, tokens.mask), list(counts))


def variation(now: Tensor, before: Tensor, metric: str) -> Tensor:
    """How much each token changed: ``(V, N, D)`` twice -> float32 ``(V, N)``."""
    now, before = now.float(), before.float()
    if metric == "cosine":
        return 1 - (F.normalize(now, dim=-1) * F.normalize(before, dim=-1)).sum(-1)
    return torch.linalg.vector_norm(now - before, ord=1 if metric == "l1" else 2, dim=-1)
