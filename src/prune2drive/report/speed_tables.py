"""What the speed suite found as tables of text: made once here, then written as HTML or markdown.

What a row lacks is a dash; what a suite lacks makes no table.
"""

from __future__ import annotations

from collections.abc import Mapping

from .chart import percent
from .evaluation_tables import NONE, Cell, Table, number, whole
from .speed_rows import (
    NEAR,
    Row,
    Suite,
    at,
    break_even_name,
    case_of,
    choosing,
    kernel_name,
    machine,
    main_row,
    median,
    memory,
    mode_of,
    ms,
    pays,
    points_of,
    prefill_groups,
    rows,
    share,
    software,
    stages_of,
    step_name,
    time_cell,
    times_of,
    title_of,
)


def headline(suite: Suite) -> str:
    """What was reached where, in two or three sentences."""
    settings = at(suite, "settings")
    said = [f"Measured on {machine(suite)}"]
    if suite.get("date"):
        said[0] += f" on {str(suite['date'])[:10]}"
    how = [str(settings[k]) for k in ("dtype", "attn") if settings.get(k)]
    said[0] += f": {', '.join([*how, *filter(None, [software(suite)])])}." if how else "."
    best = main_row(suite)
    if best is not None:
        prefill, first = (number(best.get(key)) for key in ("prefill_ratio", "ttft_ratio"))
        words = [f"prefill {prefill:.1f} times"] if prefill is not None else []
        words += [f"time to first token {first:.1f} times"] if first is not None else []
        said.append(
            f"{case_of(best)}, {percent(best['retention'])} of the visual tokens kept, {mode_of(best)}: "
            f"{' and '.join(words)} as fast as unpruned."
        )
        reached = number(best.get("share_of_limit"))
        if reached is not None and reached <= 1:
            said.append(f"The prefill reaches {share(reached)} of what its FLOPs allow.")
        elif reached is not None:
            said.append(
                f"The prefill gains more than its FLOPs alone explain ({share(reached)} of their ratio)."
            )
    if settings.get("quick"):
        said.append("A quick run: few repetitions.")
    if settings.get("layer_limit"):
        said.append(f"Models were cut to {whole(settings['layer_limit'])} layers.")
    return " ".join(said)


def prefill_tables(suite: Suite) -> list[Table]:
    """Times, memory and ratios of every shape and batch."""
    heads = ["Kept", "Tokens", "Tower", "Projector", "Choosing", "Prefill", "TTFT", "Per new token", "Peak"]
    heads += ["KV cache", "Prefill ratio", "TTFT ratio", "FLOPs ratio", "Of the limit"]
    times = ("vision_ms", "projector_ms", "select_ms", "prefill_ms", "ttft_ms", "decode_ms_per_token")
    out = []
    for name, group in prefill_groups(suite):
        lines: list[list[Cell]] = []
        for mode in dict.fromkeys(mode_of(row) for row in group):
            lines.append([Cell(mode.capitalize())])
            for row in (r for r in group if mode_of(r) == mode):
                limit = number(row.get("share_of_limit"))
                lines.append(
                    [
                        Cell(percent(row["retention"])),
                        Cell(whole(row.get("tokens"))),
                        *(time_cell(row, key) for key in times),
                        Cell(memory(row.get("peak_bytes"))),
                        Cell(memory(row.get("kv_bytes"))),
                        *(Cell(times_of(row.get(k))) for k in ("prefill_ratio", "ttft_ratio", "flops_ratio")),
                        Cell(share(limit), strong=(limit or 0) >= NEAR and row["retention"] < 1),
                    ]
                )
        note = (
            "Medians, below them the lowest and highest. Where the projector was not timed, the tower's time "
            "holds it. Ratios are against the unpruned call of the same mode in the same run. Of the limit: "
            f"prefill ratio by FLOPs ratio; bold from {percent(NEAR)} on."
        )
        across = [
            f"{percent(r['retention'])} {ratio:.2f}"
            for r in group
            if (ratio := number(r.get("prefill_ratio_to_eager"))) is not None
        ]
        note += f" Eager unpruned prefill by captured: {', '.join(across)}." if across else ""
        lost = {kept: why for r in group for kept, why in at(r, "lost").items()}
        note += "".join(f" Retention {kept} did not run: {why}." for kept, why in lost.items())
        told = dict.fromkeys(
            f"{stage} {how}" for r in group for stage, how in at(r, "stages").items() if how != "plain"
        )
        note += f" Captured stages: {'; '.join(told)}." if told else ""
        out.append(Table(name, [Cell(head) for head in heads], lines, note))
    return out


