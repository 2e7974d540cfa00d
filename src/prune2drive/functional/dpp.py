"""Greedy MAP inference of a determinantal point process, batched, without host synchronisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import picks, products

EXHAUSTED = 2.0**-13
"""What is left of a token counts as nothing below this share of its own kernel entry.

A kernel of rank R has only zero determinants beyond R picks, and what float32 leaves there is rounding (up to
4e-5 of the entry on random kernels of rank 8 to 64), whose order would depend on the product that made it.
"""


@torch.no_grad()
def dpp(kernel: Tensor, k: int | Sequence[int], *, mask: Tensor | None = None) -> Tensor:
    """Greedy MAP: each pick is the token that makes the determinant of the picked block largest.

    ``pick_t = argmax_i det(L[S + i, S + i])``, found by Cholesky updates (Chen, Zhang, Zhou, NeurIPS 2018):
    ``d2 = diag(L)``; pick ``j = argmax d2``; ``e = (L_j - sum_s c_sj c_s) / sqrt(d2_j)``; ``d2 -= e^2``;
    ``e`` joins ``c``. Ties go to the lowest index. Picks for k are the first k picks for more.

    Once every determinant is zero (fewer independent tokens than picks) the rest follows by its own kernel
    entry, largest first.

    Args:
        kernel: float32 ``(V, N, N)``, symmetric and positive semidefinite.
        k: picks, for all rows or one count per row.
        mask: bool ``(V, N)``, True at candidates.

    Returns:
        int64 ``(V, max k)`` in pick order, -1 beyond a row's count or candidates.

    Cost: ``O(k^2 N)`` per row and ``k N`` floats.
    """
    rows, n = kernel.shape[0], kernel.shape[1]
    counts = picks.per_row(k, rows)
    most = max(counts, default=0)
    own = kernel.diagonal(dim1=1, dim2=2).clone()
    left, least = own.clone(), own * EXHAUSTED
    free = torch.ones_like(own, dtype=torch.bool) if mask is None else mask.clone()
    basis = kernel.new_zeros(rows, most, n)
    row = torch.arange(rows, device=kernel.device)
    order = torch.full((rows, most), -1, device=kernel.device)
    for step in range(most):
        live = free & (left > least)
        some = live.any(-1)
        best = torch.where(live, left, -torch.inf).argmax(-1)
        rest = torch.where(free, own, -torch.inf).argmax(-1)
        pick = torch.where(some, best, rest)
        order[:, step] = torch.where(free.any(-1), pick, -1)
        known = basis[:, :step]
        new = kernel[row, pick] - products.dots(known[row, :, pick][:, None], known.mT)[:, 0]
        # Where nothing is left the divisor is rounding; such a pick explains nothing of the others.
        new = torch.where(some[:, None], new / torch.where(some, left[row, pick], 1.0).sqrt()[:, None], 0.0)
        basis[:, step] = new
        left = left - new.square()
        free = free.scatter(1, pick[:, None], False)
    return picks.cut(order, counts)
