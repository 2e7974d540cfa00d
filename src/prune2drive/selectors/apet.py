"""ApET, first stage: the tokens that a small basis explains worst."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

from ..errors import PruneError, did_you_mean
from ..functional import picks
from ..functional.merging import merge, sizes
from ..functional.reconstruction import reconstruct
from ..tokens import Selection, Signal, VisualTokens
from .base import Selector

STARTS = ("isolated", "center")


@dataclass(frozen=True)
class ApETSelect(Selector):
    """ApET's first stage: keep what a small linear basis cannot explain, and the basis; merge the rest.

    A token that is nearly a combination of ten others tells nothing new, so its reconstruction error says
    how much it is worth; no attention and no text are read. Source: ApET, CVPR 2026, arXiv 2602.19870, the
    stage before the projector.

    Formula: S the ``basis`` tokens of farthest point sampling by squared L2, as rows;
    ``error_i = |x_i - S^T (S S^T + ridge I)^-1 S x_i|``. Of k slots the basis takes ``basis`` and the largest
    errors outside it the others. Each dropped token goes to the kept token outside the basis with the highest
    cosine: ``x_t <- (x_t + sum of what went to t) / (1 + how many)``.

    Args:
        basis: basis tokens, at least 1; the published code's 10.
        start: the first basis token: "isolated" (the token whose nearest neighbour is farthest), "center"
            (the one nearest to the mean), or an index.
        ridge: added to the diagonal of the basis' Gram matrix; the published code's 1e-5.
        scope: "view" as published: each picture by itself; "sample" pools all views of a sample.

    Needs: the vision tower's features as the projector receives them.

    Costs: ``N^2 C`` per view for the isolated start, which dominates (``basis N C`` with another), and
    ``N k C`` to find where dropped tokens go. Nothing waits for the device.

    Decisions:

    - The published code starts at a random token; the default start here is deterministic.
    - The published code keeps the k largest errors and writes the basis over the ``basis`` slots of the
      smallest. The same tokens are kept here, unless one of the basis is among the k largest errors: it takes
      one slot and not two.
    - In the published code the tokens that are written over vanish, merged into nothing, while those of the
      basis count as dropped at their old places and are merged as well as kept. Here it is the other way
      round: what is dropped is merged, the tokens written over included, and the basis is not.
    - In the published code the basis stands in the slots it was written over; here each of its tokens stands
      in its own place.
    - With k up to ``basis`` all slots are the basis', in the order it was sampled, and nothing is merged.
    - Errors and cosines are those of the tower's features, as in the paper; what is merged is the
      projector's output, since only that exists when tokens are chosen.
    - The linear system is solved in float64: float32 rounds the ridge away.
    - Ties go to the lowest index.

    Raises:
        PruneError: a field is out of its range or unknown; in ``select``, a count that does not fit its row,
            or ``start`` beyond a view.
    """

    name: ClassVar[str] = "apet-select"
    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.ENCODER})
    merges: ClassVar[bool] = True

    basis: int = 10
    start: str | int = "isolated"
    ridge: float = 1e-5
    scope: str = "view"

    def __post_init__(self) -> None:
        if isinstance(self.basis, bool) or not isinstance(self.basis, int) or self.basis < 1:
            raise PruneError(
                f"apet-select: basis={self.basis!r} is no number of tokens; give an int from 1, such as 10"
            )
        if isinstance(self.start, str):
            if self.start not in STARTS:
                raise PruneError(
                    f"apet-select: unknown start={self.start!r}, and no token index."
                    f"{did_you_mean(self.start, STARTS)}"
                )
        elif isinstance(self.start, bool) or not isinstance(self.start, int) or self.start < 0:
            raise PruneError(f"apet-select: start={self.start!r} must be a name or a token index from 0")
        number = isinstance(self.ridge, Real) and not isinstance(self.ridge, bool)
        if not number or not math.isfinite(self.ridge) or self.ridge <= 0:
            raise PruneError(
                f"apet-select: ridge={self.ridge!r} is no positive number; give a small one, such as 1e-5"
            )
        if self.scope not in ("view", "sample"):
            raise PruneError(f"apet-select: unknown scope={self.scope!r}; give 'view' or 'sample'")

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        counts = picks.checked(self.name, counts, tokens.lengths)
        encoder = tokens.signals.encoder
        assert encoder is not None
        found = reconstruct(
            encoder, counts, tokens.lengths, basis=self.basis, start=self.start, ridge=self.ridge
        )
        merged = merge(tokens.features, found.kept, found.owner, "mean")
        return Selection(found.kept, counts, merged, sizes(found.kept, found.owner))
