"""The interface of an allocator: how many tokens each view of a sample may keep."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from numbers import Real

from ..errors import PruneError, did_you_mean
from ..layout import THUMBNAIL
from ..rig import Rig
from ..tokens import View

ROUNDINGS = ("half-up", "truncate")


class Allocator(ABC):
    """Splits a sample's budget over its views. Allocators are frozen dataclasses."""

    @abstractmethod
    def allocate(self, views: Sequence[View], rig: Rig | None, rounding: str = "half-up") -> list[int]:
        """Return how many tokens each view of one sample keeps, ``1 <= k <= len(view)``, in view order.

        Args:
            views: the views of one sample.
            rig: the cameras of the vehicle, or None when names are free.
            rounding: how a rate becomes a count, see `count`.

        Raises:
            PruneError: a camera that is not of the rig, or that the allocator has nothing for.
        """


def count(n: int, rate: float, rounding: str = "half-up") -> int:
    """Return how many of ``n`` tokens a rate keeps: at least 1, at most ``n``.

    "half-up" rounds in whole parts per million, so that every process and platform agrees;
    "truncate" is ``max(1, int(n * rate))`` in floating point, the rule of the released code, which
    the numbers of published tables follow.
    """
    if rounding == "half-up":
        return min(max((round(rate * 1_000_000) * n + 500_000) // 1_000_000, 1), n)
    if rounding == "truncate":
        return max(1, int(n * rate))
    raise PruneError(f"unknown rounding {rounding!r}.{did_you_mean(str(rounding), ROUNDINGS)}")


def check_rate(value: object, what: str = "retention") -> float:
    """Return ``value`` as a rate in (0, 1], or raise a PruneError that starts with ``what``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise PruneError(f"{what} {value!r} is not a number in (0, 1]; for 10% write 0.10")
    rate = float(value)
    if math.isnan(rate) or not 0 < rate <= 1:
        remedy = "for 10% write 0.10"
        if 1 < rate <= 100:
            share = f"{rate / 100:.2f}" if round(rate, 9).is_integer() else f"{rate / 100:g}"
            remedy = f"for {rate:g}% write {share}"
        elif rate > 100:
            remedy = "for a number of tokens write Total(tokens)"
        raise PruneError(f"{what} {value} is not in (0, 1]; {remedy}")
    return rate


def check_cameras(views: Sequence[View], rig: Rig | None, named: Collection[str] = ()) -> None:
    """Raise a PruneError for a view that is neither of the rig nor in ``named``.

    A misspelt camera must not quietly get somebody else's rate. ``"*"`` in ``named`` vouches for
    every name; the THUMBNAIL of a mosaic needs no vouching.
    """
    if rig is None or "*" in named:
        return
    for view in views:
        if view.name not in rig and view.name not in named and view.name != THUMBNAIL:
            raise PruneError(
                f"{view.name} is not a camera of rig {rig.name}.{did_you_mean(view.name, rig.names)} "
                "Correct the name, add it to the rig, or give a '*' rate."
            )


def check_named(named: Collection[str], views: Sequence[View], rig: Rig | None, what: str) -> None:
    """Raise a PruneError for a name in ``named`` that is neither of the rig nor among the views."""
    present = {view.name for view in views}
    known = present | set(rig.names if rig is not None else ())
    for name in named:
        if name not in known and name not in ("*", THUMBNAIL):
            where = f"of rig {rig.name} or of the prompt" if rig is not None else "of the prompt"
            more = "" if rig is not None else " If other samples show it, say so with rig=[...names...]."
            raise PruneError(
                f"{what} for {name}, which is no camera {where}.{did_you_mean(name, known)}{more}"
            )
