"""Reading what the speed suite saved: rows of sections, their figures, and the words for them.

A suite holds settings, hardware, and cells "section/key" with a row each. Times are ``{"median", "lowest",
"highest", "runs"}`` in milliseconds. What a row lacks is None or a dash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .evaluation_tables import NONE, Cell, number, whole
from .speed_charts import milliseconds

Suite = Mapping[str, Any]
Row = Mapping[str, Any]

TITLES = {
    "demo": "Demo size",
    "llava-onevision-0.5b": "LLaVA-OneVision 0.5B",
    "llava-onevision-7b": "LLaVA-OneVision 7B",
    "llava-1.5-7b": "LLaVA-1.5 7B",
    "internvl2.5-8b": "InternVL2.5 8B",
    "internvl2.5-8b-tiled": "InternVL2.5 8B, 7 tiles",
    "qwen2.5-vl-7b": "Qwen2.5-VL 7B",
    "drivemm": "DriveMM",
}
"""Names of shapes; others stand for themselves."""
MODES = ("eager", "captured")
NEAR = 0.8
"""The share of the limit that is aimed at."""
_GIB = 2**30
_CEILINGS = (
    ("matmul_tflops", "Measured matmul", "TFLOP/s"),
    ("copy_gb_per_s", "Measured copy", "GB/s"),
    ("launch_us", "Measured launch", "µs"),
    ("l2_step_us", "Dependent step", "µs"),
)


def rows(suite: Suite, section: str) -> list[tuple[str, Row]]:
    """(key without the section, row) of the cells of a section, in the order of the file."""
    cells = suite.get("cells")
    found = cells.items() if isinstance(cells, Mapping) else ()
    start = section + "/"
    return [(k[len(start) :], row) for k, row in found if k.startswith(start) and isinstance(row, Mapping)]


def median(row: Row, key: str) -> float | None:
    """The median of a time, or the number itself where only that was saved."""
    found = row.get(key)
    return number(found.get("median") if isinstance(found, Mapping) else found)


def at(row: Row, key: str) -> Mapping[str, Any]:
    """A part of a row that holds several figures; empty where it lacks."""
    found = row.get(key)
    return found if isinstance(found, Mapping) else {}


def title_of(shape: Any) -> str:
    """The name of a shape."""
    return TITLES.get(str(shape), str(shape))


def case_of(row: Row) -> str:
    """What was run, in words: "DriveMM, 6 cameras, batch 8"; 1 as batch is not said."""
    words = [title_of(row.get("shape"))]
    if (cameras := number(row.get("cameras"))) is not None:
        words.append(f"{cameras:.0f} cameras")
    if (batch := number(row.get("batch"))) is not None and batch != 1:
        words.append(f"batch {batch:.0f}")
    return ", ".join(words)


def prefill_groups(suite: Suite) -> list[tuple[str, list[Row]]]:
    """The rows of each shape and batch: eager before captured, the unpruned first."""
    groups: dict[str, list[Row]] = {}
    for _, row in rows(suite, "prefill"):
        if number(row.get("retention")) is not None:
            groups.setdefault(case_of(row), []).append(row)
    return [(name, sorted(group, key=_order)) for name, group in groups.items()]


def mode_of(row: Row) -> str:
    """How the call was made; "eager" where the row does not say."""
    return str(row.get("mode") or MODES[0])


def machine(suite: Suite) -> str:
    """The accelerator, or the processor, that the figures were measured on."""
    hardware = at(suite, "hardware")
    if hardware.get("gpu"):
        return str(hardware["gpu"])
    cores = number(hardware.get("cores"))
    name = str(hardware.get("cpu") or "an unknown machine")
    return name if cores is None else f"{cores:.0f} {'core' if cores == 1 else 'cores'} of {name}"


def on_gpu(suite: Suite) -> bool:
    """Whether the figures are of an accelerator."""
    return bool(at(suite, "hardware").get("gpu"))


def software(suite: Suite) -> str:
    """Driver and versions that matter, in words."""
    hardware, versions = at(suite, "hardware"), at(suite, "versions")
    words = [f"driver {hardware['driver']}"] if hardware.get("driver") else []
    words += [
        f"{title} {versions[name]}"
        for name, title in (("torch", "PyTorch"), ("triton", "Triton"), ("transformers", "transformers"))
        if versions.get(name)
    ]
    return ", ".join(words)


def main_row(suite: Suite) -> Row | None:
    """The row that stands for all: 10% kept of the first shape at the smallest batch, captured if there."""
    found = [row for _, row in rows(suite, "prefill") if number(row.get("retention")) == 0.1]
    found = [row for row in found if number(row.get("prefill_ratio")) or number(row.get("ttft_ratio"))]
    shapes = [row.get("shape") for row in found]

    def rank(row: Row) -> tuple[int, float, bool]:
        return shapes.index(row.get("shape")), number(row.get("batch")) or 0.0, mode_of(row) != MODES[1]

    return min(found, key=rank, default=None)


def points_of(row: Row) -> list[tuple[float, float]]:
    """(retention, choosing and prefill by the unpruned prefill) of a break-even row."""
    pairs = [p for p in row.get("points") or () if isinstance(p, Sequence) and len(p) == 2]
    return [(x, y) for a, b in pairs if (x := number(a)) and (y := number(b)) is not None]


def pays(row: Row) -> list[tuple[float, bool]]:
    """(retention, whether pruning pays there) of a break-even row, without retention 1."""
    out = []
    for share, paid in at(row, "pays_at").items():
        try:
            kept = float(share)
        except (TypeError, ValueError):
            continue
        if 0 < kept < 1 and isinstance(paid, bool):
            out.append((kept, paid))
    return out


def kernel_name(key: str, row: Row) -> str:
    """ "6 x 729 x 4096, 72, bfloat16", from the row, else from its key."""
    sizes = [number(row.get(k)) for k in ("views", "tokens", "channels")]
    if None in sizes or number(row.get("k")) is None:
        return key
    words = [" x ".join(f"{n:.0f}" for n in sizes if n is not None), whole(row["k"])]
    return ", ".join([*words, str(row["dtype"]).removeprefix("torch.")] if row.get("dtype") else words)


def break_even_name(row: Row) -> str:
    """What was run and how: "DriveMM, 2 cameras, eager"."""
    return ", ".join([case_of(row), *([mode_of(row)] if row.get("mode") else [])])


def choosing(row: Row) -> str:
    """What choosing took: a time, or the lowest and highest of one per retention."""
    if median(row, "select_ms") is not None:
        return ms(median(row, "select_ms"))
    found = [n for key in at(row, "select_ms") if (n := median(at(row, "select_ms"), key)) is not None]
    if not found:
        return NONE
    first, last = ms(min(found)), ms(max(found))
    return first if first == last else f"{first} to {last}"


def step_name(key: str, row: Row) -> str:
    """The title of a step of the ladder."""
    return str(row.get("title") or row.get("id") or key)


def stages_of(row: Row) -> str:
    """Where a method chooses, in words."""
    found = row.get("stages")
    if isinstance(found, str):
        return found
    return (
        ", ".join(map(str, found)) if isinstance(found, Iterable) and not isinstance(found, Mapping) else ""
    )


def time_cell(row: Row, key: str) -> Cell:
    """A time with its lowest and highest, where there were several runs."""
    low, high = (number(at(row, key).get(edge)) for edge in ("lowest", "highest"))
    if low is None or high is None or low == high:
        return Cell(ms(median(row, key)))
    first, last = ms(low), ms(high)
    if first.split()[-1] == last.split()[-1]:  # the unit once
        first = first.split()[0]
    return Cell(ms(median(row, key)), f"{first} to {last}")


def ms(value: Any) -> str:
    """Milliseconds in the unit that suits them."""
    found = number(value)
    return NONE if found is None else milliseconds(found)


def share(value: Any) -> str:
    """A share as whole percent."""
    found = number(value)
    return NONE if found is None else f"{100 * found:.0f}%"


def times_of(value: Any) -> str:
    """A ratio."""
    found = number(value)
    return NONE if found is None else f"{found:.2f}x" if found < 9.995 else f"{found:.1f}x"


def memory(value: Any) -> str:
    """Bytes in MiB or GiB."""
    found = number(value)
    if found is None:
        return NONE
    return f"{found / _GIB:.2f} GiB" if abs(found) >= _GIB else f"{found / 2**20:.1f} MiB"


def _order(row: Row) -> tuple[int, float]:
    mode = mode_of(row)
    return (MODES.index(mode) if mode in MODES else len(MODES)), -(number(row.get("retention")) or 0.0)


def facts_of(suite: Suite) -> dict[str, str]:
    """Hardware, versions, settings and ceilings, in words."""
    hardware, settings, ceilings = (at(suite, key) for key in ("hardware", "settings", "ceilings"))
    out = {"Hardware": machine(suite)}
    for key, name in (("cpu", "Processor"), ("driver", "Driver"), ("capability", "Capability")):
        if hardware.get(key):
            out[name] = str(hardware[key])
    if number(hardware.get("gpu_bytes")) is not None:
        out["Memory"] = memory(hardware["gpu_bytes"])
    out["Versions"] = ", ".join(f"{name} {version}" for name, version in at(suite, "versions").items())
    for key, name, unit in _CEILINGS:
        if (value := number(ceilings.get(key))) is not None:
            out[name] = f"{value:.4g} {unit}"
    out["Settings"] = ", ".join(
        f"{key} {_plain(value)}" for key, value in settings.items() if value is not None
    )
    out["Date"] = str(suite.get("date") or "")
    return {name: words for name, words in out.items() if words}


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
