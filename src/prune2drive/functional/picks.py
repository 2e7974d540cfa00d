"""Counts per row and rows of picks: what the greedy selections have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import PruneError
from . import distances
from .ranking import slots


def checked(who: str, counts: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Return ``counts`` as a list, one per row and within the row's length; ``who`` starts the errors.

    Raises:
        PruneError: one count per row is missing, or a count is negative or above the row's length.
    """
    asked = [int(count) for count in counts]
    if len(asked) != len(lengths):
        raise PruneError(f"{who}: got {len(asked)} counts for {len(lengths)} rows; give one per row")
    for row, (count, length) in enumerate(zip(asked, lengths, strict=True)):
        if not 0 <= count <= length:
            raise PruneError(f"{who}: row {row}: asked for {count} of {length} tokens; ask for 0 to {length}")
    return asked


def per_row(k: int | Sequence[int], rows: int) -> list[int]:
    """Return ``k`` as one count per row."""
    return [k] * rows if isinstance(k, int) else [int(count) for count in k]


def cut(order: Tensor, counts: Sequence[int]) -> Tensor:
    """Keep the first ``counts[v]`` picks of each row of ``order`` ``(V, K)``; -1 beyond."""
    return order.masked_fill(~slots(counts, order.device, order.shape[1]), -1)


def in_blocks(choose: Callable[[slice], Tensor], counts: Sequence[int], row_bytes: int) -> Tensor:
    """Join the picks of blocks of rows, each block as large as `distances.MATRIX_BYTES` allows.

    Args:
        choose: rows to int64 ``(rows, most of their counts)``.
        counts: picks per row; at least one row.
        row_bytes: memory that one row takes while it is worked on.
    """
    width, most = max(1, distances.MATRIX_BYTES // max(1, row_bytes)), max(counts)
    found = [choose(slice(low, low + width)) for low in range(0, len(counts), width)]
    return torch.cat([F.pad(order, (0, most - order.shape[1]), value=-1) for order in found])
