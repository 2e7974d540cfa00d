"""Numbers that code puts on the device in passing, kept out of recordings.

A model may write ``torch.tensor(lengths, device=x.device)`` somewhere in its forward. A CUDA graph cannot
record that upload from ordinary host memory, and has no need to: what the host decides is the same at every
replay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

MAKERS: tuple[Any, ...] = (torch.tensor, torch.as_tensor)
MOVERS: tuple[Any, ...] = (torch.Tensor.to, torch.Tensor.cuda)


class Constants(TorchFunctionMode):
    """Inside, uploads to ``device`` are noted in order; after `replay` they are handed out again instead.

    The function must ask for the same uploads in the same order each time, which one of static shapes does.

    Raises:
        RuntimeError: more uploads than were noted, or another one.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.noted: list[tuple[Any, Tensor]] = []
        self._at: int | None = None

    def note(self) -> Constants:
        """Start anew: ``with constants.note(): ...`` before ``with constants.replay(): ...``."""
        self.noted, self._at = [], None
        return self

    def replay(self) -> Constants:
        self._at = 0
        return self

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.__format__ and self._at is not None and args[0].device.type != "cpu":
            return "?"  # of a message that is put together whether or not it will be needed
        if not self._uploads(func, args, kwargs):
            return func(*args, **kwargs)
        if self._at is None:
            out = func(*args, **kwargs)
            # A copy, so that what the function does to its own does not reach the note.
            self.noted.append((func, out.clone()))
            return out
        if self._at >= len(self.noted) or self.noted[self._at][0] is not func:
            raise RuntimeError("an upload that no earlier call made: the function is not the same each time")
        value = self.noted[self._at][1].clone()
        self._at += 1
        return value

    def _uploads(self, func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
        """Whether a call copies from the host to the device."""
        given = args[0] if args else kwargs.get("data")
        here = isinstance(given, Tensor) and given.device.type == self.device.type
        if func in MAKERS:
            return not here and self._is_target(kwargs.get("device"))
        if func is torch.Tensor.cuda:
            return not here and self.device.type == "cuda"
        if func in MOVERS and not here:
            return any(self._is_target(each) for each in (*args[1:], *kwargs.values()))
        return False

    def _is_target(self, place: Any) -> bool:
        if isinstance(place, Tensor):
            place = place.device
        if isinstance(place, int) and not isinstance(place, bool):
            return self.device.type == "cuda"
        if isinstance(place, str):
            return place.partition(":")[0] == self.device.type
        return isinstance(place, torch.device) and place.type == self.device.type
