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
    """Farthest-point sampling of each view's hidden states at the input of ``layer``.

    The paper (Prune2Drive, CVPR 2026, arXiv 2508.13305) describes T-FPS after the vision encoder;
    its released code runs it here, at layer 1. ``compat="released"`` follows that code's choice
    rule: distances in the model's own dtype, the most isolated token first, truncated counts.

    Costs one Gram product per view; the layers before ``layer`` see every token, so a shallow layer
    saves almost as much prefill as choosing before the model, but their cache stays full.
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
    """`TFPSLayer` with the published code's choice rule: layer 1, own dtype, truncated counts.

    Made to reproduce that code's numbers; its half-precision distances tie often, so for use prefer
    "tfps" or "tfps-layer".
    """

    name: ClassVar[str] = "tfps-released"
    compat: str | None = "released"
