"""VisPruner: attended tokens, and the least repetitive of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import PruneError
from ..functional import picks
from ..functional.products import gram, unit
from ..tokens import Selection, Signal, VisualTokens
from .base import Selector

STEP = 8
"""Most tokens removed before similarities are looked at anew."""


@dataclass(frozen=True)
class VisPruner(Selector):
    """VisPruner: keep the most attended tokens, and thin the others out until no near copies are left.

    Attention of the vision tower finds what is important, but picks the same object many times; the second
    half of the budget therefore goes to tokens that differ from each other. Source: VisPruner, ICCV 2025,
    arXiv 2412.01818.

    Formula: of k tokens the ``int(important * k)`` highest saliencies stay. The others, most attended first
    to begin with, are thinned out to the ``T`` that are wanted besides: with R of them, take turns into A
    (1st, 3rd, ...) and B (2nd, 4th, ...), find ``max_b cos(a, b)`` for every a in A, and remove the
    ``min(8, R - T)`` highest; the new order is what is left of A, most similar first, then B as it was;
    repeat until ``R = T``.

    Args:
        important: share of the kept tokens that attention chooses, in [0, 1]; the paper's 0.5. Its authors
            recommend 0.75 at the smallest budget they report, 64 of 576 tokens.
        scope: "view" as published: each picture by itself; "sample" pools all views of a sample.

    Needs: the attention each token receives in the vision tower, and the tower's features as the projector
    receives them.

    Costs: ``N^2 C`` per view for all cosines, then ``N / 8`` steps that gather ``N^2 / 4`` of them. Views
    that are equally long and keep equally many go through the steps together. Nothing waits for the device.

    Decisions:

    - Of equally similar tokens the last in the order leaves first, so that at first it is the least attended;
      those that stay are turned round as well. Equally attended tokens begin in sequence order.
    - Of an odd number A gets one more than B; the published code cannot go on from there.
    - A step removes no more than A holds, which matters only when fewer than 16 are left.
    - Cosines are computed once and looked up in every step, which changes nothing but the time and the last
      bit. That bit can decide: near-ties of a step change the halves of all later ones, so that in float32
      two correct implementations may differ in a part of the thinned half.

    Raises:
        PruneError: a field is out of its range; in ``select``, a count that does not fit its row.
    """

    name: ClassVar[str] = "vispruner"
    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.ENCODER, Signal.SALIENCY})

    important: float = 0.5
    scope: str = "view"

    def __post_init__(self) -> None:
        share = self.important
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 <= share <= 1:
            raise PruneError(
                f"vispruner: important={share!r} is no share of the budget; give a number in [0, 1], "
                "such as 0.5"
            )
        if self.scope not in ("view", "sample"):
            raise PruneError(f"vispruner: unknown scope={self.scope!r}; give 'view' or 'sample'")

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        encoder, saliency = tokens.signals.encoder, tokens.signals.saliency
        assert encoder is not None and saliency is not None
        counts = picks.checked(self.name, counts, tokens.lengths)
        lengths = tokens.lengths
        device = encoder.device
        out = torch.full((len(counts), max(counts, default=0)), -1, device=device)
        alike: dict[tuple[int, int], list[int]] = {}
        for row, shape in enumerate(zip(lengths, counts, strict=True)):
            alike.setdefault(shape, []).append(row)
        for (n, k), rows in alike.items():
            if not k:
                continue
            of = torch.tensor(rows).to(device, non_blocking=True)
            order = saliency[of, :n].float().sort(dim=-1, descending=True, stable=True).indices
            first = int(k * self.important)
            rest = _thin_out(encoder[of, :n], order[:, first:], k - first)
            out[of, :k] = torch.cat([order[:, :first], rest], -1)
        return Selection(out, counts)


def _thin_out(features: Tensor, order: Tensor, wanted: int) -> Tensor:
    """Remove near copies from the tokens ``order`` (V, R) until ``wanted`` are left: (V, wanted)."""
    left = order.shape[1]
    if wanted in (0, left):
        return order[:, :wanted]
    cosine = gram(unit(features))
    views = torch.arange(len(order), device=order.device)[:, None, None]
    while left > wanted:
        even, odd = order[:, ::2], order[:, 1::2]
        repeated = cosine[views, even[:, :, None], odd[:, None, :]].amax(-1)
        gone = min(STEP, left - wanted, even.shape[1])
        # Ascending and stable: among equals the earlier come first, and stay.
        stays = repeated.sort(dim=-1, stable=True).indices[:, : even.shape[1] - gone]
        order = torch.cat([even.gather(1, stays.flip(-1)), odd], -1)
        left -= gone
    return order
