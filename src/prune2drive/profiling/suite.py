"""The file of the speed suite: what it holds, and whether a file is one.

``cells`` maps "section/key" to a row. Times are objects ``{"median", "lowest", "highest", "runs"}`` in
milliseconds, None where the machine or the model does not let them be taken. In rows of calls:

- ``vision_ms``: the tower; with ``projector_ms`` None, tower and projector.
- ``select_ms``: choosing; ``prefill_ms``: the language model up to the last token's logits, encoded and
  chosen beforehand (methods inside the language model: their choosing included); ``ttft_ms``: the whole call
  from pixels on the device.
- ``peak_bytes``: weights and the most that was allocated beside them; captured: from the recording on, so
  with the buffers, a cache with room for the answer, and a copy for the caller. ``reserved_bytes``: what the
  device's allocator keeps for a captured call. ``kv_bytes``: of the cache behind the prompt.
- ``prefill_ratio``, ``ttft_ratio``: the unpruned median of the same run and mode over this one's.
  ``flops_ratio``: the same of the FLOPs of prefill and head, causal pairs only. ``share_of_limit``: the first
  over the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from ..errors import PruneError, did_you_mean
from ..files import read_json

WHAT = "prune2drive speed suite"
SCHEMA = 1

TOP = (
    "what",
    "schema",
    "date",
    "hardware",
    "versions",
    "settings",
    "ceilings",
    "predictions",
    "cells",
    "skipped",
    "failures",
)

SECTIONS: dict[str, tuple[str, ...]] = {
    "kernel": ("views", "tokens", "channels", "k", "dtype", "backend", "ms", "floor_ms", "share_of_floor"),
    "prefill": (
        "shape",
        "batch",
        "retention",
        "mode",
        "cameras",
        "tokens",
        "vision_ms",
        "select_ms",
        "prefill_ms",
        "ttft_ms",
        "peak_bytes",
        "kv_bytes",
        "prefill_ratio",
        "ttft_ratio",
        "flops_ratio",
        "share_of_limit",
    ),
    "steps": ("shape", "id", "title", "ttft_ms", "parts_ms", "gain"),
    "preprocess": ("shape", "ms", "upload_ms"),
    "break_even": ("shape", "batch", "cameras", "points", "pays_at", "break_even_retention"),
    "rivals": ("method", "stages", "retention_asked", "layer_averaged_tokens", "prefill_ms", "ttft_ms"),
    "memory": ("shape",),
}
"""Section -> fields that every row has."""
NUMBERS = ("floor_ms", "reach_ms")
"""Milliseconds that are worked out or asked for, not measured: plain numbers."""


def load_suite(path: str | Path) -> dict[str, Any]:
    """Read what the speed suite wrote.

    Raises:
        PruneError: no such file, no result of the suite, or a damaged one; the message names the place.
    """
    data = read_json(path, "speed result", "Run benchmarks/gpu_suite.py again.")
    check_suite(data, str(path))
    return data  # type: ignore[no-any-return]


def check_suite(data: Any, where: str) -> None:
    """Raise PruneError if ``data`` is no result of the speed suite; ``where`` names it in the message."""
    if not isinstance(data, Mapping) or data.get("what") != WHAT:
        raise PruneError(f"{where} is no result of the speed suite; run benchmarks/gpu_suite.py to make one.")
    if data.get("schema") != SCHEMA:
        raise PruneError(
            f"{where} is of schema {data.get('schema')!r}, this version reads {SCHEMA}; measure again."
        )
    if lost := [name for name in TOP if name not in data]:
        raise PruneError(f"{where} is damaged: it lacks {', '.join(lost)}; measure again.")
    cells = data["cells"]
    if not isinstance(cells, Mapping):
        raise PruneError(f"{where} is damaged: cells is a {type(cells).__name__}; measure again.")
    for name, row in cells.items():
        _check_row(name, row, where)


def _check_row(name: str, row: Any, where: str) -> None:
    section, slash, key = name.partition("/")
    if section not in SECTIONS or not slash or not key:
        raise PruneError(f"{where}: cell {name!r} is of no known section.{did_you_mean(section, SECTIONS)}")
    if not isinstance(row, Mapping):
        raise PruneError(f"{where}: cell {name!r} is a {type(row).__name__}, not a row; measure again.")
    if lost := [field for field in SECTIONS[section] if field not in row]:
        raise PruneError(f"{where}: cell {name!r} lacks {', '.join(lost)}; measure again.")
    for field, value in row.items():
        if field.endswith("_ms") and field not in NUMBERS and value is not None and not _are_times(value):
            raise PruneError(f"{where}: cell {name!r}: {field} is no time: {value!r}; measure again.")


def _are_times(value: Any) -> bool:
    """Whether it is a time, or an object of times by name, some of them None."""
    if not isinstance(value, Mapping):
        return False
    times = [value] if "median" in value else value.values()
    return all(time is None or _is_time(time) for time in times)


def _is_time(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(value.get(part), Real) and value[part] >= 0 for part in ("median", "lowest", "highest")
    )
