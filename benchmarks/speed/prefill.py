"""From pixels to the first token, and the answer: every retention, unpruned first, in one run."""

from __future__ import annotations

from typing import Any

from prune2drive.errors import first_line

from .bench import Bench
from .calls import Variant, alternate, make, rows_of
from .setting import CAMERAS


def measure(bench: Bench, shape: str, batch: int, mode: str) -> dict[str, dict[str, Any]]:
    """Rows of all retentions of one shape, batch and mode.

    A retention for which there is not enough memory is left out, with a row of its own among the failures of
    the caller: here it is named in ``lost`` of the others.
    """
    setting = bench.setting
    inputs = bench.inputs(shape, batch, CAMERAS)
    variants: dict[float, Variant] = {}
    lost: dict[str, str] = {}
    # The shortest first: what is lost for want of memory are the longest.
    for retention in sorted({*setting.retentions, 1.0}):
        try:
            variants[retention] = make(mode, bench, shape, inputs, retention, CAMERAS)
        except Exception as error:
            if not variants:
                raise
            lost[f"{retention:g}"] = first_line(error)
    alternate(variants, setting.rounds(batch), setting.new_tokens)
    rows = rows_of(variants, bench, shape, inputs)
    common = {"shape": shape, "batch": batch, "mode": mode, "cameras": CAMERAS, "lost": lost}
    common["text_tokens"] = setting.text_tokens
    return {
        f"prefill/{shape}-b{batch}-r{retention:g}-{mode}": {**common, "retention": retention, **row}
        for retention, row in sorted(rows.items(), reverse=True)
    }


def across_modes(cells: dict[str, dict[str, Any]]) -> None:
    """Give captured rows what they gain over the eager unpruned call, which users start from."""
    for name, row in cells.items():
        if not name.startswith("prefill/") or row["mode"] != "captured":
            continue
        start = cells.get(f"prefill/{row['shape']}-b{row['batch']}-r1-eager")
        if start is not None:
            for part in ("prefill", "ttft"):
                old, new = start[f"{part}_ms"]["median"], row[f"{part}_ms"]["median"]
                row[f"{part}_ratio_to_eager"] = old / new
