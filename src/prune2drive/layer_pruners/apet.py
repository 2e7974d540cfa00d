"""ApET, stage 2: the reconstruction rule on the hidden states of a decoder layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..functional.merging import merge, sizes
from ..functional.reconstruction import reconstruct
from ..tokens import Selection, VisualTokens
from .base import LayerPruner
from .checks import check_choice, check_count, check_layer, check_positive

STARTS = ("isolated", "center")


@dataclass(frozen=True)
class ApETStage(LayerPruner):
    """ApET stage 2: keep the hidden states that a small linear basis explains worst, merge the others.

    A few basis tokens span most of a picture; what they cannot rebuild is information that would be lost.
    Dropped tokens are averaged into the kept token most like them. Source: ApET, CVPR 2026, arXiv
    2602.19870, the stage inside the language model, released code at layer 16 of LLaVA-1.5 and 14 of Qwen.

    Formula::

        S = the basis: b tokens by farthest point sampling, squared L2
        err_i = |x_i - S^T (S S^T + ridge I)^-1 S x_i|_2
        kept = basis + the k - b others of largest err
        each dropped token joins the kept non-basis token of largest cosine
        row of such a token = (x + sum of its m members) / (1 + m)

    Args:
        layer: decoder layer before which tokens leave, 16 of 32 as released.
        basis: number of basis tokens, 10 as released.
        start: first basis token: "isolated" (the one whose nearest neighbour is farthest), "center", or an
            index. The released code draws it at random.
        ridge: what is added to the diagonal of the basis' Gram matrix, 1e-5 as released.

    Needs: nothing but hidden states.

    Costs: O(N^2 D) per view for the isolated start, O(N k D) for the merging.

    Decisions:

    - The first basis token follows from the features, so that a run can be repeated.
    - The released code keeps the k largest errors and overwrites the b slots of least error with the basis
      tokens. The same tokens are kept here, unless a basis token is among the k largest errors: it takes one
      slot and not two.
    - In the released code the overwritten tokens vanish unmerged, while the basis tokens, dropped at their
      old places, are merged as well as kept. Here the overwritten tokens are merged and the basis is not.
    - In the released code the basis stands in the overwritten slots; here each basis token stays in its own
      place.
    - With k below b, the first k basis tokens are kept, and what is dropped is merged into nothing.
    - Per picture as in the LLaVA code; that of Qwen pools all pictures and blends the basis in half and
      half, which is not done.
    - Sizes are not returned: the paper has no proportional attention.
    """

    name: ClassVar[str] = "apet-stage"
    merges: ClassVar[bool] = True

    layer: int = 16
    basis: int = 10
    start: str | int = "isolated"
    ridge: float = 1e-5

    def __post_init__(self) -> None:
        check_layer(self.name, self.layer)
        check_count(self.name, "basis", self.basis, 1)
        if isinstance(self.start, str):
            check_choice(self.name, "start", self.start, STARTS)
        else:
            check_count(self.name, "start", self.start, 0)
        check_positive(self.name, "ridge", self.ridge)

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        found = reconstruct(
            tokens.features, counts, tokens.lengths, basis=self.basis, start=self.start, ridge=self.ridge
        )
        merged = merge(tokens.features, found.kept, found.owner)
        return Selection(found.kept, list(counts), merged, sizes(found.kept, found.owner))