def kernel_table(suite: Suite) -> Table | None:
    """Choosing alone: each way's time, the floor, and whether the same tokens are chosen."""
    found = rows(suite, "kernel")
    ways = list(dict.fromkeys(way for _, row in found for way in at(row, "ms")))
    lines = []
    for key, row in found:
        same, close = (number(row.get(k)) for k in ("same_as_plain", "same_tokens_as_float64"))
        reach = number(row.get("reach_ms"))
        lines.append(
            [
                Cell(kernel_name(key, row), str(row.get("backend") or "")),
                *(time_cell(at(row, "ms"), way) for way in ways),
                Cell(ms(at(row, "floor_ms").get("total"))),
                Cell(share(row.get("share_of_floor"))),
                Cell(ms(reach), {True: "reached", False: "missed"}.get(row.get("reached"), "")),  # type: ignore[arg-type]
                Cell(NONE if same is None else percent(same, 1)),
                Cell(NONE if close is None else percent(close, 1)),
            ]
        )
    note = (
        "Views x tokens x channels, picks of each view. Floor: the product at the measured ceilings of this "
        "machine, then one step per pick. Same picks: in order, as the plain version; same tokens: mean "
        "Jaccard with float64."
    )
    head = [
        "Case",
        *(way.capitalize() for way in ways),
        "Floor",
        "Of the floor",
        "Aim",
        "Same picks",
        "Same tokens",
    ]
    return Table("Choosing alone", [Cell(h) for h in head], lines, note) if lines else None


def sweep_table(suite: Suite) -> Table | None:
    """Other layouts of the programs, case by case: what the chosen one is held against."""
    found = [(key, row) for key, row in rows(suite, "kernel") if at(row, "warps")]
    groups = dict.fromkeys(name for _, row in found for name in at(row, "warps"))
    lines: list[list[Cell]] = []
    for group in groups:
        parts = [at(at(row, "warps"), group) for _, row in found]
        if not any(parts) or any("median" in part for part in parts):  # not grouped: a layout itself
            lines.append([Cell(str(group)), *(time_cell(at(row, "warps"), group) for _, row in found)])
            continue
        lines.append([Cell({"picks": "Warps per view", "gram": "Product"}.get(str(group), str(group)))])
        for name in dict.fromkeys(name for part in parts for name in part):
            lines.append([Cell(str(name)), *(time_cell(part, name) for part in parts)])
    head = [Cell("Layout"), *(Cell(kernel_name(key, row)) for key, row in found)]
    return (
        Table("Other layouts", head, lines, "All programs together, one part laid out anew.")
        if lines
        else None
    )


def steps_table(suite: Suite) -> Table | None:
    """The ladder of changes: predicted, time to first token, gain."""
    told = {
        one.get("id"): one.get("predicted")
        for one in suite.get("predictions") or ()
        if isinstance(one, Mapping) and one.get("section") == "steps"
    }
    lines = [
        [
            Cell(step_name(key, row)),
            Cell(str(row.get("predicted") or told.get(row.get("id")) or NONE)),
            time_cell(row, "ttft_ms"),
            Cell(times_of(row.get("gain"))),
        ]
        for key, row in rows(suite, "steps")
    ]
    note = "Each line adds one change to the line above; gain: the line above by this one. "
    note += "Predicted: the gain, on the machine it was reckoned for."
    head = ("Change", "Predicted", "TTFT", "Gain")
    return Table("Step by step", [Cell(h) for h in head], lines, note) if lines else None


def break_even_table(suite: Suite) -> Table | None:
    """Per shape, batch and cameras: what choosing costs, and below which retention pruning pays."""
    found = [row for _, row in rows(suite, "break_even")]
    shares = sorted({s for row in found for s, _ in pays(row)}, reverse=True)
    lines = []
    for row in found:
        edge, told = number(row.get("break_even_retention")), dict(pays(row))
        total = dict(points_of(row))
        cells = []
        for kept in shares:
            paid = told.get(kept)
            cells.append(
                Cell(
                    share(total.get(kept)), "" if paid is not False else "does not pay", strong=paid is False
                )
            )
        lines.append(
            [
                Cell(break_even_name(row)),
                Cell(choosing(row)),
                Cell(percent(edge) if edge else "never" if edge == 0 else _always(told)),
                *cells,
            ]
        )
    head = [Cell("Model"), Cell("Choosing"), Cell("Pays below"), *(Cell(percent(s), "kept") for s in shares)]
    note = "Choosing, cutting the prompt and prefill as a share of the unpruned prefill, by the tokens kept."
    return Table("Where pruning pays", head, lines, note) if lines else None


def _always(told: Mapping[float, bool]) -> str:
    """What stands for a break-even retention that there is none of."""
    if not told:
        return NONE
    if all(told.values()):
        return f"above {percent(max(told))}"
    return "never" if not any(told.values()) else NONE


def break_even_words(suite: Suite) -> str:
    """Where pruning does not pay, in sentences; empty without such a measurement."""
    found = [row for _, row in rows(suite, "break_even")]
    if not found:
        return ""
    said = []
    for row in found:
        lost = sorted(kept for kept, paid in pays(row) if not paid)
        if lost:
            said.append(f"{break_even_name(row)} (at {', '.join(percent(s) for s in lost)})")
    if not said:
        most = max((kept for row in found for kept, _ in pays(row)), default=1.0)
        return f"Pruning pays in every case measured, up to {percent(most)} of the tokens."
    return f"Pruning does not pay, choosing costs more than it saves, with {'; '.join(said)}."


