"""What a user asks for -> methods with budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from ..allocators import Allocator, LayerAveraged, load_allocator
from ..allocators.average import AveragedStage, Plan
from ..allocators.base import check_rate
from ..errors import PruneError
from ..layer_pruners.base import LayerPruner
from ..registry import resolve_method
from ..schedules.base import Schedule
from ..selectors.base import Selector
from .cutter import Stage

Method = str | Selector | LayerPruner | Schedule
Retention = float | Mapping[str, float] | Allocator | LayerAveraged | str | Path

USUAL_DEPTH = 32
"""Layers of a 7B language model: what layer-averaged budgets count with where the depth is unknown."""


def resolve_stages(
    method: Method | Sequence[Method],
    retention: Retention | Sequence[Retention] | None,
    depth: int = USUAL_DEPTH,
) -> list[Stage]:
    """Methods with their budgets: at most one before the language model, then layer stages in order.

    ``depth``: layers of the language model.
    """
    if retention is None:
        raise PruneError("say how many tokens to keep: retention=0.10 keeps 10% of every camera")
    several = isinstance(method, Sequence) and not isinstance(method, str)
    names: list[Method] = list(method) if several else [method]  # type: ignore[arg-type, list-item]
    if not names:
        raise PruneError("no method given; prune2drive.list_methods() names them")
    found = [resolve_method(name) for name in names]
    for each in found:
        if isinstance(each, Schedule) and several and len(found) > 1:
            raise PruneError(
                f"{each.name} has stages of its own; use it alone, or list its stages: "
                f"{type(each).__name__}().stages(depth)"
            )
    first = found[0]
    methods: list[Selector | LayerPruner] = list(
        first.stages(depth) if isinstance(first, Schedule) else found  # type: ignore[arg-type]
    )
    if any(isinstance(m, Selector) for m in methods[1:]):
        raise PruneError(
            "only the first method may choose before the language model; the others need a layer"
        )
    asked: Any = retention
    if isinstance(first, Schedule) and not isinstance(asked, list | tuple | LayerAveraged):
        if not isinstance(asked, Real):
            raise PruneError(
                f"{first.name} works in {len(methods)} stages: give one number, the layer-averaged "
                f"retention, or a list of one retention per stage, not {asked!r}"
            )
        asked = LayerAveraged(check_rate(asked))
    if isinstance(asked, LayerAveraged):
        shares = first.shares if isinstance(first, Schedule) else _Powers(len(methods))
        starts = tuple(m.layer if isinstance(m, LayerPruner) else 0 for m in methods)
        name = " + ".join(each.name for each in found)
        plan = Plan(asked, starts, depth, shares, name)
        return [Stage(m, AveragedStage(plan, number)) for number, m in enumerate(methods)]
    if len(methods) == 1 and not isinstance(asked, list | tuple):
        asked = [asked]
    if not isinstance(asked, Sequence) or isinstance(asked, str) or len(asked) != len(methods):
        raise PruneError(f"{len(methods)} methods need a list of {len(methods)} retentions, got {asked!r}")
    return [Stage(m, load_allocator(r)) for m, r in zip(methods, asked, strict=True)]


class _Powers:
    """Every stage keeps the same share of what the one before left."""

    def __init__(self, stages: int) -> None:
        self.stages = stages

    def __call__(self, strength: float) -> Sequence[float]:
        return [strength ** (number + 1) for number in range(self.stages)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Powers) and other.stages == self.stages

    def __hash__(self) -> int:
        return hash(self.stages)
