"""Peak memory of a call.

CUDA: the allocator's own maximum (`torch.cuda.max_memory_allocated`), weights included.

CPU: torch keeps no such count, so a thread samples the resident size of the process
(``/proc/self/statm``) during the call and reports the growth over its start. Freed blocks that the C
library keeps for itself would hide growth, so they are given back to the system first (glibc's
``malloc_trim``). Peaks shorter than the sampling interval can be missed, and pages shared with other
work of the same process are counted; the number is good to a few MB, not to the byte.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

_STATM = Path("/proc/self/statm")
INTERVAL_S = 0.0005


class Peak(NamedTuple):
    """``total`` bytes at the highest point (CPU: None), ``growth`` bytes above the start of the call.

    Both are None on a CPU whose system has no ``/proc``.
    """

    total: int | None
    growth: int | None


def peak_of(call: Callable[[], Any], device: torch.device) -> Peak:
    """Run ``call`` once, throw its result away, and return its peak memory on ``device``."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        highest = torch.cuda.max_memory_allocated(device)
        return Peak(highest, highest - start)
    if device.type != "cpu" or not _STATM.exists():
        call()
        return Peak(None, None)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    sampler = _Sampler()
    sampler.start()
    try:
        call()
    finally:
        sampler.stop()
    return Peak(None, sampler.highest - sampler.first)


class _Sampler(threading.Thread):
    """Reads the resident size of this process until stopped. torch's kernels run without Python's lock."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._done = threading.Event()
        self._page = os.sysconf("SC_PAGE_SIZE")
        self.first = self.highest = self._resident()

    def _resident(self) -> int:
        return int(_STATM.read_text().split()[1]) * self._page

    def run(self) -> None:
        while not self._done.wait(INTERVAL_S):
            self.highest = max(self.highest, self._resident())

    def stop(self) -> None:
        self._done.set()
        self.join()
        self.highest = max(self.highest, self._resident())