def rivals_table(suite: Suite) -> Table | None:
    """Every method at the same layer-averaged number of tokens, the fastest first."""
    found = sorted((row for _, row in rows(suite, "rivals")), key=lambda r: median(r, "ttft_ms") or 1e18)
    lines = [
        [
            Cell(str(row.get("method")), stages_of(row)),
            Cell(whole(row.get("layer_averaged_tokens"))),
            *(time_cell(row, key) for key in ("select_ms", "prefill_ms", "ttft_ms")),
            Cell(memory(row.get("peak_bytes"))),
            Cell(memory(row.get("kv_bytes"))),
            Cell(str(row.get("note") or "")),
        ]
        for row in found
    ]
    head = ("Method", "Tokens a layer sees", "Choosing", "Prefill", "TTFT", "Peak", "KV cache", "Note")
    note = "Budgets are equal in what a layer sees on average. Below the medians: the lowest and highest."
    return Table("Methods at equal budgets", [Cell(h) for h in head], lines, note) if lines else None


def memory_table(suite: Suite) -> Table | None:
    """Peak, growth and cache of several samples at once, and the largest batch that fits."""
    lines = []
    for key, row in rows(suite, "memory"):
        if "largest_batch" in row:
            words = (_kept(row), f"{whole(row['largest_batch'])} fit", _tried(row))
            shape = title_of(row.get("shape") or key.partition("-largest-")[0])
            lines.append([Cell(shape, words[0]), Cell(words[1], words[2]), *[Cell("")] * 3])
            continue
        failed = str(row.get("reason") or "did not fit") if row.get("ok") is False else ""
        lines.append(
            [
                Cell(title_of(row.get("shape")), _kept(row)),
                Cell(whole(row.get("samples")), failed),
                *(Cell(memory(row.get(k))) for k in ("peak_bytes", "growth_bytes", "kv_bytes")),
            ]
        )
    head = ("Model", "Samples", "Peak", "Growth", "KV cache")
    return Table("Memory", [Cell(h) for h in head], lines) if lines else None


def _kept(row: Row) -> str:
    kept = number(row.get("retention"))
    return "unpruned" if kept in (None, 1.0) else f"{percent(kept)} kept"


def _tried(row: Row) -> str:
    """Every batch size that was tried, and what came of it where that was saved."""
    found = row.get("tried")
    if isinstance(found, Mapping):
        return ", ".join(f"{size} {'ran' if ran else 'did not fit'}" for size, ran in found.items())
    return f"tried {', '.join(map(str, found))}" if isinstance(found, list | tuple) and found else ""


def preprocess_table(suite: Suite) -> Table | None:
    """Preparing pictures and bringing them to the device."""
    found = [row for _, row in rows(suite, "preprocess")]
    lines = [
        [
            Cell(case_of(row)),
            *(time_cell(at(row, "ms"), key) for key in ("stock", "device")),
            *(time_cell(at(row, "upload_ms"), key) for key in ("pixels", "pageable", "pinned")),
        ]
        for row in found
    ]
    head = ("Model", "Stock processor", "On the device", "Upload of pixels", "of frames", "of frames, pinned")
    note = "Stock: PIL on the host. Frames: uint8; pixels: what the stock processor makes of them."
    return Table("Preprocessing", [Cell(h) for h in head], lines, note) if lines else None


def predictions_table(suite: Suite) -> Table | None:
    """What was predicted before measuring, why, and what came out."""
    lines = []
    for one in suite.get("predictions") or ():
        if isinstance(one, Mapping):
            outcome, unit = number(one.get("outcome")), str(one.get("unit") or "")
            lines.append(
                [
                    Cell(str(one.get("change") or one.get("id"))),
                    Cell(str(one.get("predicted") or NONE)),
                    Cell(NONE if outcome is None else f"{outcome:.3g} {unit}".strip()),
                    Cell(str(one.get("verdict") or "not measured"), strong=one.get("verdict") == "missed"),
                    Cell(str(one.get("why") or "")),
                ]
            )
    head = ("Change", "Predicted", "Outcome", "Verdict", "Why")
    note = "Reckoned for an H100 before anything was measured; outcomes are of such a card only."
    return Table("Predictions", [Cell(h) for h in head], lines, note) if lines else None


def trouble_table(suite: Suite) -> Table | None:
    """What failed and what was skipped, with reasons."""
    lines: list[list[Cell]] = []
    for key, name in (("failures", "Failed"), ("skipped", "Skipped")):
        found = [one for one in suite.get(key) or () if isinstance(one, Mapping)]
        lines += [[Cell(name)]] if found else []
        lines += [[Cell(str(one.get("cell"))), Cell(str(one.get("reason")))] for one in found]
    return Table("Failed and skipped", [Cell("Cell"), Cell("Reason")], lines) if lines else None
