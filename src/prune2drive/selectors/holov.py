"""HoloV: every stretch of a picture gets its share, and fills it by attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import PruneError
from ..functional import picks, ranking
from ..tokens import Selection, Signal, VisualTokens
from .base import Selector


@dataclass(frozen=True)
class HoloV(Selector):
    """HoloV: share the budget out over stretches of the picture, and let attention choose inside each.

    Attention alone crowds its picks onto a few salient spots; giving every stretch of the token sequence a
    quota, by how much of the attention it gets, keeps the whole scene. Source: HoloV, NeurIPS 2025, visual
    token pruning for multimodal models, as its released code does it.

    Formula: the n tokens are cut into ``chunks`` contiguous stretches, the first ``n mod chunks`` of them one
    token longer. A chunk weighs ``w_c``, the mean of its saliencies; ``quota_c = floor(k w_c / sum w)``, what
    is left over goes one each to the heaviest chunks. Each chunk keeps its ``quota_c`` highest saliencies.

    Args:
        chunks: how many stretches, at least 1; the published code's 16 for LLaVA.
        scope: "view" as published: each picture by itself; "sample" pools all views of a sample.

    Needs: the attention each token receives in the vision tower.

    Costs: ``O(N log N + chunks^2)`` per view: one sort of the saliencies and the rounds of sharing out.
    Nothing waits for the device.

    Decisions:

    - Where a chunk is smaller than its quota the published code leaves slots empty and pads with zeros. A
      count has to be met here: the leftover is shared out by the same rule over chunks that have room, until
      all is placed.
    - The published score adds the variance ``var_i`` of a token's cosines with those of its chunk:
      ``a_i + 0.09 var_i mean(a) / (mean(var) + 1e-6)``, ``a_i = 1e3 saliency_i``. Both means run over one
      chunk, and only the mean of its scores is used, which is ``1.09 mean(a)`` whatever the variances are; a
      factor that all chunks share changes no quota. So no similarity is computed here. What differs is the
      1e-6: the published weight of a chunk without any variance, such as one of equal tokens, is up to
      8.3% lower.
    - In a view of fewer tokens than ``chunks`` the last chunks are empty.
    - The published variant for Qwen-VL derives the number of chunks from the budget; set ``chunks`` for that.
    - Ties go to the lowest index, those of chunks to the first.

    Raises:
        PruneError: a field is out of its range; in ``select``, a count that does not fit its row.
    """

    name: ClassVar[str] = "holov"
    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.SALIENCY})

    chunks: int = 16
    scope: str = "view"

    def __post_init__(self) -> None:
        if isinstance(self.chunks, bool) or not isinstance(self.chunks, int) or self.chunks < 1:
            raise PruneError(
                f"holov: chunks={self.chunks!r} is no number of chunks; give an int from 1, such as 16"
            )
        if self.scope not in ("view", "sample"):
            raise PruneError(f"holov: unknown scope={self.scope!r}; give 'view' or 'sample'")

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        saliency = tokens.signals.saliency
        assert saliency is not None
        counts = picks.checked(self.name, counts, tokens.lengths)
        rows, n, device = len(counts), saliency.shape[1], saliency.device
        table = self._table(tokens.lengths).to(device, non_blocking=True)
        there, index = table >= 0, table.clamp(min=0)
        sizes = there.sum(-1)

        attention = saliency.float().gather(1, index.flatten(1)).view(index.shape)
        weights = attention.double().masked_fill(~there, 0.0).sum(-1) / sizes.clamp(min=1)
        quotas = _quotas(weights, sizes, torch.tensor(counts).to(device, non_blocking=True), self.chunks)

        order = attention.masked_fill(~there, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
        chosen = torch.arange(order.shape[2], device=device) < quotas[:, :, None]
        chosen_tokens = table.gather(2, order).masked_fill(~chosen, -1).view(rows, -1)
        return Selection(ranking.places(ranking.members(chosen_tokens, n), counts), counts)

    def _table(self, lengths: Sequence[int]) -> Tensor:
        """The tokens of every chunk of every row: int64 ``(V, chunks, largest)``, padded with -1."""
        total = torch.tensor(list(lengths), dtype=torch.int64)[:, None]
        sizes = (total // self.chunks + (torch.arange(self.chunks) < total % self.chunks))[:, :, None]
        begin = sizes.cumsum(1) - sizes
        number = torch.arange(int(sizes.max()) if len(lengths) else 0)
        return torch.where(number < sizes, begin + number, -1)


def _quotas(weights: Tensor, sizes: Tensor, counts: Tensor, rounds: int) -> Tensor:
    """Share ``counts`` (V,) out over chunks by weight, none above its size: int64 ``(V, chunks)``."""
    quotas = torch.zeros_like(sizes)
    # A round places everything or fills at least one chunk, so there are no more rounds than chunks.
    for _ in range(rounds):
        left = (counts - quotas.sum(-1))[:, None]
        free = quotas < sizes
        weight = weights.masked_fill(~free, 0.0)
        # No attention anywhere leaves nothing to weigh by.
        weight = torch.where(weight.sum(-1, keepdim=True) > 0, weight, free.double())
        total = weight.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        more = (left * weight / total).floor().long()
        rank = weight.masked_fill(~free, -1.0).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        more = more + (rank < left - more.sum(-1, keepdim=True))
        quotas = torch.minimum(quotas + more, sizes)
    return quotas
