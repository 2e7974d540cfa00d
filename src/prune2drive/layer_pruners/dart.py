"""DART: keep what is least like a few pivot tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..functional import ranking
from ..functional.products import unit
from ..tokens import Selection, Signal, VisualTokens
from .base import LayerPruner
from .checks import check_count, check_layer, check_scope


@dataclass(frozen=True)
class DART(LayerPruner):
    """DART: keep a few pivots and, for each of them, the tokens least similar to it.

    Duplicates matter more than importance: what resembles a strong token adds little to it. The visual and
    text tokens with the largest keys serve as pivots, and each takes the visual tokens furthest from it in
    angle out of the pool. Source: "Stop Looking for Important Tokens in Multimodal Language Models:
    Duplication Matters More" (DART), EMNLP 2025, arXiv 2502.11494, released code at layer 2.

    Formula::

        size_i = |key_i|_1, keys of layer K-1 with all heads side by side
        pivots = the 4 visual tokens and the 4 instruction tokens of largest size
        x = norm(hidden state entering layer K), norm the language model's final one
        for p in pivots: take the m_p pool tokens of least cos(x_i, x_p)
        kept = visual pivots + all that were taken

    Args:
        layer: decoder layer before which tokens leave, 2 in the released scripts.
        visual_pivots: visual pivots, 4 as released. They are kept.
        text_pivots: text pivots, 4 as released. 0 makes the method blind to text.
        scope: "sample" as released: all pictures form one pool. "view" treats each picture by itself.

    Needs: the keys of the layer before, the instruction's hidden states, and the language model's final norm.

    Costs: O(P N D) for P pivots, besides one sort of N numbers per pivot.

    Decisions:

    - The released count is about 4 + 8 m with one m for all pivots. Here k is met exactly: pivots share
      k less the visual pivots evenly, the remainder goes one each to the first of them.
    - Pivots choose in a fixed order, visual before text, largest first. The released order is that of an
      unordered set.
    - With fewer tokens than visual pivots, the k visual tokens with the largest keys are kept.
    - Text pivots are sought among the instruction; one shorter than four tokens gives fewer.
    - A zero vector has cosine 0 with everything.
    """

    name: ClassVar[str] = "dart"
    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.KEYS, Signal.TEXT})

    layer: int = 2
    visual_pivots: int = 4
    text_pivots: int = 4
    scope: str = "sample"

    def __post_init__(self) -> None:
        check_layer(self.name, self.layer)
        check_count(self.name, "visual_pivots", self.visual_pivots, 1)
        check_count(self.name, "text_pivots", self.text_pivots, 0)
        check_scope(self.name, self.scope)

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        signals = tokens.signals
        assert signals.keys is not None and signals.text is not None
        assert signals.text_keys is not None and signals.text_mask is not None
        norm = signals.norm or (lambda x: x)
        rays, text = unit(norm(tokens.features)), unit(norm(signals.text))
        strength = signals.keys.float().abs().sum(-1)
        # The number of text pivots decides how many tokens each pivot takes: one question to the device.
        words = signals.text_mask.sum(-1).clamp(max=self.text_pivots).tolist()
        spoken = ranking.top(signals.text_keys.float().abs().sum(-1), words, signals.text_mask)

        rows = []
        for row, (n, k) in enumerate(zip(tokens.lengths, counts, strict=True)):
            sample = tokens.samples[row]
            seen = strength[row, :n].sort(descending=True, stable=True).indices[: self.visual_pivots]
            said = spoken[sample, : words[sample]]
            pivots = torch.cat([rays[row, seen], text[sample, said]])
            rows.append(torch.cat([seen[:k], _take(rays[row, :n], pivots, seen, k - len(seen))]))
        return Selection(pad_sequence(rows, batch_first=True, padding_value=-1), list(counts))


def _take(rays: Tensor, pivots: Tensor, gone: Tensor, k: int) -> Tensor:
    """The ``k`` tokens that the pivots take in turn, each those least similar to it.

    Args:
        rays: unit vectors ``(N, D)``.
        pivots: unit vectors ``(P, D)`` in the order in which they choose.
        gone: tokens that cannot be taken.
    """
    if k <= 0:
        return gone[:0]
    picks = []
    pool = torch.ones(len(rays), dtype=torch.bool, device=rays.device).index_fill(0, gone, False)
    each, more = divmod(k, len(pivots))
    for number, pivot in enumerate(pivots):
        # A sum per token, no matrix product: copies of a token then tie to the last bit.
        cosine = (rays * pivot).sum(-1).masked_fill(~pool, torch.inf)
        took = cosine.sort(stable=True).indices[: each + (number < more)]
        pool = pool.index_fill(0, took, False)
        picks.append(took)
    return torch.cat(picks)
