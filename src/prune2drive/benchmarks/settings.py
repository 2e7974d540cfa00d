"""What is compared: the unpruned model, the controls, and every method at every place and rate."""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from ..allocators.base import check_rate
from ..engine.attach import Pruned, prune
from ..errors import PruneError
from ..layer_pruners.base import LayerPruner
from ..layer_pruners.selector_at import SelectorAt
from ..registry import resolve_single
from ..rig import NUSCENES
from ..selectors.base import Selector
from ..selectors.random import Random

BEFORE = "before"
"""The place before the language model; others are ``layer1``, ``layer2``, ..."""

Method = TypeVar("Method")

_LAYER = re.compile(r"layer([1-9][0-9]*)")


@dataclass(frozen=True)
class Setting:
    """One row of the comparison.

    ``method``: a method's name, or "unpruned", "blind" (grey pictures), "guess" (no model).
    ``where``: `BEFORE` or ``layerK``, and ``retention`` the share of each camera's tokens that is kept;
    None for those three.
    """

    method: str
    where: str | None = None
    retention: float | None = None

    @property
    def name(self) -> str:
        """The name in records: "tfps@0.1" before the language model, "tfps-layer1@0.1" inside it."""
        if self.retention is None:
            return self.method
        place = "" if self.where == BEFORE else f"-{self.where}"
        return f"{self.method}{place}@{self.retention:g}"

    @property
    def draws(self) -> bool:
        """Whether the choice is drawn at random, so that it depends on a seed."""
        return self.retention is not None and draws(resolve_single(self.method, "evaluate"))

    @property
    def facts(self) -> dict[str, Any]:
        """What a record says of its setting."""
        return {
            "setting": self.name,
            "method": self.method,
            "where": self.where,
            "retention": self.retention,
        }

    def prune(
        self, model: Any, seed: int = 0, scenes: Sequence[str] = (), positions: str = "keep"
    ) -> Pruned | None:
        """How to prune ``model`` for this setting; None for unpruned.

        Args:
            seed: of random selection; other methods draw nothing.
            scenes: names of the samples of a batch. With them random selection is drawn anew for each,
                so that its figures do not hang on one draw.
            positions: what happens to position ids, as `prune` says.

        Raises:
            PruneError: the model has no such layer.
        """
        if self.retention is None or self.where is None:
            return None
        method = drawn_anew(resolve_single(self.method, "evaluate"), seed, scenes)
        if isinstance(method, Selector) and self.where != BEFORE:
            method = SelectorAt(method, _layer(self.where))
        return prune(model, method, self.retention, rig=NUSCENES, positions=positions)


@dataclass(frozen=True)
class FreshRandom(Random):
    """`Random`, drawn anew for every sample by its name in ``scenes``."""

    nested: ClassVar[bool] = False  # an order of one batch is none of another
    scenes: tuple[str, ...] = ()

    def seed_of(self, sample: int) -> int:
        return zlib.crc32(f"{self.seed}/{self.scenes[sample]}".encode())


def draws(method: object) -> bool:
    """Whether a method is random selection, or carries it into the language model."""
    return isinstance(method.selector if isinstance(method, SelectorAt) else method, Random)


def drawn_anew(method: Method, seed: int, scenes: Sequence[str] = ()) -> Method:
    """The method with its random selection drawn by ``seed``, for each of ``scenes`` by its name if given.

    Methods that draw nothing pass through.
    """
    if not draws(method):
        return method
    fresh: Any = FreshRandom(seed, tuple(scenes)) if scenes else Random(seed)
    if isinstance(method, SelectorAt):
        fresh = dataclasses.replace(method, selector=fresh)
    return fresh


UNPRUNED, BLIND, GUESS = Setting("unpruned"), Setting("blind"), Setting("guess")
CONTROLS = (UNPRUNED, BLIND, GUESS)


def place_of(method: str) -> str:
    """Where a method chooses if nothing else is asked: its own layer, or before the language model.

    Raises:
        PruneError: an unknown method.
    """
    found = resolve_single(method, "evaluate")
    return f"layer{found.layer}" if isinstance(found, LayerPruner) else BEFORE


def make_settings(
    methods: Sequence[str], retentions: Sequence[float], places: Sequence[str]
) -> list[Setting]:
    """Return the unpruned model, the controls, and every method at every place and rate; none twice.

    A method that chooses inside the language model runs at its own layer, whatever ``places`` says.

    Raises:
        PruneError: an unknown method, a retention outside (0, 1], or a place that is none.
    """
    for place in places:
        if place != BEFORE:
            _layer(place)
    rates = [check_rate(rate) for rate in retentions]
    settings = dict.fromkeys(CONTROLS)
    for name in methods:
        own = places if (place := place_of(name)) == BEFORE else [place]
        settings |= dict.fromkeys(Setting(name, place, rate) for place in own for rate in rates)
    names = [setting.name for setting in settings]
    for name in names:
        if names.count(name) > 1:  # rates that agree in six digits
            raise PruneError(f"{name} stands for several settings. Give each retention once.")
    return list(settings)


def _layer(place: str) -> int:
    found = _LAYER.fullmatch(place)
    if found is None:
        raise PruneError(f"{place!r} is no place to prune. Use before, layer1, layer2, ...")
    return int(found[1])
