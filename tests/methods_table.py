"""The table that drives every contract test over methods: every registered name, built in or third party.

A method that is registered is tested: nothing has to be added here, unless its defaults do not fit a model of
four layers and pictures of sixteen tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prune2drive.errors import PruneError
from prune2drive.layer_pruners.base import LayerPruner
from prune2drive.registry import list_methods, resolve_method
from prune2drive.schedules.base import Schedule
from prune2drive.selectors.base import Selector

SETTINGS: dict[str, dict[str, Any]] = {
    "pact": {"layer": 2},
    "attention-rank": {"layer": 2},
    "apet-stage": {"layer": 2},
    "mvpruner-stage": {"layer": 2},
    "sparsevlm-stage": {"layer": 2},
    "sparsevlm-v2-stage": {"layer": 2},
    "v2drop-stage": {"layer": 2},
}
"""Hyper-parameters that tiny models need."""

RIG = [f"view{number}" for number in range(6)]
"""Camera names of the contract tests' pictures, as a ring."""


@dataclass(frozen=True)
class MethodCase:
    """One method and how the tests build it."""

    name: str
    settings: dict[str, Any] = field(hash=False, default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def build(self) -> Selector | LayerPruner | Schedule:
        """The method with its defaults, or those that tiny models need."""
        found = resolve_method(self.name)
        return type(found)(**self.settings) if self.settings else found

    def layers(self, depth: int) -> list[int]:
        """The layer each stage starts at, 0 before the language model."""
        method = self.build()
        stages = method.stages(depth) if isinstance(method, Schedule) else [method]
        return [getattr(stage, "layer", 0) for stage in stages]

    def stages(self, depth: int) -> list[Selector | LayerPruner]:
        """Its stages for a language model of some depth."""
        method = self.build()
        return list(method.stages(depth)) if isinstance(method, Schedule) else [method]


@dataclass(frozen=True)
class Pair:
    """A selector followed by a layer pruner, with the interface of a `MethodCase`."""

    first: MethodCase
    second: MethodCase

    @property
    def name(self) -> str:
        return f"{self.first.name}+{self.second.name}"

    def __str__(self) -> str:
        return self.name

    def build(self) -> list[Any]:
        return [self.first.build(), self.second.build()]

    def layers(self, depth: int) -> list[int]:
        return self.first.layers(depth) + self.second.layers(depth)

    def stages(self, depth: int) -> list[Selector | LayerPruner]:
        return self.first.stages(depth) + self.second.stages(depth)


def _cases() -> list[MethodCase]:
    cases = []
    for name in list_methods():
        try:
            resolve_method(name)
        except PruneError:
            continue  # test_registry tells which; a broken third party must not hide the others
        cases.append(MethodCase(name, SETTINGS.get(name, {})))
    return cases


METHODS: list[MethodCase] = _cases()
METHOD_IDS: list[str] = [case.name for case in METHODS]

PAIRS: list[Pair] = [
    Pair(first, second)
    for first in METHODS
    if isinstance(first.build(), Selector)
    for second in METHODS
    if isinstance(second.build(), LayerPruner)
]
"""Every selector followed by every layer pruner."""
