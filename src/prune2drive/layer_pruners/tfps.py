"""T-FPS inside the language model, on the hidden states entering a layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..errors import PruneError
from ..selectors.tfps import TFPS
from ..tokens import Selection, VisualTokens
from .base import LayerPruner


@dataclass(frozen=True)
class TFPSLayer(LayerPruner):
    """T-FPS at a layer: farthest point sampling of the hidden states that enter it.

    As `TFPS`, but inside the language model, where tokens have met the layers before and each other. The
    layers before the chosen one see every token, so a shallow layer saves almost as much prefill as choosing
    before the model, but their cache stays full. Source: "Prune2Drive: A Plug-and-Play Framework for
    Accelerating Vision-Language Models in Autonomous Driving", CVPR 2026, arXiv 2508.13305, and its released
    code, which runs T-FPS here.

    Formula: ``d(i, j) = 1 - cos(h_i, h_j)``; ``s_1 = start``, then ``s_t = argmax_i min_{u < t} d(i, s_u)``
    over the tokens not yet picked, ties to the lowest index; in each view alone.

    Args:
        layer: the layer whose input loses the tokens, from 1; 1 is the released code's.
        metric: "cosine" (the paper's), "l2", "l1", or "nearest" (the ablation that picks the closest).
        start: "isolated" (the released code: the token whose nearest neighbour is farthest), "random" (the
            paper's text), "center", or a token index.
        compat: "released" follows that code's choice rule: distances in the model's own dtype, the most
            isolated token first, truncated counts.
        seed: for ``start="random"``.

    Needs: the hidden states only.

    Costs: ``N^2 D`` per view for the product, plus ``O(k N)`` for the picks.

    Decisions:

    - The paper describes T-FPS after the vision encoder, which is "tfps"; its released code runs it at
      layer 1.
    - Hidden states are taken as they enter the layer, before its norm.
    - Distances are measured in float32, unless ``compat="released"``.

    Raises:
        PruneError: a layer below 1; unknown or contradictory values, as `TFPS`.
    """

    name: ClassVar[str] = "tfps-layer"
    layer: int = 1
    metric: str = "cosine"
    start: str | int = "isolated"
    compat: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.layer, bool) or not isinstance(self.layer, int) or self.layer < 1:
            raise PruneError(
                f"layer={self.layer!r}: a stage inside the language model starts at layer 1 or later; "
                "to choose before the model use method='tfps'"
            )
        self._inner()

    def _inner(self) -> TFPS:
        return TFPS(metric=self.metric, start=self.start, compat=self.compat, seed=self.seed)

    @property
    def rounding(self) -> str:  # type: ignore[override]
        return self._inner().rounding

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        return self._inner().select(tokens, counts)


@dataclass(frozen=True)
class TFPSReleased(TFPSLayer):
    """T-FPS as released: at layer 1, in the model's own dtype, with truncated counts.

    `TFPSLayer` with the published code's choice rule, made to reproduce that code's numbers. Its
    half-precision distances tie often, so for use prefer "tfps" or "tfps-layer". Source: the released code of
    Prune2Drive, CVPR 2026, arXiv 2508.13305.

    Formula: as `TFPSLayer`, with distances rounded to the model's dtype and ``k = floor(rate N)``.

    Args:
        layer: the layer whose input loses the tokens, from 1; the released code's 1.
        metric: "cosine"; the rule fixes it.
        start: "isolated"; the rule fixes it.
        compat: "released"; None makes it `TFPSLayer`.
        seed: without effect, as the start is not drawn.

    Needs: the hidden states only.

    Costs: ``N^2 D`` per view for the product, plus ``O(k N)`` for the picks.

    Decisions:

    - The released code's search prunes at layer 3, its inference at layer 1: the default here.
    - Only the rule of choice is the released one; positions, masks and caches are the engine's.

    Raises:
        PruneError: as `TFPSLayer`.
    """

    name: ClassVar[str] = "tfps-released"
    compat: str | None = "released"
