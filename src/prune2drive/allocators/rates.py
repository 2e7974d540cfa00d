"""Rates: each camera keeps its own fixed share, as a search found it or a person set it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import PruneError
from ..rig import Rig
from ..tokens import View
from .base import Allocator, check_cameras, check_named, check_rate, count


@dataclass(frozen=True)
class Rates(Allocator):
    """Keep ``rates[camera]`` of each view; ``"*"`` is the rate of every camera without its own.

    A view's count depends on its own name and length only, never on which other views are in the
    sample: a camera that drops out changes nothing for the rest.

    Raises:
        PruneError: a rate outside (0, 1]; in `allocate`, a rate for a name that is neither in the
            rig nor in the prompt, or a camera of the prompt without a rate.
    """

    rates: Mapping[str, float] = field(hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.rates, Mapping) or not self.rates:
            raise PruneError(
                f"rates {self.rates!r} must be {{camera: rate}}, such as {{'CAM_FRONT': 0.25, '*': 0.08}}"
            )
        checked = {str(name): check_rate(rate, f"retention of {name}") for name, rate in self.rates.items()}
        object.__setattr__(self, "rates", checked)

    def allocate(self, views: Sequence[View], rig: Rig | None, rounding: str = "half-up") -> list[int]:
        check_named(self.rates, views, rig, "a rate")
        check_cameras(views, rig, self.rates)
        return [count(len(view), self._rate(view.name), rounding) for view in views]

    def _rate(self, name: str) -> float:
        rate = self.rates.get(name, self.rates.get("*"))
        if rate is None:
            raise PruneError(f"{name} has no rate; add {name!r}, or '*' for every camera without one")
        return rate
