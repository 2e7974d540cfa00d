"""Every method at an equal number of tokens, averaged over the layers: choosing, first token, memory."""

from __future__ import annotations

from typing import Any

import torch

from prune2drive import LayerAveraged, PruneError
from prune2drive.benchmarks.contenders import whole_methods
from prune2drive.layer_pruners.base import LayerPruner
from prune2drive.profiling.flops import layer_averaged_tokens
from prune2drive.profiling.timing import summary
from prune2drive.registry import resolve_method
from prune2drive.schedules.base import Schedule

from .bench import Bench
from .calls import Eager, alternate, prune_at
from .setting import CAMERAS
from .sheet import Sheet, free

UNPRUNED = "unpruned"


def names() -> list[str]:
    """Methods to measure, T-FPS first."""
    return sorted(whole_methods(), key=lambda name: (name != "tfps", name))


def measure(bench: Bench, shape: str, retention: float, sheet: Sheet) -> dict[str, dict[str, Any]]:
    """Rows of all methods, the unpruned model among them, measured in turns.

    A method that cannot keep so few tokens on average, or does not take this model, is noted as skipped.
    """
    model, inputs = bench.model(shape), bench.inputs(shape, 1, CAMERAS)
    variants: dict[str, Eager] = {}
    with torch.no_grad():
        variants[UNPRUNED] = Eager(model, inputs)
        for method in names():
            try:
                pruned = prune_at(model, LayerAveraged(retention), CAMERAS, method)
                variants[method] = Eager(model, inputs, pruned)
            except PruneError as why:
                sheet.skip(f"rivals/{method}", str(why))
            except Exception as error:  # not enough memory for its attention, say
                sheet.fail(f"rivals/{method}", error)
                free()
    alternate(variants, max(2, bench.setting.repeat // 2), 0)
    base = summary(variants[UNPRUNED].times["ttft_ms"])["median"]
    return {
        f"rivals/{method}": _row(bench, shape, method, retention, variant, base)
        for method, variant in variants.items()
    }


def _row(bench: Bench, shape: str, method: str, retention: float, own: Eager, base: float) -> dict[str, Any]:
    where = "unpruned" if method == UNPRUNED else _where(method)
    times = {name: summary(spent) for name, spent in own.times.items() if spent}
    inside = where in ("inside", "several stages")
    return {
        "method": method,
        "shape": shape,
        "stages": where,
        "retention_asked": 1.0 if method == UNPRUNED else retention,
        "layer_averaged_tokens": layer_averaged_tokens(own.lengths),
        "tokens_behind": own.tokens,
        "select_ms": times["select_ms"],
        "prefill_ms": times["prefill_ms"],
        "ttft_ms": times["ttft_ms"],
        "ttft_ratio": base / times["ttft_ms"]["median"],
        "peak_bytes": None if own.peak.growth is None else bench.weights + own.peak.growth,
        "growth_bytes": own.peak.growth,
        "kv_bytes": own.kv_bytes,
        "note": "choosing is part of prefill, too" if inside else None,
    }


def _where(method: str) -> str:
    found = resolve_method(method)
    if isinstance(found, Schedule):
        return "several stages"
    return "inside" if isinstance(found, LayerPruner) else "before"
