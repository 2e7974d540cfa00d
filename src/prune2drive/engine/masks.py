"""Attention masks of layers whose sequence is shorter than the one the model built masks for.

A mask arrives as None (causal, nothing to hide), as bool or float ``(B, 1, Q, KV)``, or as ``(B, KV)``
for flash attention; it leaves in the same form.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import PruneError


def _as_float(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
        ~allowed, torch.finfo(dtype).min
    )


def _check(mask: object) -> None:
    if mask is not None and not isinstance(mask, Tensor):
        raise PruneError(
            f"attention mask of type {type(mask).__name__} cannot be cut "
            "inside the language model; load the model "
            "with attn_implementation='sdpa', 'eager' or 'flash_attention_2'"
        )


def prefill_mask(
    mask: Tensor | None, columns: Tensor, valid: Tensor, ragged: bool, attention: str
) -> Tensor | None:
    """The given mask with only the rows and columns that stay.

    Gathering keeps whatever the model wants, causal or not: blocks that see both ways (Gemma 3,
    PaliGemma) and sliding windows, whose distance stays that of the full prompt.

    Args:
        columns, valid: ``(R, n)`` original column of each place, and whether it holds a token.
        ragged: rows differ in length, so padding must be hidden even if no mask was given.
        attention: the layer's implementation ("sdpa", "eager", "flash_attention_2", ...).
    """
    _check(mask)
    if mask is None:
        if not ragged:
            return None
        if "flash" in attention:
            return valid
        causal = columns[:, None, :, None] >= columns[:, None, None, :]
        allowed = causal & valid[:, None, None, :]
        return _open_padding(allowed, valid)
    if mask.dim() == 2:
        return valid.to(mask.dtype)
    rows, length = columns.shape
    full = mask.expand(rows, mask.shape[1], mask.shape[2], mask.shape[3])
    row_index = columns[:, None, :, None].expand(-1, full.shape[1], -1, full.shape[3])
    cut = full.gather(2, row_index)
    cut = cut.gather(3, columns[:, None, None, :].expand(-1, full.shape[1], length, -1))
    hidden = ~valid[:, None, None, :]
    if mask.dtype is torch.bool:
        return _open_padding(cut & ~hidden, valid)
    cut = cut.masked_fill(hidden, torch.finfo(cut.dtype).min)
    return cut.masked_fill(_padding_rows(valid), 0)


def _padding_rows(valid: Tensor) -> Tensor:
    return ~valid[:, None, :, None]


def _open_padding(allowed: Tensor, valid: Tensor) -> Tensor:
    """Let padding attend everywhere: a row that may attend to nothing would become NaN."""
    return allowed | _padding_rows(valid)


def decode_mask(
    mask: Tensor | None,
    columns: Tensor,
    valid: Tensor,
    ragged: bool,
    *,
    prompt: int,
    cached: int,
    total: int,
    query: int,
    window: int | None,
    attention: str,
    dtype: torch.dtype,
) -> Tensor | None:
    """The mask of a decode step at a layer whose cache lost tokens.

    Args:
        mask: what the model built for full-length caches; only its form matters, and for flash
            attention its columns after the prompt.
        columns, valid: ``(R, n)`` what the layer kept of the prompt.
        prompt: length of the full prompt; generated tokens count on from it.
        cached: entries in the layer's cache before this step (a sliding layer forgets old ones).
        total: entries it would hold had it forgotten none, this step included.
        query: tokens of this step.
        window: sliding window in tokens of the full sequence, or None.
        attention: the layer's implementation; "eager" adds its mask, of ``dtype``, others take bool.
    """
    _check(mask)
    if mask is not None and mask.dim() == 2:
        # `mask` ends with the generated columns; those and the kept prompt are what the cache holds.
        mask, generated = mask.to(columns.device), total - columns.shape[1]
        return torch.cat([valid.to(mask.dtype), mask[:, mask.shape[1] - generated :]], 1)[
            :, -(cached + query) :
        ]
    rows, kept = columns.shape
    whole = window is None or prompt + total - kept <= window
    if mask is None and not ragged and whole and ("flash" in attention or query == 1):
        return None
    if "flash" in attention:
        # Flash attention is causal by itself and knows its own window; only padding is to be hidden.
        return torch.cat([valid, valid.new_ones(rows, total - kept)], 1)[:, -(cached + query) :]
    tail = torch.arange(prompt, prompt + total - kept, device=columns.device).expand(rows, -1)
    keys = torch.cat([columns, tail], 1)
    seen = torch.cat([valid, torch.ones_like(tail, dtype=torch.bool)], 1)
    queries = keys[:, -query:]
    keys, seen = keys[:, -(cached + query) :], seen[:, -(cached + query) :]
    distance = queries[:, None, :, None] - keys[:, None, None, :]
    allowed = (distance >= 0) & seen[:, None, None, :]
    if window is not None:
        allowed &= distance < window
    return _as_float(allowed, dtype) if attention == "eager" else allowed
