"""Choosing once for every rate: a nested selector's whole order is recorded, trials slice it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import PruneError
from ..families.vision import VISION
from ..layer_pruners.base import LayerPruner
from ..selectors.base import Selector
from ..tokens import Selection, VisualTokens


def is_nested(method: object) -> bool:
    """Whether one recorded order of a method serves every rate."""
    # A recorded order is per view, and of features alone.
    return isinstance(method, Selector) and method.nested and method.scope == "view" and not method.needs


def check_features_serve(method: Selector | LayerPruner) -> None:
    """Refuse a method that reads the vision tower: a search encodes once and keeps the features alone.

    Raises:
        PruneError: what it needs, and the remedy.
    """
    if missing := sorted(method.needs & VISION):
        raise PruneError(
            f"{method.name} needs {', '.join(missing)} of the vision tower, and a search of rates keeps "
            "features alone; search with a method of features, such as tfps, and use the rates with this one"
        )


class Recorder(Selector):
    """Lets ``selector`` choose and remembers the order in which it did.

    Asked for all tokens, a nested selector gives its whole order: ``order``, int64 ``(V, N)`` over the
    views of all samples, -1 beyond the end of a view.
    """

    name: ClassVar[str] = "recorder"

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        self.order: Tensor | None = None

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        chosen = self.selector.select(tokens, counts)
        self.order = chosen.indices
        return chosen


class Replay(Selector):
    """Chooses the first picks of a recorded order, which is what the recorded selector would choose.

    Set ``order`` to what `Recorder` holds, rows in the order of the call's views, before each call.
    """

    name: ClassVar[str] = "replay"

    def __init__(self, rounding: str = "half-up") -> None:
        self.rounding = rounding
        self.order: Tensor = torch.zeros(0, 0, dtype=torch.long)

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        most = max(counts)
        order = self.order[:, :most].to(tokens.features.device, torch.long, non_blocking=True)
        wanted = torch.tensor(list(counts)).to(order.device, non_blocking=True)
        beyond = torch.arange(most, device=order.device) >= wanted[:, None]
        return Selection(order.masked_fill(beyond, -1), list(counts))
