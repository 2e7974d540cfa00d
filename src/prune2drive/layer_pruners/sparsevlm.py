"""SparseVLM: text tokens that resemble the picture rate it; part of what leaves is recycled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..functional.density_peaks import density_peaks
from ..functional.merging import merge, sizes
from ..functional.ranking import top
from ..functional.text_rows import mean_paid, of_samples, raters
from ..tokens import Selection, Signal, VisualTokens
from .base import LayerPruner
from .checks import check_count, check_layer, check_scope, check_share

FLOOR = 0.5
"""The least that a logit of rotary positions counts: attention is divided by it."""


def recycled(dropped: int, share: float) -> tuple[int, int]:
    """How many of ``dropped`` tokens are recycled, and into how many clusters."""
    if dropped == 0 or share == 0:
        return 0, 0
    pool = min(int(share * dropped) + 1, dropped)
    return pool, min(pool // 10 + 1, pool)


def split(n: int, count: int, share: float) -> tuple[int, int, int]:
    """Share ``count`` of ``n`` tokens between kept tokens and clusters of recycled ones.

    Returns:
        tokens kept, tokens recycled, clusters: the most tokens kept such that they and their clusters make
        ``count``. Where even one kept token would leave more clusters than there is room for, one is kept.
    """
    for kept in range(count, 0, -1):
        pool, clusters = recycled(n - kept, share)
        if kept + clusters <= count:
            return kept, pool, clusters
    return (1, recycled(n - 1, share)[0], count - 1) if count else (0, 0, 0)


def sample_raters(method: str, tokens: VisualTokens) -> Tensor:
    """The raters of every sample, bool ``(S, T)``: found by the first stage, remembered by the others."""
    signals = tokens.signals
    key = f"{method}.raters"
    if key not in signals.memory:
        visual, text, real = signals.input, signals.text_input, signals.text_mask
        assert visual is not None and text is not None and real is not None
        signals.memory[key] = raters(visual, tokens.mask, tokens.samples, text, real)
    found: Tensor = signals.memory[key]
    # The layers of a model may live on several devices.
    return found.to(tokens.features.device)


@dataclass(frozen=True)
class SparseVLMStage(LayerPruner):
    """SparseVLM, one stage: keep what the picture's own words look at, and recycle part of the rest.

    Text tokens that resemble the visual tokens (raters) score them by the attention they paid in the layer
    before. The best of the dropped tokens are clustered, and each cluster's mean stays as one token. Source:
    "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", ICML 2025,
    arXiv 2410.04417, and the first version of its released code; `SparseVLM` makes three stages of it.

    Formula: raters ``R = {t : m_t > mean m}`` with ``m = mean over visual v of softmax over t of x_v . x_t``
    on the language model's input; ``score_v = mean over heads and R of attention[layer - 1][t, v]``. Of the
    ``d`` dropped tokens the best ``n = int(recycle d) + 1`` form ``C = n // 10 + 1`` clusters around density
    peaks: with ``d_uv = |h_u - h_v| / sqrt(D)``,
    ``density_u = exp(-mean of d_uv^2 over the C nearest v, u itself the first)``. A cluster becomes the mean
    of its hidden states.

    Args:
        layer: the layer whose input loses the tokens; 3 is the first of the paper's, which prunes after
            layer 2.
        scope: "sample" (the paper's): all images of a sample are ranked together; "view": each camera keeps
            its own budget. Raters are the prompt's, so that all views of a sample share them.
        recycle: share of the dropped tokens that is recycled; 0.3 is the released code's, 0 recycles none.
        neighbours: how many nearest tokens, itself counted, make the density of a token; None (default) for
            as many as there are clusters, as in the released code.

    Needs: the attention that layer ``layer - 1`` paid from the instruction, and what entered the model.

    Costs: clustering dominates where much is dropped, ``O(n^2 D)`` per row with ``n`` recycled tokens; the
    raters, once per call, ``O(N T D)``.

    Decisions:
        * The budget counts kept tokens and clusters: as many are kept as leave room for the clusters of the
          rest. The paper's kept counts come back from its totals (309 of 576 are 300 kept and 9 clusters). A
          budget too small for its clusters keeps one token and as many clusters as fit.
        * The paper appends clusters after the kept tokens; here a cluster takes the place of its densest
          member, so that the sequence stays in order.
        * The released code adds noise of 1e-6 to densities: dropped. The lower index counts as the denser.
        * A single cluster takes the place of its first token: by the released rule, a token's density is
          then made by itself alone, and all are equal.
        * A cluster's mean weighs all members alike.
        * Where no text token is above the mean, all of them rate.
        * The rank-adaptive counts of the paper are not what its released code runs: counts are the budget's.
        * Published numbers renumber the positions (``positions="reindex"``).
    """

    name: ClassVar[str] = "sparsevlm-stage"
    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.ATTENTION, Signal.INPUT})
    merges: ClassVar[bool] = True

    layer: int = 3
    scope: str = "sample"
    recycle: float = 0.3
    neighbours: int | None = None

    def __post_init__(self) -> None:
        check_layer(self.name, self.layer)
        check_scope(self.name, self.scope)
        check_share(self.name, "recycle", self.recycle, zero=True)
        if self.neighbours is not None:
            check_count(self.name, "neighbours", self.neighbours, 1)

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        attention = tokens.signals.attention
        assert attention is not None
        rows = of_samples(sample_raters(self.name, tokens), tokens.samples)
        order = top(mean_paid(attention, rows), tokens.lengths, tokens.mask)

        features = tokens.features
        width = max(counts, default=0)
        indices = order.new_full((len(counts), width), -1)
        merged = features.new_zeros(len(counts), width, features.shape[-1])
        weights = torch.ones(len(counts), width, device=features.device)
        for row, (n, count) in enumerate(zip(tokens.lengths, counts, strict=True)):
            kept, pool, clusters = split(n, count, self.recycle)
            best = order[row, :kept]
            indices[row, :kept] = best
            merged[row, :kept] = features[row, best]
            if clusters:
                # Ascending, so that equals among them go to the token that comes first.
                again = order[row, kept : kept + pool].sort().values
                folded = self._fold(features[row], again, clusters)
                indices[row, kept:count], merged[row, kept:count], weights[row, kept:count] = folded
        return Selection(indices, list(counts), merged, weights)

    def _fold(self, features: Tensor, again: Tensor, clusters: int) -> tuple[Tensor, Tensor, Tensor]:
        """Cluster the tokens ``again``: the places of the clusters, ``(C,)``, means ``(C, D)``, and sizes."""
        points = features[again]
        found = density_peaks(points, clusters, self.neighbours)
        densest = found.densest()
        # The densest member stands for itself; the others are folded into it.
        owner = found.owner.index_fill(0, densest, -1)
        mean = merge(points[None], densest[None], owner[None])[0]
        return again[densest], mean, sizes(densest[None], owner[None])[0]


@dataclass(frozen=True)
class SparseVLM2Stage(LayerPruner):
    """SparseVLM+, one stage: raters' attention freed of nearness, from the heads that look.

    Rotary positions alone make text attend to the visual tokens nearest to it. Dividing the attention by the
    logits that they alone would give counters that pull, and only the heads in which the raters then look
    most at the picture are asked. Source: the second version (SparseVLM+) of the released code of
    "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", ICML 2025,
    arXiv 2410.04417; `SparseVLM2` makes three stages of it.

    Formula: raters ``R`` as in `SparseVLMStage`;
    ``freed[h, t, v] = attention[layer - 1][h, t, v] / rope[t, v]``, where
    ``rope[t, v] = sqrt(d) (2 / d) sum_f cos((t - v) theta_f)`` is the logit of a query and a key of ``d``
    ones, by their positions; ``mass_h = sum over v and R of freed[h, t, v]``; with ``H*`` the heads of
    highest mass, ``score_v = mean over H* and R of freed[h, t, v]``.

    Args:
        layer: the layer whose input loses the tokens; 3 is the first of the paper's, which prunes after
            layer 2.
        scope: "sample" (the paper's): all images of a sample are ranked together; "view": each camera keeps
            its own budget. Raters are the prompt's, so that all views of a sample share them.
        heads: share of the heads that is asked; the released code takes 14, which is 14/32 of a 7B Llama's (a
            model of 28 heads needs 0.5). At least one is.

    Needs: the attention that layer ``layer - 1`` paid from the instruction, the logits that rotary positions
        alone would give there, and what entered the model.

    Costs: reading the attention of all heads, ``O(N H T)`` per row; the raters, once per call, ``O(N T D)``.

    Decisions:
        * As released, probabilities are divided by logits that no softmax has seen.
        * Those logits fall to zero and below far away (128 channels, base 1e4: first 1,707 tokens away),
          where the released code would blow scores up and turn their signs. Here they count as 0.5 at least,
          4% of the logit at distance 0 for 128 channels: nothing changes up to 1,108 tokens away, so that a
          single picture of 576 is not touched.
        * Heads are ranked for each row of its own, after the division, as released.
        * Nothing is recycled, as in the released code.
        * Published numbers keep the original positions (``positions="keep"``).
    """

    name: ClassVar[str] = "sparsevlm-v2-stage"
    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.ATTENTION, Signal.INPUT, Signal.ROPE})

    layer: int = 3
    scope: str = "sample"
    heads: float = 14 / 32

    def __post_init__(self) -> None:
        check_layer(self.name, self.layer)
        check_scope(self.name, self.scope)
        check_share(self.name, "heads", self.heads, zero=False)

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        attention, rope, mask = tokens.signals.attention, tokens.signals.rope, tokens.mask
        assert attention is not None and rope is not None
        rows = of_samples(sample_raters(self.name, tokens), tokens.samples)
        freed = attention.float() / rope.float().clamp(min=FLOOR)[:, :, None, :] * rows[:, None, None, :]
        if mask is not None:
            freed = freed * mask[:, :, None, None]
        number = max(1, int(self.heads * attention.shape[2] + 0.5))
        asked = top(freed.sum((1, 3)), [number] * len(rows))
        heads = torch.zeros(freed.shape[0], freed.shape[2], device=freed.device).scatter(1, asked, 1.0)
        raters_of = rows.sum(-1, keepdim=True).clamp(min=1)
        score = (freed * heads[:, None, :, None]).sum((2, 3)) / (number * raters_of)
        return Selection(top(score, counts, mask), list(counts))
