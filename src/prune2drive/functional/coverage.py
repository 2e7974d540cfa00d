"""Greedy facility location: choose tokens so that every token has a similar one among the chosen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import picks


@torch.no_grad()
def coverage(
    similarity: Tensor,
    k: int | Sequence[int],
    *,
    weight: Tensor | None = None,
    bonus: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Pick, again and again, the token that adds most to how well all tokens are covered.

    ``gain_j = sum_i max(0, similarity_ji - covered_i)``, ``pick = argmax_j gain_j weight_j + bonus_j``, then
    ``covered = max(covered, similarity_pick)``, which starts at 0. Ties go to the lowest index. Picks for k
    are the first k picks for more.

    Args:
        similarity: float32 ``(V, N, N)``, row j says how well token j covers each token.
        k: picks, for all rows or one count per row.
        weight: float32 ``(V, N)``, multiplies gains; None for 1.
        bonus: float32 ``(V, N)``, is added to them; None for 0.
        mask: bool ``(V, N)``, True at candidates. Other tokens need no cover either.

    Returns:
        int64 ``(V, max k)`` in pick order, -1 beyond a row's count or candidates.

    Rounding: two tokens that only cover each other gain the same, whatever covers them now; without weights
    that tell them apart it is float32 that decides.

    Cost: ``O(k N^2)`` per row, bound by memory: one pass over an ``(N, N)`` buffer per pick, used again.
    """
    rows = similarity.shape[0]
    counts = picks.per_row(k, rows)
    most = max(counts, default=0)
    free = torch.ones_like(similarity[:, :, 0], dtype=torch.bool) if mask is None else mask.clone()
    if mask is not None:
        similarity = similarity.masked_fill(~mask[:, None, :], -torch.inf)
    covered = torch.zeros_like(similarity[:, 0])
    buffer = torch.empty_like(similarity)
    row = torch.arange(rows, device=similarity.device)
    order = torch.full((rows, most), -1, device=similarity.device)
    for step in range(most):
        # Not sum(max(similarity, covered)) - sum(covered): late gains are far smaller than either sum.
        score = torch.sub(similarity, covered[:, None], out=buffer).clamp_(min=0).sum(-1)
        if weight is not None:
            score = score * weight
        if bonus is not None:
            score = score + bonus
        pick = torch.where(free, score, -torch.inf).argmax(-1)
        order[:, step] = torch.where(free.any(-1), pick, -1)
        covered = torch.maximum(covered, similarity[row, pick])
        free = free.scatter(1, pick[:, None], False)
    return picks.cut(order, counts)
