"""DUET-VLM: choose on both sides, before the language model and twice inside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..errors import PruneError
from ..layer_pruners.attention_rank import AttentionRank
from ..layer_pruners.base import LayerPruner
from ..layer_pruners.checks import check_scope
from ..selectors.base import Selector
from .base import Schedule
from .placing import between, check_layers, check_strength, place

LAYERS = (16, 24)
DEPTH = 32


@dataclass(frozen=True)
class Duet(Schedule):
    """DUET-VLM: salient and clustered tokens before the language model, text-guided dropping inside it.

    The vision side keeps salient tokens and merges a small pool of others (`DuetSelect`); inside the language
    model the instruction's attention halves what is left at half the depth and drops the rest at three
    quarters (`AttentionRank`). Source: "DUET-VLM", CVPR 2026, arXiv 2602.18846, and its released code.

    Formula: the vision side keeps a share ``v`` of the tokens, the stages at layers 16 and 24 of 32
    ``ratios[0] v`` and ``ratios[1] v``. With ``a = (16 + 8 ratios[0] + 8 ratios[1]) / 32``, what layers see
    on average at ``v = 1``: up to strength ``a``, ``v = strength / a``; beyond it ``v = 1`` and the ratios
    rise in a line to 1. At the paper's layers, strength is the average share over depth (the paper's 307 of
    576 tokens: 0.333).

    Args:
        layers: layers whose input loses tokens, one per ratio, ascending; None (default) for the paper's, at
            the same shares of the model's depth.
        ratios: what each stage inside the language model keeps of the vision side's tokens, never growing.
            (0.5, 0.0) is the released code's for LLaVA, (0.5, 0.25) that for Qwen2.5-VL.
        scope: of the stages inside the language model. "sample" (the paper's): all images of a sample are
            ranked together; "view": each camera keeps its own budget.

    Needs: those of `DuetSelect`, and the attention that layers 16 and 24 are about to pay from the
        instruction.

    Costs: those of `DuetSelect`, then ``O(T N D)`` per stage for the attention of ``T`` instruction tokens.

    Decisions:
        * The paper ranks by the attention of salient words, found by part-of-speech tags. A method sees
          token states only, so its documented fallback serves: all text after the image.
        * A ratio of 0 asks for no token at all: a budget keeps at least as many as there are cameras.
        * Published numbers renumber the positions (``positions="reindex"``).
    """

    name: ClassVar[str] = "duet"
    cluster: ClassVar[str] = "keys"
    """How the vision side forms its clusters: the paper's."""

    layers: tuple[int, ...] | None = None
    ratios: tuple[float, ...] = (0.5, 0.0)
    scope: str = "sample"

    def __post_init__(self) -> None:
        if (
            not isinstance(self.ratios, tuple)
            or len(self.ratios) != len(LAYERS)
            or not 1 >= self.ratios[0] >= self.ratios[1] >= 0
        ):
            raise PruneError(
                f"{self.name}: ratios={self.ratios!r}; give a tuple of {len(LAYERS)} numbers from 1 down to "
                "0, such as (0.5, 0.0)"
            )
        check_layers(self.name, self.layers, len(LAYERS))
        check_scope(self.name, self.scope)

    def stages(self, depth: int) -> Sequence[Selector | LayerPruner]:
        from ..selectors.duet import DuetSelect

        layers = place(self.name, self.layers, LAYERS, depth)
        ranks = [AttentionRank(layer, rows="text", scope=self.scope) for layer in layers]
        return [DuetSelect(cluster=self.cluster), *ranks]

    def shares(self, strength: float) -> Sequence[float]:
        check_strength(self.name, strength)
        whole = (1.0, *self.ratios)
        # How many layers see what each stage leaves.
        spans = [b - a for a, b in zip((0, *LAYERS), (*LAYERS, DEPTH), strict=True)]
        average = sum(span * share for span, share in zip(spans, whole, strict=True)) / DEPTH
        knots = [(0.0, (0.0, 0.0, 0.0)), (average, whole), (1.0, (1.0, 1.0, 1.0))]
        return between(strength, knots)


@dataclass(frozen=True)
class DuetTFPS(Duet):
    """DUET-VLM with T-FPS: as `Duet`, with farthest-point samples in place of the merged tokens.

    `Duet` sums up a pool of tokens around anchors at even steps; here as many tokens far from each other
    stay instead, unmerged, by the rule of Prune2Drive. Source: DUET-VLM, CVPR 2026, arXiv 2602.18846, and
    Prune2Drive, CVPR 2026, arXiv 2508.13305; the combination is this library's.

    Formula: the shares are those of `Duet`, the vision side is ``DuetSelect(cluster="tfps")``.

    Args:
        layers: layers whose input loses tokens, one per ratio, ascending; None (default) for the paper's, at
            the same shares of the model's depth.
        ratios: what each stage inside the language model keeps of the vision side's tokens, never growing.
        scope: of the stages inside the language model. "sample" (the paper's): all images of a sample are
            ranked together; "view": each camera keeps its own budget.

    Needs: those of `DuetSelect`, and the attention that layers 16 and 24 are about to pay from the
        instruction.

    Costs: those of `Duet`, and ``N^2 D`` per view for the distances.

    Decisions:
        * Those of `Duet` and, on the vision side, those of `DuetSelect` for ``cluster="tfps"``.
    """

    name: ClassVar[str] = "duet-tfps"
    cluster: ClassVar[str] = "tfps"
