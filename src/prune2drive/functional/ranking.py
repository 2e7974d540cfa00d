"""The highest scores of each row, as many as asked: exact counts, ties to the lowest index, no padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def slots(counts: Sequence[int], device: torch.device, width: int | None = None) -> Tensor:
    """Bool ``(V, width)``: True at the first ``counts[v]`` places of a row; ``width`` None is max counts."""
    wanted = torch.tensor(list(counts), dtype=torch.int64).to(device, non_blocking=True)
    width = max(counts, default=0) if width is None else width
    return torch.arange(width, device=device) < wanted[:, None]


def top(scores: Tensor, counts: Sequence[int], mask: Tensor | None = None) -> Tensor:
    """Indices of the ``counts[v]`` highest scores of every row, the highest first.

    Args:
        scores: ``(V, N)`` without NaN.
        counts: how many of each row, at most its candidates.
        mask: bool ``(V, N)``, True at candidates; None when all are.

    Returns:
        int64 ``(V, max counts)``; rows with fewer end in -1.
    """
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    # torch.topk promises no order among equals; a stable sort does.
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    order = order[:, : max(counts, default=0)]
    return order.masked_fill(~slots(counts, scores.device), -1)


def places(keep: Tensor, counts: Sequence[int]) -> Tensor:
    """Where ``keep``, bool ``(V, N)`` with ``counts[v]`` True in a row, is True: ascending, padded with -1.

    As ``nonzero``, without asking the device how many there are.
    """
    return top(keep.float(), counts)


def ascending(indices: Tensor) -> Tensor:
    """Sort the picks of every row ``(V, K)``, leaving the -1 at its end."""
    last = torch.iinfo(torch.int64).max
    ordered = indices.masked_fill(indices < 0, last).sort(dim=-1).values
    return ordered.masked_fill(ordered == last, -1)


def members(indices: Tensor, n: int) -> Tensor:
    """Bool ``(V, n)``: True at the tokens that ``indices`` ``(V, K)``, padded with -1, name."""
    spare = torch.zeros(len(indices), n + 1, dtype=torch.bool, device=indices.device)
    return spare.scatter(1, torch.where(indices < 0, n, indices), True)[:, :n]
