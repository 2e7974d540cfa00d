"""A few rows of a layer's attention, from its queries and keys; the layer's own kernel stays on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..functional.products import no_autocast
from .bias import Rope, unit_rope


@dataclass(frozen=True, eq=False)
class Seen:
    """What one attention call was given: rotated ``query`` ``(R, H, n, d)``, ``key`` ``(R, G, n, d)``."""

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scaling: float
    softcap: float | None = None


def allowed_rows(
    mask: Tensor | None, rows: Tensor, valid: Tensor, repeat: int
) -> tuple[Tensor | None, Tensor]:
    """Which keys the query rows may see.

    Args:
        mask: as the layer got it: None (causal), bool or additive ``(R, 1 or H, n, n)``, or ``(R, n)``.
        rows: int64 ``(S, T)`` places of the queries.
        valid: bool ``(S, n)`` places that hold a token.
        repeat: rows of the layer per sample.

    Returns:
        Additive float32 ``(S, 1 or H, T, n)`` or None, and bool ``(S, 1, T, n)``.
    """
    place = torch.arange(valid.shape[1], device=valid.device)
    open_ = valid[:, None, None, :]
    if mask is None or mask.dim() == 2:
        return None, open_ & (place <= rows[:, None, :, None])
    mask = mask[::repeat].expand(len(rows), -1, -1, -1)
    index = rows[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
    cut = mask.gather(2, index)
    if cut.dtype is torch.bool:
        return None, cut & open_
    return cut.float(), open_.expand(-1, 1, rows.shape[1], -1)


def attention_rows(seen: Seen, rows: Tensor, valid: Tensor, repeat: int = 1) -> Tensor:
    """Probabilities from the tokens at ``rows`` to all: float32 ``(S, H, T, n)``; see `allowed_rows`."""
    query, key = seen.query[::repeat], seen.key[::repeat]
    index = rows[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
    few = query.gather(2, index).float()
    heads, groups = few.shape[1], key.shape[1]
    grouped = few.reshape(len(few), groups, heads // groups * few.shape[2], few.shape[3])
    with no_autocast(few.device):
        logits = grouped @ key.float().transpose(-1, -2)
    logits = logits.reshape(len(few), heads, rows.shape[1], -1)
    logits = logits * seen.scaling
    if seen.softcap:
        logits = torch.tanh(logits / seen.softcap) * seen.softcap
    extra, allowed = allowed_rows(seen.mask, rows, valid, repeat)
    if extra is not None:
        logits = logits + extra
    return torch.softmax(logits.masked_fill(~allowed, torch.finfo(torch.float32).min), -1)


def rope_rows(rope: Rope, rows: Tensor, width: int, repeat: int = 1) -> Tensor:
    """Logits of queries at ``rows`` and keys, all ones before rotation: float32 ``(S, 1, T, n)``.

    Rotated vectors of ``width`` ones have the dot product width * D, scaled by width ** -0.5. Nothing is
    masked: places that a query may not see have a logit like any other.
    """
    unit = unit_rope(rope)
    unit = unit.expand(len(rows), -1, -1) if len(unit) == 1 else unit[::repeat]
    few = unit.gather(1, rows[..., None].expand(-1, -1, unit.shape[-1]))
    with no_autocast(few.device):
        return (few @ unit.transpose(-1, -2))[:, None] * width**0.5
