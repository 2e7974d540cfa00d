"""Stride: every m-th token in reading order, the cheapest control.

Idea: a regular subsample needs no features at all. It also shows what a grid does to a method's
score: with a step near the width of a row it keeps whole columns and drops others, so compare it
with stratified selection before believing that a method places its tokens well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.utils.rnn import pad_sequence

from ..errors import PruneError
from ..tokens import Selection, VisualTokens
from .base import Selector


@dataclass(frozen=True)
class Stride(Selector):
    """Stride: every m-th token in reading order.

    A regular subsample needs no features at all. It also shows what a grid does to a method's score: with a
    step near the width of a row it keeps whole columns and drops others. Source: none, the cheapest control.

    Formula: the sequence of N tokens is cut into k equal stretches, and
    ``s_t = floor((t + offset) N / k)`` for ``t = 0 .. k - 1``.

    Args:
        offset: in [0, 1): the place within the stretch; 0.5 is its middle.

    Needs: nothing, not even the features.

    Costs: k numbers per view.

    Decisions:

    - The sequence is that of the view: tile after tile, row by row, without the model's row ends.
    - Places are computed in whole numbers, since rounding could name one token twice.

    Raises:
        PruneError: an offset outside [0, 1).
    """

    name: ClassVar[str] = "stride"
    offset: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.offset < 1:
            raise PruneError(f"stride: offset {self.offset} is not in [0, 1); 0.5 is the middle of a stretch")

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        # Whole parts per million: with floats, rounding could name one token twice.
        million = 1_000_000
        shift = min(round(self.offset * million), million - 1)
        rows = [
            (torch.arange(k) * million + shift) * len(view) // (k * million)
            for view, k in zip(tokens.views, counts, strict=True)
        ]
        indices = pad_sequence(rows, batch_first=True, padding_value=-1)
        return Selection(indices.to(tokens.features.device, non_blocking=True), list(counts))
