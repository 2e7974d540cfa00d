"""DUET-VLM, first stage: attended tokens, and a few that sum up the next most attended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

from ..errors import PruneError, did_you_mean
from ..functional import picks, ranking
from ..functional.contextual import gather_context, shares
from ..functional.fps import fps
from ..tokens import Selection, Signal, VisualTokens
from .base import Selector

CLUSTERS = ("keys", "tfps")


@dataclass(frozen=True)
class DuetSelect(Selector):
    """DUET-VLM's first stage: keep the most attended tokens, and merge the next most attended into a few.

    As VisionZip, but a contextual token sums up only a pool of tokens that the vision tower attends to
    next; what it hardly looks at is dropped and not mixed in. Source: DUET-VLM, CVPR 2026,
    arXiv 2602.18846, its vision-side stage.

    Formula: of k tokens, ``C = round(contextual * k)`` are contextual. Dominant: the ``k - C`` highest
    saliencies. Pool: the next ``P = min(cluster_width * C, rest)``. Of the pool, most attended first, numbers
    ``0, s, 2 s, ...`` with ``s = max(1, P // C)`` are anchors ``t``; each other member goes to
    ``argmax_t cos(key_i, key_t)``; then ``x_t <- x_t + mean(x_i that went to t)``.
    With ``cluster="tfps"`` the C tokens are instead farthest point samples (cosine, isolated start) of all
    tokens that are not dominant, unmerged.

    Args:
        contextual: share of the kept tokens that are contextual, in [0, 1]; the default is the published
            300 + 7 tokens.
        cluster_width: how many tokens of the pool there are for one contextual token, at least 1; the
            published code's 4.
        cluster: "keys" as published, or "tfps", which replaces the clustering by Prune2Drive's sampler.
        scope: "view" as published: each picture by itself; "sample" pools all views of a sample.

    Needs: the attention each token receives in the vision tower and its attention key there.

    Costs: ``O(N (C + 1) D)`` per view for keys and sums, or ``N^2 D`` with "tfps"; one sort of the
    saliencies. Nothing waits for the device.

    Decisions:

    - Anchors are evenly spaced over the pool in order of attention, as in the published code; in VisionZip
      it is sequence order.
    - The published code keeps the tower's class token among the dominant ones. A prompt has no place for it,
      so one more patch is kept instead.
    - The paper merges what goes into the projector; here its output is merged.
    - A contextual token stands where its anchor stood, not behind the dominant ones.
    - "tfps" samples the tokens that are not dominant as if these did not exist: the sampler as published, in
      the place where the clustering was, which does not look at the dominant tokens either. It measures
      projected features and reads no keys, though they are asked for.
    - The number of contextual tokens is rounded half up, which at the default share makes none of fewer than
      22 tokens. Ties of saliency go to the lowest index, ties of similarity to the more attended anchor.

    Raises:
        PruneError: a field is out of its range or unknown; in ``select``, a count that does not fit its row.
    """

    name: ClassVar[str] = "duet-select"
    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.SALIENCY, Signal.VISION_KEYS})

    contextual: float = 7 / 307
    cluster_width: int = 4
    cluster: str = "keys"
    scope: str = "view"

    def __post_init__(self) -> None:
        share, width = self.contextual, self.cluster_width
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 <= share <= 1:
            raise PruneError(
                f"duet-select: contextual={share!r} is no share of the budget; give a number in [0, 1], "
                "such as 7 / 307"
            )
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise PruneError(
                f"duet-select: cluster_width={width!r} is no pool size; give an int from 1, such as 4"
            )
        if self.cluster not in CLUSTERS:
            raise PruneError(
                f"duet-select: unknown cluster={self.cluster!r}.{did_you_mean(str(self.cluster), CLUSTERS)}"
            )
        if self.scope not in ("view", "sample"):
            raise PruneError(f"duet-select: unknown scope={self.scope!r}; give 'view' or 'sample'")

    @property
    def merges(self) -> bool:  # type: ignore[override]
        """Only the published clustering does; samples stay as they are."""
        return self.cluster == "keys"

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        saliency, keys = tokens.signals.saliency, tokens.signals.vision_keys
        assert saliency is not None and keys is not None
        counts = picks.checked(self.name, counts, tokens.lengths)
        features, lengths = tokens.features, tokens.lengths
        n, device = features.shape[1], features.device
        anchors = shares(counts, self.contextual)
        kept_as_is = [k - c for k, c in zip(counts, anchors, strict=True)]
        mask = ranking.slots(lengths, device, n)
        dominant = ranking.members(ranking.top(saliency.float(), kept_as_is, mask), n)
        rest = mask & ~dominant
        left = [length - k for length, k in zip(lengths, kept_as_is, strict=True)]

        if self.cluster == "tfps":
            # Rows that want none still need a pick to be batched with the others; it is thrown away.
            sampled = fps(features, [max(c, 1) for c in anchors], mask=rest, check=False)
            wanted = ranking.slots(anchors, device, sampled.shape[1])
            sampled = sampled.masked_fill(~wanted, -1)
            return Selection(ranking.places(dominant | ranking.members(sampled, n), counts), counts)

        pooled = [min(self.cluster_width * c, m) for c, m in zip(anchors, left, strict=True)]
        order = ranking.top(saliency.float(), pooled, rest)
        pool = ranking.members(order, n)
        kept, merged, sizes = gather_context(features, keys, dominant, pool, counts, pooled, anchors, order)
        return Selection(kept, counts, merged, sizes)
