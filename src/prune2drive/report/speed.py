"""The result of the speed suite as a page: what each change brings, how near the limits, and what failed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..files import write_atomically
from .chart import Point, Reference, Series, escape, line_chart, percent
from .evaluation import EVALUATION_CSS
from .evaluation_tables import Table, number, table_html, whole
from .speed_charts import Bar, Mark, bars_svg, milliseconds, ratio_svg, spaced
from .speed_rows import (
    NEAR,
    Row,
    Suite,
    at,
    break_even_name,
    case_of,
    facts_of,
    kernel_name,
    machine,
    main_row,
    median,
    mode_of,
    points_of,
    prefill_groups,
    rows,
    share,
    step_name,
    times_of,
    title_of,
)
from .speed_tables import (
    break_even_table,
    break_even_words,
    headline,
    kernel_table,
    memory_table,
    predictions_table,
    prefill_tables,
    preprocess_table,
    rivals_table,
    steps_table,
    sweep_table,
    trouble_table,
)
from .style import document

__all__ = ["SPEED_CSS", "headline", "picture", "speed_page", "write_speed"]

PARTS = ("tower", "projector", "choosing", "prefill", "the rest")
STEP_PARTS = ("decode JPEG", "preprocessing", "upload", "tower, projector", "choosing", "prefill")
_STEP_KEYS = (
    ("decode_jpeg", "decode_jpeg_ms"),
    ("preprocess", "preprocess_ms"),
    ("upload", "upload_ms"),
    ("vision", "vision_ms"),
    ("select", "select_ms"),
    ("prefill", "prefill_ms"),
)
_WIDE, _HALF, _SMALL = 1100, 560, 350

SPEED_CSS = (
    EVALUATION_CSS
    + """
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); align-items: start; }
.charts .whole { grid-column: 1 / -1; }
.charts .card:not(.whole) .chart { max-width: 660px; margin: 0 auto; }
.charts .card:not(.whole) .chart.small { max-width: 400px; }
.said { margin: 0 0 14px; max-width: 80ch; }
.matrix + .hint { margin-bottom: 14px; max-width: 110ch; }
h3.above { font-size: 15px; font-weight: 620; margin: 20px 0 0; }
.all { margin-top: 12px; } .all summary { cursor: pointer; font-size: 15px; font-weight: 620; }
.halo { paint-order: stroke; }
.matrix table { font-size: 14px; }
.matrix th, .matrix td { padding: 7px 10px; }
.matrix td small, .matrix tbody th small { display: block; font-size: 12px; line-height: 1.3; }
.words td { white-space: normal; text-align: left; min-width: 9em; }
.words thead th { text-align: left; }
.words td:last-child { min-width: 16em; }
.words th { white-space: normal; }
"""
)
"""What the page needs beside the style sheet that all pages share."""


def write_speed(suite: Suite, path: str | Path) -> Path:
    """Write the page about a run of the suite; a reader sees the old file or the whole new one.

    Raises:
        PruneError: the folder is missing, or the file cannot be written.
    """
    path = Path(path)
    write_atomically(path, speed_page(suite))
    return path


def speed_page(suite: Suite) -> str:
    """The page as one string of HTML: nothing is fetched, no script runs, and its policy says so.

    Args:
        suite: what the speed suite saves. Sections that were not measured are named as such.
    """
    sections = (
        ("Time to first token", _first_token, "prefill"),
        ("Ratios and limits", _ratios, "prefill"),
        ("Step by step", _steps, "steps"),
        ("Choosing alone", _kernel, "kernel"),
        ("Where pruning pays", _break_even, "break_even"),
        ("Methods at equal budgets", _rivals, "rivals"),
        ("Memory", _memory, "memory"),
        ("Preprocessing", lambda s: _table(preprocess_table(s)), "preprocess"),
    )
    body = [f'<p class="lead words">{escape(headline(suite))}</p>\n{_cards(suite)}']
    for title, make, section in sections:
        told = make(suite) if rows(suite, section) else ""
        told = told or '<p class="hint">Not measured in this run.</p>\n'
        body.append(f"<h2>{escape(title)}</h2>\n{told}")
    for table in (predictions_table(suite), trouble_table(suite)):
        if table:
            body.append(f"<h2>{escape(table.title)}</h2>\n{_table(table, 'words')}")
    facts = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts_of(suite).items()
    )
    title = f"Speed on {machine(suite)}"
    return document(escape(title), SPEED_CSS, "".join(body) + f"<footer><dl>{facts}</dl></footer>\n")


def _table(table: Table | None, name: str = "") -> str:
    if table is None:
        return ""
    drawn = table_html(table)
    return (
        drawn.replace('class="card scroll matrix"', f'class="card scroll matrix {name}"') if name else drawn
    )


def _card(title: str, draw: Callable[[int], str], width: int = _HALF) -> str:
    """A chart under its title, drawn once for wide pages and once for phones."""
    small = draw(_SMALL).replace('class="chart"', 'class="chart small"', 1)
    whole_line = " whole" if width > 700 else ""
    head = f"<h3>{escape(title)}</h3>" if title else ""
    return f'<div class="card{whole_line}">{head}{draw(width)}{small}</div>'


def _charts(cards: list[str]) -> str:
    return f'<div class="charts">{"".join(cards)}</div>\n' if cards else ""


def _cards(suite: Suite) -> str:
    """A few large numbers of the row that stands for all."""
    best = main_row(suite)
    if best is None:
        return ""
    shown = [
        ("Prefill", times_of(best.get("prefill_ratio")), "as fast"),
        ("Time to first token", times_of(best.get("ttft_ratio")), "as fast"),
        ("Choosing", _ms(best, "select_ms"), ""),
        ("Of the FLOPs ratio", share(best.get("share_of_limit")), ""),
    ]
    cells = [
        f'<div class="card"><p class="label">{escape(name)}</p><p class="big">{escape(told)} '
        f"<small>{escape(small)}</small></p></div>"
        for name, told, small in shown
        if told and told != "–"
    ]
    odd = " odd" if len(cells) % 2 else ""
    return f'<div class="figures{odd}">{"".join(cells)}</div>\n' if cells else ""


def _ms(row: Row, key: str) -> str:
    found = median(row, key)
    return "" if found is None else milliseconds(found)


def picture(suite: Suite, *, width: int = 1000) -> str | None:
    """The parts of the time to first token of the row that stands for all, as a file of its own, on white.

    None where no such row was measured. ``width``: of the view box, in pixels.
    """
    best = main_row(suite)
    group = next((g for name, g in prefill_groups(suite) if best and name == case_of(best)), [])
    return _first_chart(case_of(best), group, width, "#ffffff") if best and _first_bars(group) else None


def _first_token(suite: Suite) -> str:
    cards = [
        _card(name, partial(_first_chart, name, group))
        for name, group in prefill_groups(suite)
        if _first_bars(group)
    ]
    hint = (
        '<p class="hint">At the end of each bar: the time to first token, measured as a whole. Where '
        "the projector was not timed, the tower holds it.</p>\n"
    )
    tables = "".join(
        f'<details class="all"><summary>All figures: {escape(t.title)}</summary>\n{_table(t)}</details>\n'
        for t in prefill_tables(suite)
    )
    return (_charts(cards) + hint if cards else "") + tables


def _first_chart(name: str, group: list[Row], width: int, background: str | None = None) -> str:
    return bars_svg(
        _first_bars(group),
        title=f"Time to first token: {name}",
        description="Parts of the time to first token, by tokens kept.",
        legend=PARTS,
        width=width,
        background=background,
    )


def _first_bars(group: list[Row]) -> list[Bar]:
    bars: list[Bar] = []
    for mode in dict.fromkeys(mode_of(row) for row in group):
        found = [
            Bar(f"{percent(row['retention'])} kept", parts, told=_ms(row, "ttft_ms"))
            for row in group
            if mode_of(row) == mode and (parts := _parts(row))
        ]
        bars += [Bar(mode.capitalize()), *found] if found else []
    return bars


def _parts(row: Row) -> list[tuple[int, float]]:
    """Tower, projector, choosing, prefill, and what the whole takes beyond them."""
    keys = ("vision_ms", "projector_ms", "select_ms", "prefill_ms")
    parts = [median(row, key) for key in keys]
    out = [(i, value) for i, value in enumerate(parts) if value]
    rest = (median(row, "ttft_ms") or 0.0) - sum(value for _, value in out)
    return [*out, (4, rest)] if out and rest > 0 else out


def _ratios(suite: Suite) -> str:
    cards, bars = [], []
    for name, group in prefill_groups(suite):
        lines = []
        limit = {r["retention"]: n for r in group if (n := number(r.get("flops_ratio")))}
        lines.append(Series("FLOPs allow", [Point(x, y) for x, y in limit.items()], 5))
        for i, (key, what) in enumerate((("prefill_ratio", "prefill"), ("ttft_ratio", "TTFT"))):
            for j, mode in enumerate(dict.fromkeys(mode_of(row) for row in group)):
                found = [
                    Point(r["retention"], n)
                    for r in group
                    if mode_of(r) == mode and (n := number(r.get(key)))
                ]
                if any(p.x < 1 for p in found):
                    lines.append(Series(f"{what}, {mode}", found, (2 * j + i) % 5))
        if any(p.x < 1 for line in lines for p in line.points):
            cards.append(
                _card(
                    name,
                    lambda width, lines=lines, name=name: ratio_svg(  # type: ignore[misc]
                        lines, title=f"Ratios: {name}", width=width, height=360 if width > 400 else 320
                    ),
                )
            )
        shares = [
            Bar(f"{percent(r['retention'])} kept, {mode_of(r)}", [(2 if n >= NEAR else 1, n)])
            for r in group
            if r["retention"] < 1 and (n := number(r.get("share_of_limit")))
        ]
        bars += [Bar(name), *shares] if shares else []
    if bars:
        cards.append(
            _card(
                "Share of the limit that the prefill reaches",
                lambda width: bars_svg(
                    bars, title="Share of the limit", words=share, highest=1.0,
                    mark=Mark(percent(NEAR), NEAR), label="Prefill ratio by FLOPs ratio", width=width,
                ),
                _WIDE,
            )
        )  # fmt: skip
    hint = (
        '<p class="hint">Unpruned by pruned, within a mode, in the same run. The limit: FLOPs of the '
        "unpruned prefill by those of the pruned one, attention counted causally. Above 100%, "
        "a long prompt costs the machine more than its FLOPs, in memory traffic.</p>\n"
    )
    return _charts(cards) + hint if cards else ""


def _steps(suite: Suite) -> str:
    bars = []
    for key, row in rows(suite, "steps"):
        parts = at(row, "parts_ms")
        found = [
            (i, value)
            for i, names in enumerate(_STEP_KEYS)
            if (value := next((v for n in names if (v := median(parts, n))), None))
        ]
        whole_time = median(row, "ttft_ms")
        found = found or ([(3, whole_time)] if whole_time else [])
        if found:
            gain = number(row.get("gain"))
            told = _ms(row, "ttft_ms") + ("" if gain is None else f" ({times_of(gain)})")
            bars.append(Bar(step_name(key, row), found, told=told.strip()))
    case = next((case_of(row) for _, row in rows(suite, "steps")), "")
    chart = _card(
        case,
        lambda width: bars_svg(
            bars, title="Time to first token, step by step", legend=STEP_PARTS, width=width,
            description="Each bar adds a change to the one above.",
        ),
        _WIDE,
    )  # fmt: skip
    hint = '<p class="hint">Where choosing has no part of its own, the prefill holds it.</p>\n'
    return (_charts([chart]) + hint if bars else "") + _table(steps_table(suite))


def _kernel(suite: Suite) -> str:
    bars: list[Bar] = []
    for key, row in rows(suite, "kernel"):
        found = [Bar(way, [(0, n)]) for way in at(row, "ms") if (n := median(at(row, "ms"), way))]
        floor = median(at(row, "floor_ms"), "total")
        found += [Bar("floor", [(5, floor)], faint=True)] if floor else []
        bars += [Bar(kernel_name(key, row)), *found] if found else []
    chart = _card(
        "Views x tokens x channels, picks",
        lambda width: bars_svg(bars, title="Choosing alone", log=True, width=width, label="Logarithmic"),
        _WIDE,
    )
    sweep = sweep_table(suite)
    return (
        _charts([chart] if bars else [])
        + _table(kernel_table(suite))
        + (f'<h3 class="above">{escape(sweep.title)}</h3>\n{_table(sweep)}' if sweep else "")
    )


def _break_even(suite: Suite) -> str:
    groups: dict[str, list[Series]] = {}
    for _, row in rows(suite, "break_even"):
        shape = title_of(row.get("shape"))
        name = break_even_name(row).removeprefix(shape).strip(", ") or "measured"
        if points := [Point(x, y) for x, y in points_of(row)]:
            groups.setdefault(shape, []).append(Series(name, points))
    cards = []
    for shape, lines in groups.items():
        highest = max([1.1, *(p.y * 1.05 for one in lines for p in one.points)])
        shares = spaced({p.x for one in lines for p in one.points})
        cards.append(
            _card(
                shape,
                lambda width, lines=lines, shares=shares, highest=highest, shape=shape: line_chart(  # type: ignore[misc]
                    lines, x_label="Visual tokens kept", y_label="Of the unpruned prefill", x_ticks=shares,
                    y_range=(0.0, highest), references=[Reference("unpruned", 1.0)], width=width,
                    height=320, title=f"Choosing and prefill against unpruned: {shape}",
                ),
            )
        )  # fmt: skip
    said = break_even_words(suite)
    return f'<p class="said">{escape(said)}</p>\n{_charts(cards)}' + _table(break_even_table(suite))


def _rivals(suite: Suite) -> str:
    return _table(rivals_table(suite))


def _memory(suite: Suite) -> str:
    groups: dict[str, list[Bar]] = {}
    for _, row in rows(suite, "memory"):
        bytes_, kept = number(row.get("peak_bytes")), number(row.get("retention"))
        if "largest_batch" in row or number(row.get("samples")) is None:
            continue
        how = "unpruned" if kept in (None, 1.0) else f"{percent(kept)} kept"
        name = f"{whole(row['samples'])} {'sample' if row['samples'] == 1 else 'samples'}, {how}"
        pruned = int(how != "unpruned")
        if row.get("ok") is False or bytes_ is None:
            groups.setdefault(title_of(row.get("shape")), []).append(
                Bar(name, [(pruned, 0.0)], told="does not fit")
            )
        else:
            groups.setdefault(title_of(row.get("shape")), []).append(Bar(name, [(pruned, bytes_ / 2**30)]))
    cards = [
        _card(
            shape,
            lambda width, bars=bars, shape=shape: bars_svg(  # type: ignore[misc]
                bars,
                title=f"Peak memory: {shape}",
                label="Peak, GiB",
                words=lambda v: f"{v:.3g}",
                width=width,
            ),
        )
        for shape, bars in groups.items()
    ]
    return _charts(cards) + _table(memory_table(suite))
