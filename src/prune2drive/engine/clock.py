"""Time spent in a part of a call, without making the accelerator wait for the clock."""

from __future__ import annotations

import time
from types import TracebackType

import torch


class Clock:
    """Measures a ``with`` block; `ms` is read later.

    On CUDA it records two events and only asks for their distance when `ms` is read, so that
    measuring does not add a synchronisation to the path that is being measured.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds = 0.0
        if self._cuda:
            self._begin = torch.cuda.Event(enable_timing=True)
            self._end = torch.cuda.Event(enable_timing=True)

    def __enter__(self) -> Clock:
        if self._cuda:
            self._begin.record()
        else:
            self._seconds = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cuda:
            self._end.record()
        else:
            self._seconds = time.perf_counter() - self._seconds

    @property
    def ms(self) -> float:
        """Milliseconds; waits for the device if the block's work is not done yet."""
        if self._cuda:
            self._end.synchronize()
            return self._begin.elapsed_time(self._end)
        return self._seconds * 1e3
