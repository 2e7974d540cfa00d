"""What a comparison compares: methods, alone or one behind the other, at equal budgets.

A budget is what a layer of the language model sees on average, which is the same for methods wherever
they choose; or, as papers quote it, the share that a method of one stage leaves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..allocators import LayerAveraged
from ..allocators.average import AveragedStage
from ..allocators.base import check_rate
from ..engine.attach import Pruned, prune
from ..engine.stages import USUAL_DEPTH, resolve_stages
from ..errors import PruneError, did_you_mean
from ..layer_pruners.base import LayerPruner
from ..registry import list_methods, resolve_method
from ..rig import NUSCENES
from ..schedules.base import Schedule
from ..selectors.base import Selector
from ..tokens import READS_QUESTION, PositionPolicy
from ..world.labels import GRID
from .settings import BLIND, GUESS, UNPRUNED, drawn_anew, draws

AVERAGE, KEPT, BOTH = "average", "kept", "both"
BUDGETS = (AVERAGE, KEPT, BOTH)
_SHORT = {AVERAGE: "avg", KEPT: "kept"}

ALL = "all"
"""Stands for every registered method but `HELPERS` and those whose names end in one of `PARTS`."""
HELPERS = ("attention-rank", "selector-at", "tfps-released")
PARTS = ("-stage", "-select")

CONTROLS = (UNPRUNED.method, BLIND.method, GUESS.method)
RANDOM, RANDOM_LAYER = "random", "random-layer"
"""What a method has to beat, before the language model and inside it."""

OURS, OURS_LAYER = "tfps", "tfps-layer"

VISUAL = len(NUSCENES) * GRID**2
"""Visual tokens of a prompt of the world benchmark."""

TITLES = {
    UNPRUNED.method: "unpruned",
    BLIND.method: "blind (grey pictures)",
    GUESS.method: "most frequent answer",
    "tfps": "T-FPS",
    "tfps-layer": "T-FPS at a layer",
    "random": "Random",
    "random-layer": "Random at a layer",
    "stratified": "Stratified",
    "stratified-layer": "Stratified at a layer",
    "stride": "Stride",
    "stride-layer": "Stride at a layer",
    "divprune": "DivPrune",
    "cdpruner": "CDPruner",
    "scope": "SCOPE",
    "st-prune": "ST-Prune",
    "visionzip": "VisionZip",
    "vispruner": "VisPruner",
    "holov": "HoloV",
    "apet": "ApET",
    "apet-select": "ApET, first stage",
    "duet": "DUET-VLM",
    "duet-select": "DUET-VLM, first stage",
    "duet-tfps": "DUET-VLM with T-FPS",
    "mvpruner": "MVPruner",
    "mvpruner-select": "MVPruner, first stage",
    "fastv": "FastV",
    "attention-rank": "Attention rank",
    "dart": "DART",
    "pact": "PACT",
    "pyramiddrop": "PyramidDrop",
    "sparsevlm": "SparseVLM",
    "sparsevlm-v2": "SparseVLM+",
    "v2drop": "V2Drop",
    "apet-stage": "ApET, second stage",
    "mvpruner-stage": "MVPruner, second stage",
    "sparsevlm-stage": "SparseVLM, one stage",
    "sparsevlm-v2-stage": "SparseVLM+, one stage",
    "v2drop-stage": "V2Drop, one stage",
}
"""Names of methods as people write them; a method that is not here goes by its own."""

Reasons = dict[str, str]
"""Name of a contender that cannot run -> why."""


@dataclass(frozen=True)
class Contender:
    """One row of a comparison.

    ``method``: a method's name, several joined by ``+`` in the order in which a token meets them, or one of
    `CONTROLS`, which have nothing else. ``budget``: `AVERAGE` lets a layer see ``retention`` of the tokens
    on average, `KEPT` leaves ``retention`` behind the method. ``positions``: a `PositionPolicy`.
    ``layer``: where a method chooses that has one stage inside the language model.
    """

    method: str
    budget: str | None = None
    retention: float | None = None
    positions: str | None = None
    layer: int = 1

    @property
    def name(self) -> str:
        """The name in records: "tfps@avg0.1", "fastv@kept0.1", "tfps@avg0.1/reindex"."""
        if self.budget is None or self.retention is None:
            return self.method
        policy = "" if self.positions == PositionPolicy.KEEP else f"/{self.positions}"
        return f"{self.method}@{_SHORT[self.budget]}{self.retention:g}{policy}"

    @property
    def title(self) -> str:
        """The method's name as people write it."""
        return " + ".join(TITLES.get(part, part) for part in self.method.split("+"))

    @property
    def control(self) -> bool:
        """Whether it is one of `CONTROLS`."""
        return self.retention is None

    @cached_property
    def methods(self) -> list[Selector | LayerPruner | Schedule]:
        """The methods, the only one inside the language model at ``layer``.

        Raises:
            PruneError: an unknown method, or no such layer.
        """
        if self.control:
            return []
        found = [resolve_method(part) for part in self.method.split("+")]
        inside = [number for number, method in enumerate(found) if isinstance(method, LayerPruner)]
        if len(inside) == 1:
            found[inside[0]] = dataclasses.replace(found[inside[0]], layer=self.layer)  # type: ignore[type-var]
        return found

    @property
    def stages(self) -> list[Selector | LayerPruner]:
        """The methods' stages; a schedule's are those in a model of `USUAL_DEPTH`, of which only the
        kinds are those in any other."""
        out: list[Selector | LayerPruner] = []
        for method in self.methods:
            out += method.stages(USUAL_DEPTH) if isinstance(method, Schedule) else [method]
        return out

    @property
    def stage(self) -> str:
        """Where it chooses: "before" the language model, "inside" it, "both", or "control"."""
        if self.control:
            return "control"
        kinds = {isinstance(stage, Selector) for stage in self.stages}
        return "both" if len(kinds) > 1 else "before" if kinds.pop() else "inside"

    @property
    def draws(self) -> bool:
        """Whether the choice is drawn at random, so that it depends on a seed."""
        return any(draws(method) for method in self.methods)

    @property
    def facts(self) -> dict[str, Any]:
        """What a record says of its contender, and `from_record` reads."""
        return {
            "setting": self.name,
            "method": self.method,
            "budget": self.budget,
            "retention": self.retention,
            "positions": self.positions,
        }

    @classmethod
    def from_record(cls, row: dict[str, Any], layer: int) -> Contender:
        """The contender of a record."""
        return cls(row["method"], row["budget"], row["retention"], row["positions"], layer)

    @property
    def rival(self) -> Contender | None:
        """The random selection it has to beat: at the same budget, and in kept budgets at the same layer."""
        name = RANDOM if self.budget == AVERAGE else RANDOM_LAYER
        if self.control or self.method == name:
            return None
        return dataclasses.replace(self, method=name)

    @property
    def own(self) -> Contender | None:
        """T-FPS at the same budget, and in kept budgets at the same layer: what this package is about."""
        name = OURS if self.budget == AVERAGE else OURS_LAYER
        if self.control or self.method == name:
            return None
        return dataclasses.replace(self, method=name)

    def prune(self, model: Any, seed: int = 0, scenes: Sequence[str] = ()) -> Pruned | None:
        """How to prune ``model``; None for a control. ``seed`` and ``scenes`` as for `Setting.prune`.

        Raises:
            PruneError: the model lacks what the method needs, or the layer.
        """
        if self.retention is None:
            return None
        methods = [drawn_anew(method, seed, scenes) for method in self.methods]
        asked = LayerAveraged(self.retention) if self.budget == AVERAGE else self.retention
        only = methods[0] if len(methods) == 1 else methods
        return prune(model, only, asked, rig=NUSCENES, positions=self.positions)


