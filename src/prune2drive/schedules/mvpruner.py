"""MVPruner: diverse and relevant tokens of each camera first, then those the instruction looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..layer_pruners.base import LayerPruner
from ..layer_pruners.mvpruner import MVPrunerStage
from ..selectors.base import Selector
from .base import Schedule
from .placing import check_layers, check_strength, place

LAYERS = (16,)
"""Of the second stage, of 32."""


@dataclass(frozen=True)
class MVPruner(Schedule):
    """MVPruner: split the budget over the cameras twice, by their variety and by attention.

    Before the language model, cameras with diverse tokens keep more, and of each those that are relevant and
    unlike each other; half-way through it, cameras that the instruction looks at keep more. Source: MVPruner,
    ECCV 2026, arXiv 2606.27660 (described after a third-party port).

    Formula::

        stage 1, before layer 0: see `prune2drive.selectors.mvpruner.MVPrunerSelect`
        stage 2, before layer 16: see `prune2drive.layer_pruners.mvpruner.MVPrunerStage`
        shares of the original tokens at strength s: s, s^2, with (L2 - L1) s + (L - L2) s^2 = L keep - L1

    Args:
        layers: the decoder layer of the second stage, as a tuple; None takes 16 of 32 at the same depth
            of the model.

    Needs: what its stages need: the instruction, and the attention of the layer before the second stage.

    Costs: O(N^2 D) per view for the first stage's distances.

    Decisions:

    - Both stages keep the same share s of what they find, as the paper's budget equation has it. It is
      solved with L1 = 0, since the first stage here precedes every layer: keep 0.1 of 32 layers gives
      s = 0.171 (the text quotes about 0.169).
    """

    name: ClassVar[str] = "mvpruner"

    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_layers(self.name, self.layers, len(LAYERS))

    def stages(self, depth: int) -> Sequence[Selector | LayerPruner]:
        from ..selectors.mvpruner import MVPrunerSelect

        return [MVPrunerSelect(), *(MVPrunerStage(at) for at in place(self.name, self.layers, LAYERS, depth))]

    def shares(self, strength: float) -> Sequence[float]:
        check_strength(self.name, strength)
        return strength, strength**2
