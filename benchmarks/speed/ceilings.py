"""What the device can do at best, measured: the ceilings that the other sections are held against."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor

from prune2drive.profiling.timing import clocked, device_ms

from .setting import Setting


def ceilings(setting: Setting) -> dict[str, float | None]:
    """Measure ``matmul_tflops``, ``copy_gb_per_s`` (read and written bytes), ``launch_us``, ``l2_step_us``.

    Random numbers, not zeros: a multiplier that switches less runs at a higher clock.
    """
    device, dtype = setting.target, setting.torch_dtype
    side = 8192 if setting.cuda else 1024
    bytes_ = 2**30 if setting.cuda else 2**26
    calls = 10 if setting.cuda else 2
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    matmul = _median(lambda: torch.mm(a, b), device, calls)
    source = torch.randint(0, 100, (bytes_,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = _median(lambda: target.copy_(source), device, calls)
    one = torch.zeros(1, device=device)
    launches = 1000
    launch = statistics.median(
        clocked(lambda: [one.add_(1) for _ in range(launches)], device)[0] for _ in range(5)
    )
    return {
        "matmul_tflops": 2 * side**3 / matmul / 1e9,
        "copy_gb_per_s": 2 * bytes_ / copy / 1e6,
        "launch_us": launch * 1e3 / launches,
        "l2_step_us": l2_step_us(device) if setting.cuda else None,
    }


def _median(work: Any, device: torch.device, calls: int) -> float:
    work()
    return statistics.median(device_ms(work, device, calls) for _ in range(5))


def l2_step_us(device: torch.device, steps: int = 4096) -> float | None:
    """Microseconds of one dependent read from the L2 cache: what a pick waits for its row at least.

    A chain through a table of 8 MB, more than the first-level cache and less than the second: every read says
    where the next one is. None without Triton.
    """
    try:
        from .chase import chase
    except ImportError:
        return None
    places = ring(8 * 2**20 // 4, device)
    end = torch.zeros(1, dtype=torch.int32, device=device)

    def walk(count: int) -> float:
        return statistics.median(
            device_ms(lambda: chase[(1,)](places, end, count, num_warps=1), device) for _ in range(5)
        )

    walk(steps)  # compiles, and brings the table into the cache
    return (walk(2 * steps) - walk(steps)) * 1e3 / steps


def ring(places: int, device: torch.device) -> Tensor:
    """int32 ``(places,)``: where each place leads, one ring through all of them in random order."""
    order = torch.randperm(places, device=device)
    out = torch.empty(places, dtype=torch.int32, device=device)
    out[order] = order.roll(-1).to(torch.int32)
    return out
