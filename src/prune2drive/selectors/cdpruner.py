"""CDPruner: diversity among tokens, conditioned on the instruction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import PruneError
from ..functional import picks, products
from ..functional.dpp import dpp
from ..tokens import Selection, Signal, VisualTokens
from .base import Selector

SMALLEST = 1e-6
"""Relevance of the least relevant token: it loses to all others, but its kernel row is not empty."""
MOST_THETA = 0.98
"""Beyond, the kernel entries of a view spread over more than float32 holds."""


@dataclass(frozen=True)
class CDPruner(Selector):
    """CDPruner: the likeliest subset of a determinantal point process weighed by the instruction.

    Idea: a subset is good if its tokens differ from each other and matter to the instruction; a determinantal
    point process over similarity times relevance says both in one number, and greedy picks maximise it.
    Source: "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs",
    NeurIPS 2025, arXiv 2506.10967.

    Formula: ``c_i = mean_t cos(x_i, e_t)`` over the instruction's tokens, ``c_i = -c_i`` if ``negate``;
    ``r_i = (c_i - min c + 1e-6) / (max c - min c + 1e-6)`` over the view; ``L_ij = r_i cos(x_i, x_j) r_j``;
    ``s_t = argmax_i det(L[S + i, S + i])``, ties to the lowest index. With ``theta``,
    ``r_i`` becomes ``exp(theta / (2 (1 - theta)) r_i)``.

    Args:
        negate: turn the sign of the cosines before they are normalised. True as in the released code, where
            they are those of CLIP's two towers; why, is an open question on its tracker. With True the
            tokens *least* similar to the instruction count as the most relevant, with False the most
            similar ones. Nobody published which sign serves the embeddings used here: try both.
        theta: None uses ``r`` as it is (the released code); 0 to 0.98 is the knob that the released code
            holds but does not use: 0 ignores the instruction, more gives it more say.
        scope: "view" (the paper works per picture); "sample" pools all views of a sample.

    Needs: the projected features, and the instruction's token embeddings (`Signal.TEXT`).

    Costs: ``N^2 D`` per view for the product, which dominates, then ``O(k^2 N)`` for the picks.

    Decisions:
        - Relevance comes from the language model's embeddings for every model. The paper uses CLIP's text
          tower where the vision tower has one, and these embeddings where it has none.
        - Relevance is normalised within each view, so that no other picture of the batch matters. The
          released code takes minimum and maximum over the whole batch.
        - 1e-6 is added above and below the fraction: a view of equal cosines (or a prompt without a word)
          gets relevance 1 everywhere, which is plain diversity. The one below scales a view's kernel and
          changes no pick.
        - Once a view has no independent token left (more picks than dimensions, copies) all determinants are
          0; the rest follows by relevance.
        - Fewer tokens are a prefix of more, but ``nested`` stays off: the order belongs to one instruction.

    Raises:
        PruneError: bad values; from ``select``, a count that does not fit its row.
    """

    name: ClassVar[str] = "cdpruner"
    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.TEXT})

    negate: bool = True
    theta: float | None = None
    scope: str = "view"

    def __post_init__(self) -> None:
        if not isinstance(self.negate, bool):
            raise PruneError(f"CDPruner: negate {self.negate!r} is not True or False; pass one of them")
        if self.theta is not None and not _is_share(self.theta, MOST_THETA):
            raise PruneError(
                f"CDPruner: theta {self.theta!r} is not in [0, {MOST_THETA}]; pass None for the released rule"
            )
        if self.scope not in ("sample", "view"):
            raise PruneError(f"CDPruner: scope {self.scope!r} is unknown; use 'view' or 'sample'")

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        counts = picks.checked(self.name, counts, tokens.lengths)
        mask = tokens.mask
        unit = F.normalize(tokens.features.float(), dim=-1)
        relevance = self._relevance(unit, tokens, mask)
        weighed = unit * relevance[..., None]
        # A token's cosine with itself is 1, or 0 without features: exactly, so that equal relevance ties.
        own = torch.where(unit.square().sum(-1) > 0.5, relevance.square(), 0.0)

        def choose(part: slice) -> Tensor:
            kernel = products.gram(weighed[part])
            kernel.diagonal(dim1=1, dim2=2).copy_(own[part])
            return dpp(kernel, counts[part], mask=None if mask is None else mask[part])

        n = unit.shape[1]
        return Selection(picks.in_blocks(choose, counts, 8 * n * n), counts)

    def _relevance(self, unit: Tensor, tokens: VisualTokens, mask: Tensor | None) -> Tensor:
        """Weight of every token in the kernel, ``(V, N)``; the largest of a view is 1."""
        text, there = tokens.signals.text, tokens.signals.text_mask
        if text is None:
            raise PruneError("CDPruner: signals.text is missing; give the instruction's embeddings")
        words = F.normalize(text.float(), dim=-1)
        real = torch.ones_like(words[..., 0]) if there is None else there.float()
        # A mean of cosines is the product with the mean of unit vectors.
        words = torch.where(real[..., None] > 0, words, 0.0)
        mean = words.sum(1) / real.sum(1, keepdim=True).clamp(min=1)
        sample = torch.tensor(list(tokens.samples)).to(unit.device, non_blocking=True)
        cosine = products.dots(mean[sample][:, None], unit)[:, 0]
        if self.negate:
            cosine = -cosine
        low = (cosine if mask is None else cosine.masked_fill(~mask, torch.inf)).amin(-1, keepdim=True)
        high = (cosine if mask is None else cosine.masked_fill(~mask, -torch.inf)).amax(-1, keepdim=True)
        relevance = (cosine - low + SMALLEST) / (high - low + SMALLEST)
        if self.theta is not None:
            # Less the largest: a factor common to a view changes no pick, and nothing overflows.
            relevance = torch.exp(self.theta / (2 * (1 - self.theta)) * (relevance - 1))
        # Padding lies outside the range, and in a row of padding alone it has none.
        return relevance if mask is None else relevance.masked_fill(~mask, 0.0)


def _is_share(value: object, most: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 <= value <= most  # type: ignore[arg-type, operator]
