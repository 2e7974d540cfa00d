"""DivPrune: the most diverse subset of all visual tokens of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..errors import PruneError
from ..functional import picks
from ..functional.fps import fps
from ..tokens import Selection, VisualTokens
from .base import Selector


@dataclass(frozen=True)
class DivPrune(Selector):
    """DivPrune: max-min diversity over all pictures of a prompt at once.

    Idea: choose the subset whose closest two tokens are as far apart as possible, greedily; what is redundant
    anywhere in the prompt leaves. Source: "DivPrune: Diversity-based Visual Token Pruning for Large
    Multimodal Models", CVPR 2025, arXiv 2503.02175.

    The rule is that of T-FPS (`TFPS`): the difference is the pool. T-FPS runs it in each camera's view with
    that view's own count; DivPrune runs it once over the tokens of all cameras, so that a token loses against
    a like one in another camera, and how many tokens a camera keeps is an outcome. ``scope="view"`` is
    T-FPS. Fewer tokens are a prefix of more.

    Formula: ``d(i, j) = 1 - cos(x_i, x_j)``; ``s_1 = argmax_i min_{j != i} d(i, j)``;
    ``s_t = argmax_i min_{u < t} d(i, s_u)`` over the tokens not yet picked; ties to the lowest index.

    Args:
        scope: "sample" pools all views of a sample (the paper: the whole block of visual tokens); "view"
            chooses in each view alone.

    Needs: the projected features only.

    Costs: ``N^2 D`` for the product over all N tokens of a sample, which dominates, then ``O(k N)``; above
    8192 tokens ``O(k N D)`` and no matrix.

    Decisions:
        - Distances are measured in float32, whatever the features' dtype.
        - Row ends and separators are not candidates and always stay; the released code pools the newline
          tokens of tiled pictures with the others.
        - A rate becomes a count by the library's half-up rounding; the released code calls ``round``.
        - The engine puts kept tokens back into sequence order. Published numbers used the order of picks; the
          authors' tracker reports sorted tokens to do slightly better.

    Raises:
        PruneError: unknown ``scope``; from ``select``, a count that does not fit its row, NaN or Inf in the
            features.
    """

    name: ClassVar[str] = "divprune"
    nested: ClassVar[bool] = True

    scope: str = "sample"

    def __post_init__(self) -> None:
        if self.scope not in ("sample", "view"):
            raise PruneError(f"DivPrune: scope {self.scope!r} is unknown; use 'sample' or 'view'")

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        counts = picks.checked(self.name, counts, tokens.lengths)
        device = tokens.features.device
        order = torch.full((len(counts), max(counts, default=0)), -1, device=device)
        # Farthest point sampling has no answer for a row of no tokens.
        some = [row for row, count in enumerate(counts) if count]
        if some:
            at = torch.tensor(some).to(device, non_blocking=True)
            mask = tokens.mask
            features, mask = tokens.features[at], None if mask is None else mask[at]
            order[at] = fps(features, [counts[row] for row in some], mask=mask)
        return Selection(order, counts)
