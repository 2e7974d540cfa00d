"""Choosing alone: the GPU programs of T-FPS, the plain version, two plain loops, and the floor below them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fps import released_style, textbook
from prune2drive.engine.graphs import Stage
from prune2drive.functional import fps, kernels
from prune2drive.functional.kernels import GRAM_LAUNCHES, PICK_WARPS, Launch
from prune2drive.profiling.timing import device_ms, in_turns, summary

from .setting import Setting

Case = tuple[int, int, int, int, str]
"""Views, tokens, channels, tokens to pick, dtype."""

CASES: tuple[Case, ...] = (
    (6, 729, 4096, 72, "bfloat16"),
    (6, 729, 4096, 364, "bfloat16"),
    (48, 729, 4096, 72, "bfloat16"),
    (6, 1824, 3584, 182, "bfloat16"),
    (6, 1792, 4096, 179, "bfloat16"),
    (6, 256, 4096, 26, "bfloat16"),
    (6, 729, 896, 73, "bfloat16"),
    (6, 729, 4096, 72, "float32"),
)
QUICK: tuple[Case, ...] = ((6, 64, 128, 8, "bfloat16"), (6, 64, 128, 8, "float32"))
REACH_MS = {(6, 729, 4096, 72, "bfloat16"): 0.3, (6, 729, 4096, 364, "bfloat16"): 1.0}
"""What was asked of an H100-class GPU before anything was written."""
L2_STEP_US = 0.16
"""A dependent read from the L2 cache where it cannot be measured: some 270 cycles at 1.7 GHz on an H100."""


def name_of(case: Case) -> str:
    views, tokens, channels, k, dtype = case
    return f"{views}x{tokens}x{channels}-k{k}-{dtype}"


def cases(setting: Setting) -> Iterator[Case]:
    """Cases to measure; on CPU the smaller ones only, bfloat16 as users would have it there."""
    if setting.quick:
        yield from QUICK
        return
    for case in CASES:
        if setting.cuda or case[0] * case[1] <= 6 * 729:
            yield case


def measure(case: Case, setting: Setting, ceilings: Mapping[str, float | None]) -> dict[str, Any]:
    """The row of one case."""
    views, tokens, channels, k, dtype = case
    device = setting.target
    generator = torch.Generator().manual_seed(0)
    # Visual tokens share a direction, so their cosines are well above zero.
    random = torch.randn(views, tokens, channels, generator=generator)
    features = (random + 1.0).to(device, getattr(torch, dtype))
    reason = kernels.kernel_reason(device, dtype=features.dtype, tokens=tokens)
    programs = reason is None and setting.cuda
    choose = partial(fps, features, k, check=False)
    works: dict[str, Callable[[], Any]] = {"plain": partial(choose, backend="torch")}
    if programs:
        works["kernel"] = partial(choose, backend="triton")
        recorded = Stage("choose", lambda x: (fps(x, k, check=False),), record=True)
        recorded.prepare(features)
        if recorded.recorded:
            works["graph"] = partial(recorded, features)
    works["textbook"] = partial(textbook, features, k)
    works["released style"] = partial(released_style, features, k)
    rounds = 2 if setting.quick else 10 if setting.cuda else setting.repeat
    times = in_turns(works, rounds, lambda work: device_ms(work, device), warmup=1)
    best = works.get("kernel", works["plain"])()
    floor = floor_ms(case, ceilings)
    ours = summary(times["graph" if "graph" in times else "kernel" if programs else "plain"])["median"]
    reach = REACH_MS.get(case) if setting.cuda else None
    return {
        "views": views,
        "tokens": tokens,
        "channels": channels,
        "k": k,
        "dtype": dtype,
        "backend": "triton" if programs else "torch",
        "reason": None if programs else reason,
        "ms": {name: summary(spent) for name, spent in times.items()},
        "parts_ms": _parts(features, k, device) if programs else None,
        "floor_ms": floor,
        "share_of_floor": floor["total"] / ours if floor else None,
        "same_as_plain": _equal(best, works["plain"]()),
        "same_tokens_as_float64": _jaccard(best, torch.stack(textbook(features, k, torch.float64))),
        "reach_ms": reach,
        "reached": None if reach is None else ours <= reach,
        "warps": _sweep(features, k, device) if programs and case == CASES[0] else None,
    }


def floor_ms(case: Case, ceilings: Mapping[str, float | None]) -> dict[str, float] | None:
    """What no version can go below on this device, in milliseconds; None without its ceilings.

    ``gram``: half of a symmetric product at the measured rate of matrix products, or reading the features
    once at the measured rate of copies, whichever takes longer. ``distances``: the matrix written and read
    once. ``picks``: for each pick one dependent read, since its row is known only when the pick is.
    """
    views, tokens, channels, k, dtype = case
    tflops, copy = ceilings.get("matmul_tflops"), ceilings.get("copy_gb_per_s")
    if not tflops or not copy:
        return None
    flops = views * tokens * (tokens + 1) * channels
    read = views * tokens * channels * getattr(torch, dtype).itemsize
    gram = max(flops / tflops / 1e9, read / copy / 1e6)
    distances = 2 * views * tokens**2 * 4 / copy / 1e6
    picks = k * (ceilings.get("l2_step_us") or L2_STEP_US) / 1e3
    return {"gram": gram, "distances": distances, "picks": picks, "total": gram + distances + picks}


def _launched(features: Tensor, k: int, launch: Launch | None = None) -> Callable[[], Any]:
    counts = torch.full((len(features),), k, dtype=torch.long, device=features.device)
    return lambda: kernels.order(features, counts, None, None, "cosine", k, launch)


def _parts(features: Tensor, k: int, device: torch.device) -> dict[str, Any]:
    """Time before the first pick, and of the picks: that of one pick, and what k of them take more."""
    works = {"one": _launched(features, 1), "all": _launched(features, k)}
    times = in_turns(works, 10, lambda work: device_ms(work, device, 10))
    rest = [max(0.0, a - b) for a, b in zip(times["all"], times["one"], strict=True)]
    return {"gram": summary(times["one"]), "picks": summary(rest)}


def _sweep(features: Tensor, k: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Median milliseconds of other layouts of the programs: what the chosen one is held against."""
    usual = kernels.plan(*features.shape[:2])
    layouts = {("picks", str(warps)): Launch(usual.gram, warps) for warps in PICK_WARPS}
    layouts |= {
        ("gram", f"tile {g.tile} depth {g.depth} chunk {g.chunk} warps {g.warps} stages {g.stages}"): Launch(
            g, usual.pick_warps
        )
        for g in GRAM_LAUNCHES
    }
    works = {f"{part}: {name}": _launched(features, k, launch) for (part, name), launch in layouts.items()}
    works = {name: work for name, work in works.items() if _runs(work)}
    times = in_turns(works, 5, lambda work: device_ms(work, device, 10))
    out: dict[str, dict[str, float]] = {"picks": {}, "gram": {}}
    for part, name in layouts:
        if (spent := times.get(f"{part}: {name}")) is not None:
            out[part][name] = summary(spent)["median"]
    return out


def _runs(work: Callable[[], Any]) -> bool:
    """Whether a layout fits this GPU at all: smaller ones lack the shared memory of some."""
    try:
        work()
    except Exception:
        return False
    return True


def _equal(a: Tensor, b: Tensor) -> float:
    return float((a == b).float().mean())


def _jaccard(a: Tensor, b: Tensor) -> float:
    """Mean over views of the share that two choices have in common."""
    pairs = zip(a.tolist(), b.tolist(), strict=True)
    shares = [len({*x} & {*y}) / len({*x} | {*y}) for x, y in pairs]
    return sum(shares) / len(shares)
