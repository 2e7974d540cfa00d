"""Contextual tokens: evenly spaced anchors that absorb the tokens most like them (VisionZip, DUET-VLM)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import ranking
from .merging import merge, nearest, sizes


def shares(counts: Sequence[int], contextual: float) -> list[int]:
    """How many of each count are contextual tokens: the share, rounded half up."""
    return [min(math.floor(count * contextual + 0.5), count) for count in counts]


def gather_context(
    features: Tensor,
    keys: Tensor,
    dominant: Tensor,
    pool: Tensor,
    counts: Sequence[int],
    pooled: Sequence[int],
    anchors: Sequence[int],
    order: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn the tokens of a pool into a few anchors, each with what is most like it added.

    Anchors are the pool's tokens number 0, s, 2 s, ... in ``order``, ``s = max(1, pooled // anchors)``.
    Every other token of the pool goes to the anchor with the highest cosine of keys (ties to the one that is
    earliest in ``order``), and an anchor becomes itself plus the mean of what came to it.

    Args:
        features: ``(V, N, D)``, what is merged.
        keys: ``(V, N, C)``, what is compared.
        dominant: bool ``(V, N)``, tokens that stay as they are.
        pool: bool ``(V, N)``, disjoint from ``dominant``; ``pooled`` says how many in each row.
        counts: tokens to keep of each row: dominant ones plus ``anchors``, at most ``pooled`` of these.
        order: int64 ``(V, max pooled)``, the tokens of the pool as they are numbered, padded with -1; None
            for sequence order.

    Returns:
        Kept tokens, int64 ``(V, max counts)`` ascending and padded with -1, their features, and how many
        tokens each stands for, float32 ``(V, max counts)``.
    """
    device, n = features.device, features.shape[1]
    if order is None:
        order = ranking.places(pool, pooled)
    steps = [max(1, m // max(1, c)) for m, c in zip(pooled, anchors, strict=True)]
    step = torch.tensor(steps, dtype=torch.int64).to(device, non_blocking=True)[:, None]
    number = torch.arange(max(anchors, default=0), device=device) * step
    chosen = order.gather(1, number.clamp(max=order.shape[1] - 1))
    chosen = chosen.masked_fill(~ranking.slots(anchors, device), -1)
    anchor = ranking.members(chosen, n)
    kept = ranking.places(dominant | anchor, counts)
    # Compared in the pool's order, so that ties go to the earlier anchor; then turned into slots of kept.
    to = nearest(keys, chosen)
    slot = (dominant | anchor).long().cumsum(-1) - 1
    if chosen.shape[1]:
        to = slot.gather(1, chosen.clamp(min=0)).gather(1, to.clamp(min=0)).masked_fill(to < 0, -1)
    owner = to.masked_fill(anchor | ~pool, -1)
    return kept, merge(features, kept, owner, "add-mean"), sizes(kept, owner)
