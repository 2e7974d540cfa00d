"""T-FPS: farthest point sampling of each camera's tokens (Prune2Drive)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..errors import PruneError, did_you_mean
from ..functional.fps import COMPATS, METRICS, STARTS, fps
from ..tokens import Selection, VisualTokens
from .base import Selector


@dataclass(frozen=True)
class TFPS(Selector):
    """T-FPS: token-wise farthest point sampling, the selector of Prune2Drive.

    Neighbouring tokens of a picture say much the same, so each camera keeps those that are most unlike each
    other: every next token is the one farthest from all that were picked before. Source: "Prune2Drive: A
    Plug-and-Play Framework for Accelerating Vision-Language Models in Autonomous Driving", CVPR 2026,
    arXiv 2508.13305, its section on diversity-aware token selection.

    Formula: ``d(i, j) = 1 - cos(x_i, x_j)``; ``s_1 = start``, then ``s_t = argmax_i min_{u < t} d(i, s_u)``
    over the tokens not yet picked, ties to the lowest index; in each view alone.

    Args:
        metric: "cosine" (the paper's), "l2", "l1", or "nearest" (the ablation that picks the closest).
        start: "isolated" (the released code: the token whose nearest neighbour is farthest), "random" (the
            paper's text), "center", or a token index.
        compat: "released" measures distances in the features' own dtype and truncates counts, as the
            published code does; needs the default metric and start.
        seed: for ``start="random"``: the draw depends on the seed, the view's name and its length only, so
            it is the same in any batch.

    Needs: the projected features only.

    Costs: ``N^2 D`` per view for the product, plus ``O(k N)`` for the picks. No host synchronisation between
    picks, all views of all samples at once.

    Decisions:

    - The paper's text starts at a random token, its released code at the most isolated one: the default here.
    - Distances are measured in float32, whatever the features' dtype, unless ``compat="released"``.
    - Fewer tokens are a prefix of more, so one order serves every rate.
    - The paper describes the choice after the vision encoder, which is this method; the released code makes
      it at layer 1 of the language model, which is "tfps-layer".

    Raises:
        PruneError: on unknown or contradictory values; from ``select``, see `prune2drive.functional.fps`.
    """

    name: ClassVar[str] = "tfps"
    nested: ClassVar[bool] = True

    metric: str = "cosine"
    start: str | int = "isolated"
    compat: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise PruneError(
                f"TFPS: unknown metric {self.metric!r}.{did_you_mean(str(self.metric), METRICS)}"
            )
        if isinstance(self.start, str):
            if self.start not in STARTS:
                raise PruneError(f"TFPS: unknown start {self.start!r}.{did_you_mean(self.start, STARTS)}")
        elif isinstance(self.start, bool) or not isinstance(self.start, int) or self.start < 0:
            raise PruneError(f"TFPS: start must be a name or a token index from 0, got {self.start!r}.")
        if self.compat is not None:
            if self.compat not in COMPATS:
                raise PruneError(
                    f"TFPS: unknown compat {self.compat!r}.{did_you_mean(str(self.compat), COMPATS)}"
                )
            if self.metric != "cosine" or self.start != "isolated":
                raise PruneError(
                    "TFPS: compat='released' fixes metric='cosine' and start='isolated', got "
                    f"metric={self.metric!r}, start={self.start!r}."
                )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise PruneError(f"TFPS: seed must be an int, got {self.seed!r}.")

    @property
    def rounding(self) -> str:  # type: ignore[override]
        """How rates become counts: truncated (729 x 0.095 -> 69) in the released way, else half-up."""
        return "truncate" if self.compat == "released" else "half-up"

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        """Pick ``counts[v]`` tokens of every view; indices int64 ``(V, max counts)`` in pick order.

        Raises:
            PruneError: one count per view is missing, or a count is below 1 or above the view's length;
                ``start`` beyond a view; NaN or Inf in the features.
        """
        counts = [int(count) for count in counts]
        if len(counts) != len(tokens.views):
            raise PruneError(f"TFPS: got {len(counts)} counts for {len(tokens.views)} views.")
        start: str | int | torch.Tensor = self.start
        if start == "random":
            start = torch.tensor([self._draw(view.name, len(view)) for view in tokens.views])
        order = fps(
            tokens.features, counts, start=start, metric=self.metric, mask=tokens.mask, compat=self.compat
        )
        return Selection(order, counts)

    def _draw(self, view: str, length: int) -> int:
        """First pick of a view: a host generator seeded by name, never by place in the batch."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}:{view}".encode()))
        return int(torch.randint(length, (), generator=generator))
