"""MVPruner, first stage: more tokens for the more varied cameras, relevant and different ones in each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..allocators.total import split
from ..errors import PruneError
from ..functional import ranking
from ..functional.distances import measure
from ..functional.products import dots
from ..tokens import Selection, Signal, VisualTokens
from .base import Selector

SMOOTH = 1e-5
"""Keeps equally varied cameras from dividing by zero."""


@dataclass(frozen=True)
class MVPrunerSelect(Selector):
    """MVPruner's first stage: split the budget by variety, pick by distance and relevance.

    A camera whose tokens resemble each other needs fewer of them; inside a camera, farthest point sampling
    is drawn towards what the instruction is about. Source: MVPruner, ECCV 2026, arXiv 2606.27660, its stage
    at layer 0 (described after a third-party port).

    Formula: ``d_v`` the mean distance (1 - cos) of camera v's tokens to their nearest neighbours;
    ``d'_v = (d_v - max d) / (max d - min d + 1e-5)``; camera v keeps a share of its tokens proportional to
    ``softmax(d')_v``. Inside: ``r_i`` the mean dot product of token i with the instruction's tokens;
    ``s_1 = argmax r_i``, then ``s_t = argmax_i r_i min_{u < t} (1 - cos(x_i, x_{s_u}))``.

    Needs: the instruction's embeddings; without an instruction the picks are plain farthest points.

    Costs: ``N^2 D`` per view for the distances, which stay in memory (``4 N^2`` bytes per view up to 8192
    tokens), then ``O(k N)``. The host waits once for the device, to learn the cameras' variety.

    Decisions:

    - The published strength s, common to all samples, becomes the one at which a sample's cameras keep
      exactly the total asked for: counts are in proportion to length times softmax, at least 1 and at most
      the view's length; what a bound takes or leaves, the others share; largest remainder.
    - Relevance is used as it is, also where it is negative, as described: there a smaller distance wins.
    - Without an instruction the first pick is the token whose nearest neighbour is farthest, as in T-FPS.
    - The variety of a view of one token is 0. A view that an earlier stage emptied takes no part.
    - Ties go to the lowest index, of remainders to the first camera.

    Raises:
        PruneError: a sample is asked for fewer tokens than it has views, or for more than it has tokens.
    """

    name: ClassVar[str] = "mvpruner-select"
    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.TEXT})
    allocates: ClassVar[bool] = True

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        text, text_mask = tokens.signals.text, tokens.signals.text_mask
        assert text is not None and text_mask is not None
        features, device = tokens.features.float(), tokens.features.device
        lengths, n = tokens.lengths, features.shape[1]
        mask = ranking.slots(lengths, device, n)

        distances = measure(features, "cosine", isolated=True)
        nearest = distances.nearest(mask)
        # A token without a neighbour is infinitely far from it.
        spread = nearest.masked_fill(~mask | nearest.isinf(), 0.0).double().sum(-1)
        diversity = [s / max(length, 1) for s, length in zip(spread.tolist(), lengths, strict=True)]
        counts = self._share_out(tokens, counts, diversity)

        samples = torch.tensor(list(tokens.samples)).to(device, non_blocking=True)
        relevance, spoken = _relevance(features, text.float(), text_mask, samples)
        first = torch.where(spoken[:, None], relevance, nearest).masked_fill(~mask, -torch.inf).argmax(-1)
        distances.close()

        most = max(counts, default=0)
        picks, free, near, pick = [first], mask, torch.full_like(nearest, torch.inf), first
        for _ in range(most - 1):
            free = free.scatter(1, pick[:, None], False)
            near = torch.fmin(near, distances.row(pick))
            # Chosen tokens are told by `free`: their distance times a negative relevance could win.
            pick = (near * relevance).masked_fill(~free, -torch.inf).argmax(-1)
            picks.append(pick)
        indices = torch.stack(picks, -1)[:, :most]
        return Selection(indices.masked_fill(~ranking.slots(counts, device), -1), counts)

    def _share_out(
        self, tokens: VisualTokens, counts: Sequence[int], diversity: Sequence[float]
    ) -> list[int]:
        """Split the total of every sample over its views by their diversity."""
        lengths, out = tokens.lengths, [0] * len(counts)
        for sample, own in tokens.by_sample.items():
            rows = [row for row in own if lengths[row]]
            total = sum(counts[row] for row in own)
            there = sum(lengths[row] for row in rows)
            if not len(rows) <= total <= there:
                raise PruneError(
                    f"mvpruner-select: sample {sample} is asked for {total} tokens; give it from "
                    f"{len(rows)}, one for each view, up to the {there} it has"
                )
            if not rows:
                continue
            high, low = max(diversity[row] for row in rows), min(diversity[row] for row in rows)
            weights = [math.exp((diversity[row] - high) / (high - low + SMOOTH)) for row in rows]
            shares = split(total, [lengths[row] for row in rows], weights)
            for row, share in zip(rows, shares, strict=True):
                out[row] = share
        return out


def _relevance(features: Tensor, text: Tensor, text_mask: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Mean dot product with the instruction, (V, N), 1 without one; and whether there is one, (V,)."""
    number = text_mask.sum(-1)
    # The mean of dot products is the dot product with the mean.
    mean = text.masked_fill(~text_mask[..., None], 0.0).sum(1) / number.clamp(min=1)[:, None]
    relevance = dots(features, mean[samples][:, None])[..., 0]
    spoken = (number > 0)[samples]
    return torch.where(spoken[:, None], relevance, 1.0), spoken
