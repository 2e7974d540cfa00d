"""SparseVLM: three stages, with the numbers of tokens that its released code keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..layer_pruners.sparsevlm import SparseVLM2Stage, SparseVLMStage, recycled
from .base import Schedule
from .placing import between, check_layers, check_strength, place

TOKENS = 576
LAYERS = (3, 7, 16)
KEPT = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}
KEPT2 = {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)}
"""Tokens kept of 576 by each stage, for a target of 192, 128, ... tokens."""

Row = tuple[float, ...]
Knots = tuple[tuple[float, Row], ...]


def with_clusters(kept: Sequence[int]) -> tuple[int, ...]:
    """What each stage leaves when clusters of the dropped tokens are added to the ``kept``."""
    left, before = [], TOKENS
    for number in kept:
        before = number + recycled(before - number, 0.3)[1]
        left.append(before)
    return tuple(left)


def table(rows: Mapping[int, Sequence[int]]) -> Knots:
    """Shares by strength from counts by target: no count may fall as the target grows."""
    knots: list[tuple[float, Row]] = [(1.0, (1.0, 1.0, 1.0))]
    most: Sequence[int] = (TOKENS,) * 3
    for target in sorted(rows, reverse=True):
        most = [min(pair) for pair in zip(most, rows[target], strict=True)]
        knots.append((target / TOKENS, tuple(count / TOKENS for count in most)))
    return ((0.0, (0.0, 0.0, 0.0)), *reversed(knots))


SHARES = table({target: with_clusters(kept) for target, kept in KEPT.items()})
SHARES2 = table(KEPT2)


@dataclass(frozen=True)
class SparseVLM(Schedule):
    """SparseVLM: three stages rated by the words that resemble the picture, with recycling.

    Text tokens that resemble the picture rate the visual tokens after layers 2, 6 and 15 of 32; part of what
    leaves is clustered and stays as means (`SparseVLMStage`). Source: "SparseVLM: Visual Token Sparsification
    for Efficient Vision-Language Model Inference", ICML 2025, arXiv 2410.04417, and the first version of its
    released code.

    Formula: the shares of the three stages are those of the released code for 64, 96, 128 and 192 of 576
    tokens (clusters counted) at strengths 64/576, 96/576, 128/576, 192/576, linear in between and down to
    nothing at strength 0 and up to everything at strength 1.

    Args:
        layers: layers whose input loses tokens, three, ascending; None (default) for the paper's (3, 7, 16 of
            32), at the same shares of the model's depth.
        scope: "sample" (the paper's): all images of a sample are ranked together; "view": each camera keeps
            its own budget.
        recycle: share of the dropped tokens that is recycled; 0.3 is the released code's, 0 recycles none.
        neighbours: how many nearest tokens, itself counted, make the density of a token; None (default) for
            as many as there are clusters, as in the released code.

    Needs: at every stage, the attention that the layer before paid from the instruction; what entered the
        model.

    Costs: as `SparseVLMStage`, three times with ever fewer tokens.

    Decisions:
        * The code prunes after layers 2, 6, 15 have run, so layers 3, 7, 16 are the first to see fewer.
        * Its first stage keeps 312 tokens (clusters counted) for a target of 128 but 309 for 192: here 309
          for both, so that a larger budget never keeps less.
        * The targets are the code's own account, which books a pruning layer with what it passes on; the
          budget asked of this library is what layers really see (206 of 576 for "192").
        * The layers before the first stage see every token: at the paper's layers the average over depth
          cannot fall below 9%; ``layers=(1, ...)`` goes lower.
        * Published numbers renumber the positions (``positions="reindex"``).
    """

    name: ClassVar[str] = "sparsevlm"

    layers: tuple[int, ...] | None = None
    scope: str = "sample"
    recycle: float = 0.3
    neighbours: int | None = None

    def __post_init__(self) -> None:
        check_layers(self.name, self.layers, len(LAYERS))
        self._stage(LAYERS[0])

    def _stage(self, layer: int) -> SparseVLMStage:
        return SparseVLMStage(layer, scope=self.scope, recycle=self.recycle, neighbours=self.neighbours)

    def stages(self, depth: int) -> Sequence[SparseVLMStage]:
        return [self._stage(layer) for layer in place(self.name, self.layers, LAYERS, depth)]

    def shares(self, strength: float) -> Sequence[float]:
        check_strength(self.name, strength)
        return between(strength, SHARES)


@dataclass(frozen=True)
class SparseVLM2(Schedule):
    """SparseVLM+: three stages rated by the heads that look, freed of the pull of nearness.

    As `SparseVLM`, but attention is divided by the logits that rotary positions alone would give, only the
    heads that look at the picture are asked, and nothing is recycled (`SparseVLM2Stage`). Source: the second
    version (SparseVLM+) of the released code of "SparseVLM: Visual Token Sparsification for Efficient
    Vision-Language Model Inference", ICML 2025, arXiv 2410.04417.

    Formula: the shares of the three stages are those of the released code for 64, 96, 128 and 192 of 576
    tokens at strengths 64/576, 96/576, 128/576, 192/576, linear in between and down to nothing at strength 0
    and up to everything at strength 1.

    Args:
        layers: layers whose input loses tokens, three, ascending; None (default) for the paper's (3, 7, 16 of
            32), at the same shares of the model's depth.
        scope: "sample" (the paper's): all images of a sample are ranked together; "view": each camera keeps
            its own budget.
        heads: share of the heads that is asked; the released code takes 14, which is 14/32 of a 7B Llama's (a
            model of 28 heads needs 0.5). At least one is.

    Needs: at every stage, the attention that the layer before paid from the instruction and the logits that
        rotary positions alone would give there; what entered the model.

    Costs: as `SparseVLM2Stage`, three times with ever fewer tokens.

    Decisions:
        * The code prunes after layers 2, 6, 15 have run, so layers 3, 7, 16 are the first to see fewer.
        * Its first stage keeps 246 tokens for a target of 96 but 238 for 128: here 238 for both, so that a
          larger budget never keeps less.
        * The layers before the first stage see every token: at the paper's layers the average over depth
          cannot fall below 9%; ``layers=(1, ...)`` goes lower.
        * Published numbers keep the original positions (``positions="keep"``).
    """

    name: ClassVar[str] = "sparsevlm-v2"

    layers: tuple[int, ...] | None = None
    scope: str = "sample"
    heads: float = 14 / 32

    def __post_init__(self) -> None:
        check_layers(self.name, self.layers, len(LAYERS))
        self._stage(LAYERS[0])

    def _stage(self, layer: int) -> SparseVLM2Stage:
        return SparseVLM2Stage(layer, scope=self.scope, heads=self.heads)

    def stages(self, depth: int) -> Sequence[SparseVLM2Stage]:
        return [self._stage(layer) for layer in place(self.name, self.layers, LAYERS, depth)]

    def shares(self, strength: float) -> Sequence[float]:
        check_strength(self.name, strength)
        return between(strength, SHARES2)
