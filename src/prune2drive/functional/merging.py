"""Folding tokens that leave into tokens that stay."""

from __future__ import annotations

import torch
from torch import Tensor

from .products import dots, unit

MODES = ("sum", "mean", "add-mean")


def nearest(features: Tensor, kept: Tensor, targets: Tensor | None = None) -> Tensor:
    """The kept token with the highest cosine for every token: its slot, int64 ``(V, N)``.

    Ties go to the lowest slot; a zero vector has cosine 0 with everything. Where a row has no target the
    slot is -1. Kept tokens get a slot as well (for most their own): mask them out to leave them alone.

    Args:
        features: ``(V, N, D)``, any float dtype.
        kept: int64 ``(V, K)`` tokens, padded with -1.
        targets: bool ``(V, K)``, the slots that may be given; None for all that hold a token.
    """
    there = kept >= 0
    targets = there if targets is None else targets & there
    if not kept.shape[1]:
        return kept.new_full(features.shape[:2], -1)
    rows = unit(features)
    to = rows.gather(1, kept.clamp(min=0)[..., None].expand(-1, -1, rows.shape[-1]))
    cosine = dots(rows, to).masked_fill(~targets[:, None, :], -torch.inf)
    return cosine.argmax(-1).masked_fill(~targets.any(-1)[:, None], -1)


def sizes(kept: Tensor, owner: Tensor) -> Tensor:
    """How many tokens each kept row stands for, itself included: float32 ``(V, K)``; arguments as `merge`."""
    share = owner[:, None, :] == torch.arange(kept.shape[1], device=kept.device)[:, None]
    return 1.0 + share.sum(-1)


def merge(features: Tensor, kept: Tensor, owner: Tensor, mode: str = "mean") -> Tensor:
    """The kept rows with the tokens they own folded in: ``(V, K, D)`` in the features' dtype.

    With ``x`` a kept token and ``S`` the sum of the ``m`` tokens it owns (nothing changes where m is 0):
    "sum" gives ``x + S``, "mean" ``(x + S) / (1 + m)``, "add-mean" ``x + S / m``.

    Args:
        features: ``(V, N, D)``, any float dtype, finite; added up in float32.
        kept: int64 ``(V, K)`` tokens, padded with -1 (those rows come back as zeros).
        owner: int64 ``(V, N)``: the slot in ``kept`` that a token goes to, -1 for none. Kept tokens stand
            for themselves already: their owner is -1, unless one is to be counted into another slot too.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}, known: {', '.join(MODES)}")
    wide = features.float()
    own = wide.gather(1, kept.clamp(min=0)[..., None].expand(-1, -1, wide.shape[-1]))
    # A product instead of scattered additions, whose order, and so last bit, changes from run to run on GPUs.
    share = (owner[:, None, :] == torch.arange(kept.shape[1], device=kept.device)[:, None]).float()
    number = share.sum(-1, keepdim=True)
    if mode == "add-mean":
        share = share / number.clamp(min=1)
    total = own + dots(share, wide.mT)
    if mode == "mean":
        total = total / (1 + number)
    return total.masked_fill((kept < 0)[..., None], 0.0).to(features.dtype)
