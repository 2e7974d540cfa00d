"""VisionZip: the tokens the vision tower attends to, and a few that sum up the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

from ..errors import PruneError
from ..functional import picks, ranking
from ..functional.contextual import gather_context, shares
from ..tokens import Selection, Signal, VisualTokens
from .base import Selector


@dataclass(frozen=True)
class VisionZip(Selector):
    """VisionZip: keep the most attended tokens, and merge the others into evenly spaced ones.

    The vision tower's own attention tells which tokens carry a picture's information (dominant tokens); the
    remaining ones are not dropped but folded into a few contextual tokens, by similarity of attention keys.
    Source: "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025,
    arXiv 2412.04467.

    Formula: of k tokens, ``C = round(contextual * k)`` are contextual. Dominant: the ``k - C`` highest
    saliencies. Of the M others, in sequence order, numbers ``0, s, 2 s, ...`` with ``s = max(1, M // C)``
    are targets ``t``; each of the rest goes to ``argmax_t cos(key_i, key_t)``; then
    ``x_t <- x_t + mean(x_i that went to t)``.

    Args:
        contextual: share of the kept tokens that are contextual, in [0, 1]. The paper keeps 192 = 162 + 30,
            128 = 108 + 20 and 64 = 54 + 10 tokens, all but exactly 10 of 64.
        scope: "view" as published: each picture by itself; "sample" pools all views of a sample.

    Needs: the attention each token receives in the vision tower and its attention key there.

    Costs: ``O(N (C + 1) D)`` per view: comparing keys with the targets and adding features up; one sort of
    the saliencies. Nothing waits for the device.

    Decisions:

    - The published code keeps the tower's class token among the dominant ones. A prompt has no place for it,
      so one more patch is kept instead.
    - The paper merges what goes into the projector; here its output is merged, since only that exists when
      tokens are chosen. The two differ as far as the projector is not linear.
    - The paper appends the contextual tokens behind the dominant ones; here each stands where its target
      stood, so that order and positions go on meaning something.
    - The number of contextual tokens is rounded half up; a target nothing goes to stays as it is.
    - Ties of saliency go to the lowest index, ties of similarity to the earliest target.

    Raises:
        PruneError: a field is out of its range; in ``select``, a count that does not fit its row.
    """

    name: ClassVar[str] = "visionzip"
    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.SALIENCY, Signal.VISION_KEYS})
    merges: ClassVar[bool] = True

    contextual: float = 10 / 64
    scope: str = "view"

    def __post_init__(self) -> None:
        share = self.contextual
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 <= share <= 1:
            raise PruneError(
                f"visionzip: contextual={share!r} is no share of the budget; give a number in [0, 1], "
                "such as 10 / 64"
            )
        if self.scope not in ("view", "sample"):
            raise PruneError(f"visionzip: unknown scope={self.scope!r}; give 'view' or 'sample'")

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        saliency, keys = tokens.signals.saliency, tokens.signals.vision_keys
        assert saliency is not None and keys is not None
        counts = picks.checked(self.name, counts, tokens.lengths)
        lengths, n = tokens.lengths, tokens.features.shape[1]
        anchors = shares(counts, self.contextual)
        kept_as_is = [k - c for k, c in zip(counts, anchors, strict=True)]
        mask = ranking.slots(lengths, tokens.features.device, n)
        dominant = ranking.members(ranking.top(saliency.float(), kept_as_is, mask), n)
        rest = [length - k for length, k in zip(lengths, kept_as_is, strict=True)]
        pool = mask & ~dominant
        kept, features, sizes = gather_context(tokens.features, keys, dominant, pool, counts, rest, anchors)
        return Selection(kept, counts, features, sizes)
