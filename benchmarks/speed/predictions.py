"""What each change was expected to bring on an H100, and why: written before anything was measured.

One card: 670 TFLOP/s of dense bfloat16 products that large matrices reach (990 on paper), 3.3 TB/s of memory,
some 10 us for a kernel launched from a transformers model in Python. DriveMM's shape: 4,444 prompt tokens,
77 TFLOP of prefill; 10% of the tokens: 508 tokens, 7.7 TFLOP; tower of six pictures 3.7 TFLOP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Cells = Mapping[str, Mapping[str, Any]]
LOWER, HIGHER = "lower", "higher"


@dataclass(frozen=True)
class Prediction:
    """``value`` in ``unit``; met if the outcome is at least as good, ``better`` lower or higher.

    ``outcome`` reads it from the cells and raises KeyError or TypeError where it was not measured.
    """

    id: str
    section: str
    change: str
    value: float
    unit: str
    better: str
    why: str
    outcome: Callable[[Cells], float]
    asked: bool = False
    """Whether the value is what was asked for, not what was expected."""

    def told(self, cells: Cells, predicted_for: bool) -> dict[str, Any]:
        """As the result file has it; ``predicted_for``: whether this device is of the kind meant."""
        measured: float | None = None
        if predicted_for:
            try:
                measured = float(self.outcome(cells))
            except (KeyError, TypeError):
                measured = None
        good = None
        if measured is not None:
            good = measured <= self.value if self.better == LOWER else measured >= self.value
        sign = "at most" if self.better == LOWER else "at least"
        return {
            "id": self.id,
            "section": self.section,
            "change": self.change,
            "predicted": f"{sign} {self.value:g} {self.unit}" + (" (asked)" if self.asked else ""),
            "predicted_value": self.value,
            "unit": self.unit,
            "why": self.why,
            "outcome": measured,
            "verdict": None if good is None else "met" if good else "missed",
        }


def _kernel(k: int, part: str | None = None) -> Callable[[Cells], float]:
    def read(cells: Cells) -> float:
        row = cells[f"kernel/6x729x4096-k{k}-bfloat16"]
        if row["backend"] != "triton":
            raise KeyError(part)
        if part is not None:
            return row["parts_ms"][part]["median"]  # type: ignore[no-any-return]
        return (row["ms"].get("graph") or row["ms"]["kernel"])["median"]  # type: ignore[no-any-return]

    return read


def _prefill(field: str, mode: str, retention: str = "0.1", batch: int = 1) -> Callable[[Cells], float]:
    return lambda cells: cells[f"prefill/drivemm-b{batch}-r{retention}-{mode}"][field]


def _step(name: str) -> Callable[[Cells], float]:
    return lambda cells: _found(cells, name)["gain"]


def _found(cells: Cells, name: str) -> Mapping[str, Any]:
    for key, row in cells.items():
        if key.startswith("steps/") and row["id"] == name and row["shape"] == "drivemm":
            return row
    raise KeyError(name)


def _whole_way(cells: Cells) -> float:
    return _found(cells, "stock")["ttft_ms"]["median"] / _found(cells, "pinned")["ttft_ms"]["median"]


def _point(shape: str, cameras: int, mode: str, retention: float) -> Callable[[Cells], float]:
    def read(cells: Cells) -> float:
        return dict(map(tuple, cells[f"break_even/{shape}-b1-{cameras}cam-{mode}"]["points"]))[retention]

    return read


def _growth(cells: Cells) -> float:
    pair = [cells[f"memory/drivemm-n16-{name}"]["growth_bytes"] for name in ("unpruned", "r0.1")]
    return pair[0] / pair[1]  # type: ignore[no-any-return]


def _largest(cells: Cells) -> float:
    pair = [cells[f"memory/drivemm-largest-{name}"]["largest_batch"] for name in ("unpruned", "r0.1")]
    return pair[1] / pair[0]  # type: ignore[no-any-return]


PREDICTIONS = (
    Prediction(
        "kernel-72", "kernel", "three programs instead of some 220 launches, k = 72", 0.08, "ms", LOWER,
        "lower triangle of the product 45 us (226 MB from L2), distances in place 6 us, 72 picks of one "
        "dependent row each 30 us", _kernel(72),
    ),
    Prediction(
        "kernel-364", "kernel", "the same, k = 364", 0.2, "ms", LOWER,
        "product and distances as before, 364 picks 145 us", _kernel(364),
    ),
    Prediction(
        "kernel-product", "kernel", "half of the product, distances written over it", 0.051, "ms", LOWER,
        "45 + 6 us; the full product would read 410 MB from L2", _kernel(72, "gram"),
    ),
    Prediction(
        "kernel-picks", "kernel", "all picks of a view by one program", 0.03, "ms", LOWER,
        "a pick is one row from L2 (300 cycles) and some 390 cycles of comparisons: 0.4 us",
        _kernel(72, "picks"),
    ),
    Prediction(
        "reach-72", "kernel", "all of choosing, k = 72", 0.3, "ms", LOWER, "the paper reports 20 ms",
        _kernel(72), asked=True,
    ),
    Prediction(
        "reach-364", "kernel", "all of choosing, k = 364", 1.0, "ms", LOWER,
        "a public port takes 41 ms for 576",        _kernel(364), asked=True,
    ),
    Prediction(
        "tower-sdpa", "steps", "fused attention in the tower", 1.03, "times", HIGHER,
        "eager attention moves some 100 MB per layer and picture, 16 GB in all: 5 of 195 ms",
        _step("tower-sdpa"),
    ),
    Prediction(
        "tower-batch", "steps", "all cameras through the tower in one batch", 1.07, "times", HIGHER,
        "six passes of 26 layers are bound by 2,300 launches, 24 ms; one pass computes for 8 to 10 ms",
        _step("tower-batch"),
    ),
    Prediction(
        "pruned", "steps", "10% of the tokens, chosen by the plain version", 2.1, "times", HIGHER,
        "prefill 115 ms -> 20 ms (bound by launches), choosing 2.5 ms, PIL 48 ms stays", _step("pruned"),
    ),
    Prediction(
        "kernel", "steps", "chosen by the GPU programs", 1.03, "times", HIGHER,
        "choosing 2.5 ms -> 0.4 ms with the host's part", _step("kernel"),
    ),
    Prediction(
        "planned", "steps", "shapes, masks and positions worked out once", 1.03, "times", HIGHER,
        "about 3 ms on the host and two waits for the device", _step("planned"),
    ),
    Prediction(
        "graphs", "steps", "tower, choosing and prefill as CUDA graphs", 1.12, "times", HIGHER,
        "prefill 20 ms -> 13.5 ms of computing, tower 10 -> 8 ms, choosing 0.4 -> 0.1 ms", _step("graphs"),
    ),
    Prediction(
        "compiled", "steps", "tower and prefill compiled", 1.05, "times", HIGHER,
        "norms, rotary embedding and gates fused: a tenth of the kernels' time at 508 tokens",
        _step("compiled"),
    ),
    Prediction(
        "device-pixels", "steps", "pixels made on the device", 2.5, "times", HIGHER,
        "PIL takes 8 ms a picture, the device 0.5 ms for all; 26 MB of frames instead of 11 MB of pixels "
        "cost 3 ms more to bring over", _step("device-pixels"),
    ),
    Prediction(
        "pinned", "steps", "frames through page-locked memory", 1.05, "times", HIGHER,
        "26 MB: 5 ms pageable, 1 ms pinned and 2.6 ms to copy them there", _step("pinned"),
    ),
    Prediction(
        "whole-way", "steps", "all steps together", 7.0, "times", HIGHER, "195 ms -> 27 ms", _whole_way,
    ),
    Prediction(
        "prefill-eager", "prefill", "prefill at 10%, launched from Python", 5.5, "times", HIGHER,
        "115 ms of computing against 32 layers of some 60 launches: 20 ms",
        _prefill("prefill_ratio", "eager"),
    ),
    Prediction(
        "prefill-captured", "prefill", "prefill at 10%, as a graph", 8.5, "times", HIGHER,
        "115 ms against 13.5 ms: 508 rows fill the multipliers to 57% where 4,444 fill them to 68%",
        _prefill("prefill_ratio", "captured"),
    ),
    Prediction(
        "reach-prefill", "prefill", "prefill at 10%", 8.0, "times", HIGHER,
        "the paper reports 6.40 against a baseline that computes all logits",
        _prefill("prefill_ratio", "captured"), asked=True,
    ),
    Prediction(
        "reach-share", "prefill", "share of what the FLOPs allow at 10%", 0.8, "of the limit", HIGHER,
        "the FLOPs of last-token prefill fall 10-fold, attention more than the rest",
        _prefill("share_of_limit", "captured"), asked=True,
    ),
    Prediction(
        "ttft-captured", "prefill", "first token at 10%, from pixels on the device", 5.3, "times", HIGHER,
        "8 + 115 ms against 8 + 0.1 + 14 ms plus a copy of the cache", _prefill("ttft_ratio", "captured"),
    ),
    Prediction(
        "reach-ttft", "prefill", "first token at 10%", 3.0, "times", HIGHER, "asked",
        _prefill("ttft_ratio", "captured"), asked=True,
    ),
    Prediction(
        "pays-drivemm", "break_even", "choosing and prefill at 95% over the whole prefill", 0.96, "times",
        LOWER,
        "0.7 ms of choosing against 5% of 115 ms", _point("drivemm", 6, "captured", 0.95),
    ),
    Prediction(
        "pays-small-eager", "break_even", "the 0.5B model at 25%, launched from Python", 1.0, "times", HIGHER,
        "24 layers of launches take 14 ms, more than the 10 ms of computing that "
        "pruning saves: it does not pay",
        _point("llava-onevision-0.5b", 6, "eager", 0.25),
    ),
    Prediction(
        "pays-small-captured", "break_even", "the 0.5B model at 25%, as a graph", 0.4, "times", LOWER,
        "10 ms against 3.5 ms and 0.2 ms of choosing", _point("llava-onevision-0.5b", 6, "captured", 0.25),
    ),
    Prediction(
        "pays-short-eager", "break_even", "InternVL2.5-8B with two cameras at 25%, from Python",
        1.0, "times", HIGHER,
        "576 tokens compute for 14 ms and launch for 20 ms: nothing to save",
        _point("internvl2.5-8b", 2, "eager", 0.25),
    ),
    Prediction(
        "memory-16", "memory", "memory beside the weights at 16 samples, unpruned over 10%",
        3.0, "times", HIGHER,
        "cache 9.3 GB and 6 GB in the widest layer against 1.1 GB, 2.6 GB of features and the tower's 1.2 GB",
        _growth,
    ),
    Prediction(
        "largest", "memory", "largest batch at 10% over unpruned", 3.0, "times", HIGHER,
        "about 1 GB a sample against 0.3 GB, which is features and tower", _largest,
    ),
)  # fmt: skip


def told(cells: Cells, gpu: str | None) -> list[dict[str, Any]]:
    """All predictions with their outcomes; outcomes stay None on devices that were not meant."""
    meant = gpu is not None and ("H100" in gpu or "H200" in gpu)
    return [prediction.told(cells, meant) for prediction in PREDICTIONS]
