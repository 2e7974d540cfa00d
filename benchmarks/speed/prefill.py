"""From pixels to the first token, and the answer: every retention, unpruned first, in one run."""

from __future__ import annotations

from typing import Any

import torch

from prune2drive.errors import first_line

from .bench import Bench
from .calls import Measured, Variant, alternate, make, rows_of
from .setting import CAMERAS
from .sheet import Skip, free


def measure(bench: Bench, shape: str, batch: int, mode: str) -> dict[str, dict[str, Any]]:
    """Rows of all retentions of one shape, batch and mode; those for which memory lacks stand in ``lost``.

    At batch 1 all take turns. Larger ones, with their graphs, do not fit into memory side by side: there one
    is measured after the other, the unpruned first.
    """
    setting = bench.setting
    retentions = sorted({*setting.retentions, 1.0}, reverse=True)
    together = [retentions] if batch == 1 else [[r] for r in retentions]
    measured: dict[float, Measured] = {}
    lost: dict[str, str] = {}
    for group in together:
        measured |= _measured(bench, shape, batch, mode, group, lost)
        free()
    if not measured:
        raise Skip("; ".join(f"{r}: {why}" for r, why in lost.items()))
    rows = rows_of(measured, bench, shape, batch, CAMERAS)
    common = {"shape": shape, "batch": batch, "mode": mode, "cameras": CAMERAS, "lost": lost}
    common |= {"text_tokens": setting.text_tokens, "turns": len(together) == 1}
    return {
        f"prefill/{shape}-b{batch}-r{retention:g}-{mode}": {**common, "retention": retention, **row}
        for retention, row in sorted(rows.items(), reverse=True)
    }


def _measured(
    bench: Bench, shape: str, batch: int, mode: str, retentions: list[float], lost: dict[str, str]
) -> dict[float, Measured]:
    """What was measured of variants side by side; ``lost`` is told of those that could not be made."""
    setting, inputs = bench.setting, bench.inputs(shape, batch, CAMERAS)
    variants: dict[float, Variant] = {}
    # The shortest first: what is lost for want of memory are the longest.
    for retention in sorted(retentions):
        try:
            variants[retention] = make(mode, bench, shape, inputs, retention, CAMERAS, setting.new_tokens)
        except torch.OutOfMemoryError as error:
            lost[f"{retention:g}"] = first_line(error)
    alternate(variants, setting.rounds(batch), setting.new_tokens)
    return {r: Measured.of(variant) for r, variant in variants.items()}


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
