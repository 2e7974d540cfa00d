"""What a user asks for -> methods with budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..allocators import Allocator, load_allocator
from ..errors import PruneError
from ..layer_pruners.base import LayerPruner
from ..registry import resolve_method
from ..selectors.base import Selector
from .cutter import Stage

Method = str | Selector | LayerPruner
Retention = float | Mapping[str, float] | Allocator | str | Path


def resolve_stages(
    method: Method | Sequence[Method], retention: Retention | Sequence[Retention] | None
) -> list[Stage]:
    """Methods with their budgets: at most one before the language model, then layer stages in order."""
    if retention is None:
        raise PruneError("say how many tokens to keep: retention=0.10 keeps 10% of every camera")
    if isinstance(method, Sequence) and not isinstance(method, str):
        names: list[Method] = list(method)
        if not names:
            raise PruneError("no method given; prune2drive.list_methods() names them")
        if len(names) == 1 and not isinstance(retention, list | tuple):
            retention = [retention]  # type: ignore[list-item]
        if not isinstance(retention, Sequence) or isinstance(retention, str) or len(retention) != len(names):
            raise PruneError(
                f"{len(names)} methods need a list of {len(names)} retentions, got {retention!r}"
            )
        budgets = list(retention)
    else:
        names, budgets = [method], [retention]  # type: ignore[list-item]
    methods = [resolve_method(name) for name in names]
    if any(isinstance(m, Selector) for m in methods[1:]):
        raise PruneError(
            "only the first method may choose before the language model; the others need a layer"
        )
    return [Stage(m, load_allocator(r)) for m, r in zip(methods, budgets, strict=True)]
