"""Attention over pictures or windows laid end to end in one row: equal ones together, in one kernel call.

Towers that take pictures of any size put all patches of a call into one row and attend piece by piece:
without a flash kernel that takes lengths, one call for every window of every picture. Six cameras of 1596 x
896 pixels have 720 windows in each of 28 layers, and the launches take longer than the arithmetic. Most
windows have the same length, so they fit one call as a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "prune2drive_flash_packed"
"""Registered with transformers under a name with "flash" in it: towers then hand over the whole row and the
edges of its pieces, instead of cutting it up."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers' attention functions: ``(1, H, S, d)`` three times -> ``(1, S, H, d)``.

    ``cu_seq_lens_q`` int ``(pieces + 1,)`` on the host: where each piece begins, and the end of the last.
    """
    if cu_seq_lens_q is None:
        out = F.scaled_dot_product_attention(query, key, value, scale=scaling)
        return out.transpose(1, 2).contiguous(), None
    groups = pieces_by_length(cu_seq_lens_q.tolist())
    heads, width = query.shape[1], query.shape[3]
    if len(groups) == 1:
        [(length, starts)] = groups.items()
        q, k, v = (
            t[0].reshape(heads, len(starts), length, width).transpose(0, 1) for t in (query, key, value)
        )
        out = F.scaled_dot_product_attention(q, k, v, scale=scaling)
        return out.transpose(1, 2).reshape(1, -1, heads, width), None
    out = query.new_empty(query.shape[2], heads, width)
    for length, starts in groups.items():
        index = (torch.tensor(starts)[:, None] + torch.arange(length)).flatten().to(query.device)
        q, k, v = (
            t[0].index_select(1, index).reshape(heads, len(starts), length, width).transpose(0, 1)
            for t in (query, key, value)
        )
        part = F.scaled_dot_product_attention(q, k, v, scale=scaling)
        out.index_copy_(0, index, part.transpose(1, 2).reshape(-1, heads, width))
    return out[None], None


def pieces_by_length(edges: list[int]) -> dict[int, list[int]]:
    """Length -> starts of the pieces that have it; empty pieces are left out."""
    groups: dict[int, list[int]] = {}
    for start, end in pairwise(edges):
        if end > start:
            groups.setdefault(end - start, []).append(start)
    return groups


@contextmanager
def packed(config: Any) -> Iterator[None]:
    """Inside, modules with this config attend with `packed_attention` where they attended with sdpa."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = config._attn_implementation
    if before != "sdpa":
        yield
        return
    ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
    config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        config._attn_implementation_internal = before
