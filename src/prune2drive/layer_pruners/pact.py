"""PACT: drop what no query looks at, cluster the rest by its keys, and merge the clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..functional import dbdpc
from ..functional.merging import merge
from ..tokens import Selection, Signal, VisualTokens
from .base import LayerPruner
from .checks import check_layer, check_positive, check_scope, check_share


@dataclass(frozen=True)
class PACT(LayerPruner):
    """PACT: prune unimportant tokens, cluster the others by density, keep one merged token per cluster.

    Importance comes from keys against the mean query, so no attention weights are needed (EUTI); clusters
    come from keys, and no token is further than a cut-off from its centre (DBDPC). Source: "PACT: Pruning and
    Clustering-Based Token Reduction for Faster Visual Language Models", CVPR 2025,
    arXiv 2504.08966, released code at layer 4.

    Formula::

        q = mean_i Q_i;  e_i = |h_i|_2 * mean_heads softmax_i(q . K_i / sqrt(d)), before rotary positions
        candidates = the int(0.55 n) of largest e
        d_ij = 1 - cos(K_i, K_j), after rotary positions
        rho_i = sum_j exp(-(d_ij / 2)^2) over candidates
        centre: no denser candidate within the cut-off that is not assigned to another centre
        candidates within the cut-off, and pruned tokens within 1.5 cut-offs, join their nearest centre
        kept row = mean of the hidden states of centre and members; size = their number

    Args:
        layer: decoder layer before which tokens leave, 4 as released.
        keep: share of tokens that are candidates, 0.55 as released; their number is rounded down.
        cutoff: None searches the cut-off that makes as many clusters as tokens are asked for; a number fixes
            it, as the released 0.21 does.
        pull: pruned tokens within this many cut-offs of a centre are merged into it, 1.5 as released.
        scope: "sample" as released: all pictures form one pool. "view" treats each picture by itself.

    Needs: keys and queries of the layer itself, before and after rotary positions.

    Costs: O(n^2 C) for the distances of n candidates, which take 4 n^2 bytes; the search for the cut-off
    reads k rows of them 16 times on a CPU, and on a GPU some hundred times all, waiting every few times.

    Decisions:

    - The paper's count follows from a fixed cut-off. Here k is met exactly: the cut-off is found by
      bisection, as one with the most centres that are not more than k (others may have as many, and
      other ones); the places left over go
      to the candidates of largest e that are no centres, each a cluster of its own that gathers nothing.
    - With a fixed cut-off too few centres are filled up in the same way; of too many the first k in order
      of density stay, and candidates that lose their centre are treated as pruned tokens.
    - When k is more than the candidates, the k tokens of largest e are the candidates; with a searched
      cut-off, which is then 0, all of them stay and only copies of their keys are merged into them.
    - Members go to the nearest of all centres, whichever round found it; equally near, to the densest.
    - The released mean query is that of every token up to the last picture's end, system prompt and text
      between pictures included. Here it is that of the visual tokens, the only ones that a method is given
      queries of.
    - The released softmax runs over the same tokens. Here it runs over the visual ones, whose scores alone
      are compared: each head's normaliser lacks the mass of that text, so that heads with much of their mass
      on text weigh more in the mean here.
    - The released rounds with a sequential end find the same centres as rounds to the end, done here.
    - Positions are those of the centres, and sizes are returned for proportional attention.
    """

    name: ClassVar[str] = "pact"
    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.OWN_KEYS})
    merges: ClassVar[bool] = True
    proportional: ClassVar[bool] = True

    layer: int = 4
    keep: float = 0.55
    cutoff: float | None = None
    pull: float = 1.5
    scope: str = "sample"

    def __post_init__(self) -> None:
        check_layer(self.name, self.layer)
        check_share(self.name, "keep", self.keep, zero=False)
        if self.cutoff is not None:
            check_positive(self.name, "cutoff", self.cutoff, 2.0)
        check_positive(self.name, "pull", self.pull)
        check_scope(self.name, self.scope)

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        signals, features = tokens.signals, tokens.features
        queries, keys, rotated = signals.own_queries, signals.own_keys, signals.own_rotated_keys
        assert queries is not None and keys is not None and rotated is not None
        kept, owners, width = [], [], features.shape[1]
        for row, (n, k) in enumerate(zip(tokens.lengths, counts, strict=True)):
            if not k:
                kept.append(torch.zeros(0, dtype=torch.long, device=features.device))
                owners.append(torch.full((width,), -1, device=features.device))
                continue
            weight = importance(queries[row, :n], keys[row, :n], features[row, :n])
            picks, owner = self._cluster(weight, rotated[row, :n], k)
            kept.append(picks)
            owners.append(torch.nn.functional.pad(owner, (0, width - n), value=-1))
        indices = pad_sequence(kept, batch_first=True, padding_value=-1)
        owner = torch.stack(owners)
        slots = torch.arange(indices.shape[1], device=indices.device)
        sizes = 1 + (owner[:, None, :] == slots[:, None]).sum(-1)
        return Selection(indices, list(counts), merge(features, indices, owner), sizes.float())

    def _cluster(self, weight: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The tokens that stay, ``(k,)``, and the place among them that each other token is merged into."""
        n = len(weight)
        share = max(k, int(self.keep * n))
        candidates = weight.sort(descending=True, stable=True).indices[:share]
        # By index, so that equal densities go to the lowest.
        candidates = candidates.sort().values
        distance = dbdpc.cosine_distances(keys[candidates], keys[candidates])
        order = dbdpc.density(distance).sort(descending=True, stable=True).indices
        distance, candidates = distance[order][:, order], candidates[order]
        if self.cutoff is None:
            found, cutoff = dbdpc.at_most(distance, k)
        else:
            found, cutoff = dbdpc.centres(distance, self.cutoff), self.cutoff
            found &= found.cumsum(0) <= k
        middle = candidates[found]

        rest = torch.full_like(weight, -1.0).index_copy_(0, candidates, weight[candidates])
        rest = rest.index_fill_(0, middle, -1.0)
        single = rest.sort(descending=True, stable=True).indices[: k - len(middle)]
        kept = torch.cat([middle, single])

        to = dbdpc.cosine_distances(keys, keys[middle])
        owner, to = to.argmin(-1), to.amin(-1)
        reach = torch.full_like(to, self.pull * cutoff).index_fill_(0, candidates, max(self.pull, 1) * cutoff)
        stays = (to > reach).index_fill(0, kept, True)
        return kept, owner.masked_fill(stays, -1)


def importance(queries: Tensor, keys: Tensor, hidden: Tensor) -> Tensor:
    """EUTI of the tokens of one pool, float32 ``(n,)``.

    Args:
        queries, keys: ``(n, H, d)``, before rotary positions.
        hidden: ``(n, D)``.
    """
    query = queries.float().mean(0)
    # A sum per token, no matrix product: copies of a token then tie to the last bit.
    logits = (keys.float() * query).sum(-1) / keys.shape[-1] ** 0.5
    return logits.softmax(0).mean(-1) * torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32)
