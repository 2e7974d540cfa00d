"""Greedy max-min diversity with a say for each token: farthest point sampling, weighted and penalised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import picks
from .distances import Matrix, Rows


@torch.no_grad()
def max_min(
    rows: Matrix | Rows,
    k: int | Sequence[int],
    *,
    weight: Tensor | None = None,
    penalty: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Pick, again and again, ``argmax_i weight_i * min_s d(i, s) - penalty_i`` over the picked tokens s.

    The first pick puts the distance to the nearest other candidate in place of the minimum. Ties go to the
    lowest index. Picks for k are the first k picks for more. Without weight and penalty this is `fps`.

    Args:
        rows: distances as `distances.measure` gives them, for an isolated start; may be used again after.
        k: picks, for all rows or one count per row.
        weight: float32 ``(V, N)``, not negative; None for 1.
        penalty: float32 ``(V, N)``; None for 0.
        mask: bool ``(V, N)``, True at candidates.

    Returns:
        int64 ``(V, max k)`` in pick order, -1 beyond a row's count or candidates.
    """

    def pick_of(near: Tensor, free: Tensor) -> Tensor:
        score = near if weight is None else near * weight
        score = score if penalty is None else score - penalty
        return torch.where(free, score, -torch.inf).argmax(-1)

    near = rows.nearest(mask)
    counts = picks.per_row(k, len(near))
    most = max(counts, default=0)
    free = torch.ones_like(near, dtype=torch.bool) if mask is None else mask.clone()
    order = torch.full((len(near), most), -1, device=near.device)
    if most:
        # A lone candidate has no neighbour; its distance is infinite, and times a weight of 0 not a number.
        pick = pick_of(near.masked_fill(near == torch.inf, 0.0), free)
        near = torch.full_like(near, torch.inf)
        for step in range(most):
            order[:, step] = torch.where(free.any(-1), pick, -1)
            free = free.scatter(1, pick[:, None], False)
            near = torch.fmin(near, rows.row(pick))
            pick = pick_of(near, free)
    return picks.cut(order, counts)