def parse_methods(text: str) -> tuple[list[str], Reasons]:
    """Read method expressions separated by commas; `ALL` stands for many.

    Returns:
        The expressions, none twice, and of those that `ALL` brought what cannot be loaded.

    Raises:
        PruneError: an unknown method, one given twice, or methods that do not go together.
    """
    given = ["+".join(part.strip() for part in item.split("+")) for item in text.split(",")]
    if not all(given) or len(set(given)) < len(given):
        raise PruneError(f"--methods {text!r}: give names separated by commas, each once.")
    reasons: Reasons = {}
    found: dict[str, None] = {}
    for item in given:
        if item != ALL:
            _check(item)
            found[item] = None
            continue
        for name in whole_methods():
            try:
                _check(name)
                found[name] = None
            except PruneError as error:  # one that is broken must not stop the others
                reasons[name] = str(error)
    return list(found), reasons


def whole_methods() -> list[str]:
    """What `ALL` stands for: registered methods that are no part of another one."""
    return [name for name in list_methods() if name not in HELPERS and not name.endswith(PARTS)]


def parse_positions(text: str) -> list[str]:
    """Read position policies separated by commas.

    Raises:
        PruneError: an unknown one, or one given twice.
    """
    given = [name.strip() for name in text.split(",")]
    known = [policy.value for policy in PositionPolicy]
    for name in given:
        if name not in known:
            raise PruneError(f"--positions {text!r}: {name!r} is no policy.{did_you_mean(name, known)}")
    if len(set(given)) < len(given):
        raise PruneError(f"--positions {text!r}: give each policy once.")
    return given


