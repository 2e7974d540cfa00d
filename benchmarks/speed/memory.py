"""How much memory a call takes as the batch grows, and the largest batch that the device holds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from prune2drive.errors import first_line
from prune2drive.profiling.flops import kv_cache_bytes
from prune2drive.profiling.memory import Peak, peak_of

from .bench import Bench
from .calls import prune_at
from .setting import CAMERAS
from .sheet import Skip, free

RETENTIONS = (1.0, 0.1)


def variant_name(retention: float) -> str:
    return "unpruned" if retention == 1.0 else f"r{retention:g}"


def measure(bench: Bench, shape: str, samples: int, retention: float) -> dict[str, dict[str, Any]]:
    """The row of one batch size; not enough memory is an answer, not a failure."""
    bench.model(shape)
    ok, reason, peak, kv = True, None, Peak(None, None), None
    try:
        peak, kv = _called(bench, shape, samples, retention)
    except torch.OutOfMemoryError as error:
        ok, reason = False, first_line(error)
    row = {
        "shape": shape,
        "samples": samples,
        "retention": retention,
        "peak_bytes": None if peak.growth is None else bench.weights + peak.growth,
        "growth_bytes": peak.growth,
        "kv_bytes": kv,
        "ok": ok,
        "reason": reason,
    }
    return {f"memory/{shape}-n{samples}-{variant_name(retention)}": row}


def largest(
    bench: Bench, shape: str, retention: float, cells: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The row of the largest batch that runs: estimated from those measured, then tried."""
    if not bench.setting.cuda:
        raise Skip("a CPU's memory is not filled up: the system would end the process")
    measured = [
        row
        for row in cells.values()
        if row.get("shape") == shape and row.get("retention") == retention and row.get("growth_bytes")
        if "samples" in row
    ]
    if len(measured) < 2:
        raise Skip("needs the peak at two batch sizes or more")
    measured.sort(key=lambda row: row["samples"])
    few, many = measured[0], measured[-1]
    each = (many["growth_bytes"] - few["growth_bytes"]) / (many["samples"] - few["samples"])
    bench.model(shape)
    room = torch.cuda.mem_get_info(bench.setting.target)[0]
    guess = max(1, many["samples"] + int((room - many["growth_bytes"]) / max(1.0, each)))
    batch, tried = widest(lambda n: _runs(bench, shape, n, retention), guess)
    row = {"shape": shape, "retention": retention, "largest_batch": batch, "tried": tried}
    return {f"memory/{shape}-largest-{variant_name(retention)}": row}


def widest(runs: Callable[[int], bool], guess: int, tries: int = 5) -> tuple[int | None, dict[str, bool]]:
    """The largest number known to run, near ``guess``, and every number tried with its outcome.

    Steps of an eighth up or down from the guess, then the middle of what is left.
    """
    tried: dict[int, bool] = {}
    low, high, at = 0, None, max(1, guess)
    for _ in range(tries):
        tried[at] = runs(at)
        low, high = (max(low, at), high) if tried[at] else (low, at if high is None else min(high, at))
        if high is None:
            following = at + max(1, at // 8)
        elif low == 0:
            following = at - max(1, at // 8)
        else:
            following = (low + high) // 2
        if following < 1 or following in tried:
            break
        at = following
    return low or None, {str(n): ok for n, ok in sorted(tried.items())}


def _runs(bench: Bench, shape: str, batch: int, retention: float) -> bool:
    try:
        _called(bench, shape, batch, retention)
    except torch.OutOfMemoryError:
        return False
    finally:
        free()
    return True


@torch.no_grad()
def _called(bench: Bench, shape: str, samples: int, retention: float) -> tuple[Peak, int]:
    """Peak of one call, and bytes of the cache behind it."""
    model, inputs = bench.model(shape), bench.inputs(shape, samples, CAMERAS)
    pruned = None if retention == 1.0 else prune_at(model, retention, CAMERAS)
    lengths: list[int] = []

    def call() -> None:
        with pruned or nullcontext():
            out = model(**inputs, use_cache=True, logits_to_keep=1)
        lengths[:] = [layer.keys.shape[-2] for layer in out.past_key_values.layers]

    peak = peak_of(call, bench.setting.target)
    text = model.config.get_text_config()
    return peak, kv_cache_bytes(text, lengths, batch=samples, dtype=bench.setting.torch_dtype)
