"""MVPruner, stage 2: split a sample's tokens over its cameras by the attention the instruction pays them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..allocators.total import split
from ..functional import ranking, text_rows
from ..tokens import Selection, Signal, VisualTokens
from .base import LayerPruner
from .checks import check_layer


@dataclass(frozen=True)
class MVPrunerStage(LayerPruner):
    """MVPruner stage 2: cameras the instruction looks at keep more, of each the tokens looked at.

    Half-way through the language model, the instruction's attention tells which cameras the question is
    about; they get a larger share of the sample's tokens than the others. Source: MVPruner, ECCV 2026,
    arXiv 2606.27660, its stage at layer 16 (described after a third-party port).

    Formula::

        a_i = attention of layer K-1 from instruction to token i, mean over heads and instruction tokens
        m_v = mean of a_i over the tokens of view v
        imp = softmax((m - max m) / (max m - min m + 1e-5)) over the views of a sample
        ratio_v = s (1 + imp_v - len_v / sum len)
        kept of view v = the ratio_v len_v tokens of largest a_i

    Args:
        layer: decoder layer before which tokens leave, 16 of 32 in the paper.

    Needs: the attention that the layer before paid from the instruction's tokens.

    Costs: O(N H T) for the means over H heads and T instruction tokens, one sort, and one question to the
    device.

    Decisions:

    - s scales all ratios, so it is set to meet the sample's total exactly: counts are in proportion to
      len_v (1 + imp_v - len_v / sum len), at least 1 and at most len_v; what a bound takes or leaves the
      others share, and fractions go to the largest remainders, the first view first.
    - len_v counts the tokens still there, and so does the mean. A view without any takes no part.
    - A total below the number of views gives one token to each of the views of largest ratio.
    """

    name: ClassVar[str] = "mvpruner-stage"
    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.ATTENTION})
    allocates: ClassVar[bool] = True

    layer: int = 16

    def __post_init__(self) -> None:
        check_layer(self.name, self.layer)

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        attention, real = tokens.signals.attention, tokens.signals.text_mask
        assert attention is not None and real is not None
        looks = text_rows.mean_paid(attention, text_rows.of_samples(real, tokens.samples))
        means = looks.double().sum(-1).tolist()  # padding holds zeros
        means = [total / max(n, 1) for total, n in zip(means, tokens.lengths, strict=True)]
        kept = [0] * len(counts)
        for rows in tokens.by_sample.values():
            lengths = [tokens.lengths[row] for row in rows]
            shares = share_out(sum(counts[row] for row in rows), lengths, [means[row] for row in rows])
            for row, k in zip(rows, shares, strict=True):
                kept[row] = k
        return Selection(ranking.top(looks, kept, tokens.mask), kept)


def share_out(total: int, lengths: Sequence[int], means: Sequence[float]) -> list[int]:
    """Tokens of each view of a sample.

    Args:
        lengths: tokens of each view, 0 for one that takes no part.
        means: attention that each view gets, per token.
    """
    there = [v for v, n in enumerate(lengths) if n]
    kept = [0] * len(lengths)
    if not there or not total:
        return kept
    most, least = max(means[v] for v in there), min(means[v] for v in there)
    powers = [math.exp((means[v] - most) / (most - least + 1e-5)) for v in there]
    everything = sum(lengths)
    ratios = [1 + p / sum(powers) - lengths[v] / everything for v, p in zip(there, powers, strict=True)]
    if total < len(there):
        ranked = sorted(range(len(there)), key=lambda place: -ratios[place])
        counts = [int(place in ranked[:total]) for place in range(len(there))]
    else:
        counts = split(total, [lengths[v] for v in there], ratios)
    for v, k in zip(there, counts, strict=True):
        kept[v] = k
    return kept
