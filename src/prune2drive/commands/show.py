"""What `run` and `demo` share: the table on the terminal, the panels and facts on the page."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from ..engine import Pruned, Record
    from ..report.page import Panel, Timing
    from ..rig import Rig
    from ..tokens import Box


def first_token(pruned: Pruned, inputs: Mapping[str, Any]) -> list[Timing]:
    """Time one warm pruned call from pixels to the first token's logits, and its parts.

    The call before this one (the answer) was the warm-up.
    """
    import torch

    from ..report.page import Timing

    def wait() -> None:
        if inputs["input_ids"].is_cuda:
            torch.cuda.synchronize()

    with torch.inference_mode(), pruned:
        wait()
        start = time.perf_counter()
        pruned.model(**inputs, use_cache=True, logits_to_keep=1)
        wait()
        total = 1e3 * (time.perf_counter() - start)
    record = pruned.record
    return [
        Timing("Time to first token", total),
        Timing("Vision encoder", record.encode_ms),
        Timing("Choosing", record.select_ms),
        Timing("Prefill and the rest", max(0.0, total - record.encode_ms - record.select_ms)),
    ]


def compared(result: Any) -> list[Timing]:
    """The times of a `profiling.latency.profile` as rows of the page."""
    from ..report.page import Timing

    rows = (
        ("Time to first token", "ttft_ms"),
        ("Vision encoder", "vision_ms"),
        ("Choosing", "select_ms"),
        ("Prefill", "prefill_ms"),
    )
    # An unpruned call chooses nothing; 0 ms would look measured.
    return [Timing(name, result.pruned[key], result.unpruned[key] or None) for name, key in rows]


def panels(record: Record, pictures: Mapping[str, Any], rig: Rig, image_processor: Any = None) -> list[Panel]:
    """One panel per camera of the first sample, in prompt order.

    Args:
        pictures: camera -> PIL picture.
        image_processor: what made pixels of the pictures; None if all of each was shown to the model.
    """
    from ..region import processed_region
    from ..report.overlay import overlay_jpeg
    from ..report.page import Panel
    from ..tokens import WHOLE

    views = record.views[0]
    out = []
    for name, cell in record.samples[0].items():
        view, picture, region = views[name], pictures[name], WHOLE
        if image_processor is not None:
            region = processed_region(image_processor, picture.size)
        shown = [i for i in cell.indices if int(view.frame[i]) == 0]  # the picture is the first frame's
        drawn = overlay_jpeg(picture, view.boxes, shown, region=region)
        yaw = rig.camera(name).yaw_deg if name in rig else None
        note = region_note(region, view.boxes[shown])
        out.append(Panel(name, drawn, cell.before, cell.kept, yaw, note))
    return out


def region_note(region: Box, kept: Tensor) -> str:
    """What to say under a picture of which the model sees a part, or more than there is.

    ``kept`` ``(n, 4)``: boxes of the kept tokens as shares of the region.
    """
    from ..region import seen_share
    from ..report.overlay import in_picture

    notes = []
    if (share := seen_share(region)) < 0.995:
        notes.append(f"The model sees only the middle {share:.0%}.")
    inside = in_picture(kept, region).clamp(0, 1)
    blank = int(((inside[:, 2] <= inside[:, 0]) | (inside[:, 3] <= inside[:, 1])).sum())
    if blank:
        plural = "" if blank == 1 else "s"
        notes.append(f"{blank} kept token{plural} in the padding around the picture.")
    return " ".join(notes)


def print_result(console: Console, record: Record, times: Sequence[Timing]) -> None:
    """Print tokens per camera and milliseconds as tables."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_footer=True)
    before, kept = record.tokens
    table.add_column("Camera", "All cameras", no_wrap=True)
    table.add_column("Tokens", f"{before:,}", justify="right")
    table.add_column("Kept", f"{kept:,}", justify="right")
    table.add_column("Share", f"{kept / max(before, 1):.1%}", justify="right")
    for sample in record.samples:
        for name, cell in sample.items():
            table.add_row(
                name, f"{cell.before:,}", f"{cell.kept:,}", f"{cell.kept / max(cell.before, 1):.1%}"
            )
    console.print(table)
    both = any(t.unpruned is not None for t in times)
    clock = Table("Milliseconds", box=box.SIMPLE_HEAD)
    clock.add_column("Pruned", justify="right")
    if both:
        clock.add_column("Unpruned", justify="right")
    for t in times:
        cells = [t.stage, "-" if t.pruned is None else f"{t.pruned:,.1f}"]
        clock.add_row(*cells, *(["-" if t.unpruned is None else f"{t.unpruned:,.1f}"] if both else []))
    console.print(clock)


def written_retention(retention: Any) -> str:
    """A share, or the rates of cameras, in words."""
    if isinstance(retention, Mapping):
        return ", ".join(f"{camera} {share:g}" for camera, share in retention.items())
    averaged = getattr(retention, "retention", None)  # of LayerAveraged
    return str(retention) if averaged is None else f"{averaged:g} on average over the layers"


def facts(
    model: Any, name: str, record: Record, retention: Any, positions: str, **more: str
) -> dict[str, str]:
    """The footer of the page: what ran, how, and on what. No host name, no user name."""
    from ..profiling.hardware import hardware, versions

    machine = hardware(model.device)
    plural = "" if machine["threads"] == 1 else "s"
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} thread{plural}"
    numbers = str(model.dtype).removeprefix("torch.")
    return {
        "Model": name,
        "Method": record.method,
        "Retention": written_retention(retention),
        "Positions": positions,
        "Prompt tokens": f"{record.sequence[0]:,} before, {record.sequence[1]:,} at the language model",
        **more,
        "Numbers": f"{numbers}, {model.config._attn_implementation} attention",
        "Hardware": where,
        "Versions": ", ".join(f"{k} {v}" for k, v in versions().items()),
        "Date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
