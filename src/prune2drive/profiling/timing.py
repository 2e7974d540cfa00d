"""Taking times: one clock for calls that end on the host, one for work of the device alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Work = Callable[[], Any]


def wait(device: torch.device) -> None:
    """Return when the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clocked(work: Work, device: torch.device) -> tuple[float, Any]:
    """Milliseconds of a call by the host's clock, the device idle before and after, and its result."""
    wait(device)
    start = time.perf_counter()
    out = work()
    wait(device)
    return (time.perf_counter() - start) * 1e3, out


def device_ms(work: Work, device: torch.device, calls: int = 1) -> float:
    """Milliseconds of one of ``calls`` calls in a row by the device's clock; on CPU by the host's.

    The host may run ahead, so what it needs to launch the work counts only where the device waits for it.
    """
    if device.type != "cuda":
        return clocked(lambda: [work() for _ in range(calls)], device)[0] / calls
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(device):
        wait(device)
        start.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
    return start.elapsed_time(end) / calls


def in_turns(
    works: Mapping[str, Work], repeat: int, measure: Callable[[Work], float], warmup: int = 1
) -> dict[str, list[float]]:
    """Measure several works ``repeat`` times each, taking turns, so that a slow minute hits all alike.

    Every turn begins with another of them; the first ``warmup`` turns are not counted.
    """
    names = list(works)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + repeat):
        first = turn % max(1, len(names))
        for name in names[first:] + names[:first]:
            spent = measure(works[name])
            if turn >= warmup:
                times[name].append(spent)
    return times


def summary(times: Sequence[float]) -> dict[str, Any]:
    """``median``, ``lowest``, ``highest`` of at least one time, and how many there were: ``runs``."""
    return {
        "median": statistics.median(times),
        "lowest": min(times),
        "highest": max(times),
        "runs": len(times),
    }