def make_contenders(
    methods: Sequence[str],
    retentions: Sequence[float],
    budget: str = BOTH,
    positions: Sequence[str] = (PositionPolicy.KEEP.value,),
    layer: int = 1,
) -> tuple[list[Contender], Reasons]:
    """The controls, random selection, and every method at every budget; none twice.

    A share kept is asked only of methods of one stage inside the language model: before it, what is kept is
    also the average, and of several stages no share is the one that papers quote.

    Returns:
        The contenders, and what was asked but is none: policies that change nothing.

    Raises:
        PruneError: an unknown method or budget, a retention outside (0, 1], or one given twice.
    """
    if budget not in BUDGETS:
        raise PruneError(f"budget {budget!r} is unknown.{did_you_mean(budget, BUDGETS)}")
    rates = [check_rate(rate) for rate in retentions]
    if len({f"{rate:g}" for rate in rates}) < len(rates):
        raise PruneError(f"retentions {', '.join(f'{rate:g}' for rate in rates)}: give each once.")
    reasons: Reasons = {}
    found: dict[Contender, None] = dict.fromkeys(Contender(name) for name in CONTROLS)
    names = list(dict.fromkeys([RANDOM, *methods]))
    for rate in rates:
        for name in names:
            own = Contender(name, AVERAGE, rate, positions[0], layer)
            inside = own.stage == "inside"
            single = inside and len(own.methods) == 1 and not isinstance(own.methods[0], Schedule)
            if budget == KEPT and own.stage != "before" and not single:
                reasons[dataclasses.replace(own, budget=KEPT).name] = (
                    f"{name} has several stages, and papers quote no share that one of them keeps; "
                    "ask for --budget average"
                )
                continue
            modes = [AVERAGE] if not single else [AVERAGE, KEPT] if budget == BOTH else [budget]
            for mode in modes:
                for policy in positions:
                    row = dataclasses.replace(own, budget=mode, positions=policy)
                    if inside and policy == PositionPolicy.REINDEX and len(positions) > 1:
                        reasons[row.name] = (
                            f"{name} drops tokens inside the language model, where positions always stay: "
                            "the row would be that of keep"
                        )
                        continue
                    if mode == KEPT and (rival := row.rival) is not None:
                        found[rival] = None
                    found[row] = None
    return list(found), reasons


def examine(
    contenders: Sequence[Contender], model: Any, seed: int = 0, visual: int = VISUAL
) -> tuple[list[Contender], Reasons]:
    """Sort out the contenders that cannot run, before any of them does.

    Args:
        visual: visual tokens of a prompt.

    Returns:
        Those that can, and of the others why not: the model lacks something, or the layers in front of a
        method's stages see more tokens than the budget has.
    """
    views = len(NUSCENES)
    able, reasons = [], {}
    for contender in contenders:
        try:
            pruned = contender.prune(model, seed)
            for stage in pruned.cutter.stages if pruned is not None else ():
                if isinstance(stage.allocator, AveragedStage):
                    stage.allocator.plan.totals(visual, views)
            able.append(contender)
        except PruneError as error:
            reasons[contender.name] = str(error)
    return able, reasons


def reads(contender: Contender) -> bool:
    """Whether it chooses anew for every question."""
    return any(stage.needs & READS_QUESTION for stage in contender.stages)


def _check(expression: str) -> None:
    """Refuse an expression that no budget could make work."""
    parts = expression.split("+")
    if not all(parts):
        raise PruneError(f"--methods: {expression!r} lacks a method beside a +. Write it as tfps+fastv.")
    found = [resolve_method(part) for part in parts]
    if len(found) > 1:
        resolve_stages(found, LayerAveraged(1.0))
