"""SCOPE: salient tokens that cover the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..errors import PruneError, did_you_mean
from ..functional import picks, products
from ..functional.coverage import coverage
from ..tokens import Selection, Signal, VisualTokens
from .base import Selector

COMBINED = ("multi", "add")


@dataclass(frozen=True)
class Scope(Selector):
    """SCOPE: greedy coverage of all tokens, times what the vision tower attends to.

    Idea: every token of a picture should have a similar one among those kept, and those kept should be
    salient; each pick is the token whose gain in coverage times saliency is largest. Source: "SCOPE:
    Saliency-Coverage Oriented Token Pruning for Efficient Multimodel LLMs", NeurIPS 2025, arXiv 2510.24214.

    Formula: ``gain_j = sum_i max(0, cos(x_i, x_j) - covered_i)``; ``s_t = argmax_j gain_j a_j^alpha``
    ("multi") or ``argmax_j gain_j + a_j^alpha`` ("add") over the tokens not yet picked, ties to the lowest
    index; then ``covered_i = max(covered_i, cos(x_i, x_{s_t}))``, 0 at first.

    Args:
        alpha: exponent of the saliency, 1 as in the released code; 0 is coverage alone.
        combined: "multi" or "add", the names of the released code's option; "multi" is the published rule.
        scope: "view" (the paper works per tile); "sample" pools all views of a sample.

    Needs: the vision tower's features before the projector (`Signal.ENCODER`), and the attention that its
    tokens receive (`Signal.SALIENCY`).

    Costs: ``N^2 C`` per view for the product and ``O(k N^2)`` for the picks, which dominates: each pick
    passes over an ``(N, N)`` matrix.

    Decisions:
        - Coverage starts at 0, so that negative cosines never count.
        - The paper's saliency is the attention of the class token, summed over heads; for towers without one
          it is what `Signal.SALIENCY` says. Its scale changes nothing in "multi".
        - "add" sums the two factors of "multi" without bringing them to one scale. The first gains are of the
          order of N, so saliency mostly speaks late. `Signal.SALIENCY` is the mean over the H heads of the
          tower where the released code has their sum: in "add" it weighs 1/H of theirs (``H^-alpha``).
        - The paper divides a picture's budget evenly over its tiles; here a view's tiles share its count, and
          a tile is covered by whatever token of the view resembles it.
        - No class token is among the candidates or the covered.
        - Fewer tokens are a prefix of more, but ``nested`` stays off: a recorded order needs the tower's
          signals.

    Raises:
        PruneError: bad values; from ``select``, a count that does not fit its row.
    """

    name: ClassVar[str] = "scope"
    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.ENCODER, Signal.SALIENCY})

    alpha: float = 1.0
    combined: str = "multi"
    scope: str = "view"

    def __post_init__(self) -> None:
        number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        if not number or not math.isfinite(self.alpha) or self.alpha < 0:
            raise PruneError(f"SCOPE: alpha {self.alpha!r} is no exponent; pass a number from 0, such as 1")
        if self.combined not in COMBINED:
            raise PruneError(
                f"SCOPE: unknown combined {self.combined!r}.{did_you_mean(str(self.combined), COMBINED)}"
            )
        if self.scope not in ("sample", "view"):
            raise PruneError(f"SCOPE: scope {self.scope!r} is unknown; use 'view' or 'sample'")

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        counts = picks.checked(self.name, counts, tokens.lengths)
        encoder, saliency = tokens.signals.encoder, tokens.signals.saliency
        if encoder is None or saliency is None:
            raise PruneError("SCOPE: signals.encoder or signals.saliency is missing; give both")
        mask = tokens.mask
        unit = F.normalize(encoder.float(), dim=-1)
        salient = saliency.float().pow(self.alpha)
        say = "weight" if self.combined == "multi" else "bonus"

        def choose(part: slice) -> Tensor:
            there = None if mask is None else mask[part]
            return coverage(products.gram(unit[part]), counts[part], mask=there, **{say: salient[part]})

        n = unit.shape[1]
        return Selection(picks.in_blocks(choose, counts, 12 * n * n), counts)
