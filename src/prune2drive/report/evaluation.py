"""The result of an evaluation, accuracy against tokens kept: as a page, on the terminal, as markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import PruneError
from ..files import write_atomically
from .chart import DARK_COLOURS, Point, Reference, Series, escape, line_chart, percent, tick_step
from .evaluation_tables import (
    CONTROLS,
    NONE,
    PARTS,
    Cell,
    Summary,
    Table,
    accuracy_table,
    control,
    every_setting,
    headline,
    interval_text,
    large_table,
    main_setting,
    methods,
    number,
    overall,
    part_table,
    place,
    places,
    share_of,
    shown_table,
    table_html,
    whole,
)
from .style import document

if TYPE_CHECKING:
    from rich.console import Console

_DARK = "".join(f" .chart .s{i} {{ color: {colour}; }}\n" for i, colour in enumerate(DARK_COLOURS))
EVALUATION_CSS = (
    """
.lead { font-size: 20px; line-height: 1.45; margin-top: 18px; max-width: 62ch; text-wrap: pretty; }
.lead + .figures { margin-top: 22px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr));
  gap: var(--gap); }
.charts .card { padding: 14px 16px 12px; min-width: 0; }
.charts h3 { font-size: 15px; font-weight: 620; margin-bottom: 8px; }
.chart { display: block; width: 100%; height: auto; color: var(--ink); }
.chart .soft { color: var(--soft); } .chart .grid { color: var(--line); }
.chart .halo { stroke: var(--card); }
.chart.small { display: none; }
.matrix { margin-top: var(--gap); }
.matrix thead th { white-space: normal; vertical-align: bottom; }
.matrix td, .matrix thead th:not(:first-child) { padding-left: 8px; }
.matrix th:first-child { position: sticky; left: 0; background: var(--card); }
.matrix small { color: var(--soft); font-size: 13px; font-weight: 400; }
.matrix thead small { display: block; white-space: nowrap; }
.matrix th.group { padding-top: 18px; font-size: 13px; color: var(--soft); text-align: left; }
.matrix b { font-weight: 680; }
.d1 { background: rgba(213, 94, 0, .07); } .d2 { background: rgba(213, 94, 0, .15); }
.d3 { background: rgba(213, 94, 0, .26); } .d4 { background: rgba(213, 94, 0, .40); }
@media (max-width: 640px) {
  .lead { font-size: 17px; } .charts .card { padding: 10px 8px 8px; }
  .chart { display: none; } .chart.small { display: block; }
  .matrix th, .matrix td { padding: 7px 8px; } .matrix td small { display: block; }
  .matrix thead small { white-space: normal; }
  .matrix th:first-child { white-space: nowrap; max-width: 42vw; overflow: hidden; text-overflow: ellipsis; }
}
@media (prefers-color-scheme: dark) {
"""
    + _DARK
    + "}\n"
)
"""What `evaluation_section` needs beside the style sheet of the page."""


def write_evaluation(summary: Summary, path: str | Path) -> Path:
    """Write the page about an evaluation; a reader sees the old file or the whole new one.

    Raises:
        PruneError: the folder is missing, or the file cannot be written.
    """
    path = Path(path)
    write_atomically(path, render(summary))
    return path


def render(summary: Summary) -> str:
    """The page as one string of HTML: nothing is fetched, no script runs, and its policy says so."""
    title = f"Accuracy after pruning: {summary.get('benchmark', 'evaluation')}"
    parts = [part_table(summary, part) for part in PARTS]
    tables = [t for t in (large_table(summary), shown_table(summary), every_setting(summary), *parts) if t]
    facts = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in _facts(summary).items()
    )
    body = (
        f"{_lead(summary)}{_cards(summary)}{_accuracy(summary)}"
        + "".join(f"<h2>{escape(t.title)}</h2>\n{table_html(t)}" for t in tables)
        + (f"<footer><dl>{facts}</dl></footer>\n" if facts else "")
    )
    return document(escape(title), EVALUATION_CSS, body)


def evaluation_section(summary: Summary, lead: str | None = None) -> str:
    """Charts and the main table as HTML, for another page with `EVALUATION_CSS` in its styles.

    ``lead``: the words above them; the result in two sentences by default.
    """
    return _lead(summary, lead) + _accuracy(summary)


def _lead(summary: Summary, lead: str | None = None) -> str:
    return f'<p class="lead words">{escape(headline(summary) if lead is None else lead)}</p>\n'


def _accuracy(summary: Summary) -> str:
    charts = []
    for where in places(summary):
        wide = 620 if len(places(summary)) > 1 else 1100
        drawn = _chart(summary, where, width=wide, height=440)
        small = _chart(summary, where, width=350, height=350)
        small = small.replace('class="chart"', 'class="chart small"', 1)
        charts.append(f'<div class="card"><h3>{escape(place(where).capitalize())}</h3>{drawn}{small}</div>')
    shown = f'<div class="charts">{"".join(charts)}</div>\n' if charts else ""
    table = accuracy_table(summary)
    return f"<h2>{escape(table.title)}</h2>\n{shown}{table_html(table)}" if charts else ""


def chart_svg(summary: Summary, where: str = "before", *, width: int = 860, height: int = 460) -> str:
    """The chart of one place of pruning as a file of its own, on white.

    Raises:
        PruneError: nothing was evaluated with pruning there.
    """
    if where not in places(summary):
        there = ", ".join(map(repr, places(summary))) or "no such setting at all"
        raise PruneError(f"the summary has no setting with pruning at {where!r}; it has: {there}.")
    return _chart(summary, where, width=width, height=height, background="#ffffff")


def markdown_tables(summary: Summary) -> str:
    """Accuracy, accuracy by type and things lost as GitHub markdown."""
    return tables_markdown(_main_tables(summary))


def tables_markdown(tables: Iterable[Table]) -> str:
    """Tables as GitHub markdown, each under its title."""
    out = []
    for table in tables:
        width = len(table.head)
        rows = [[_markdown_cell(cell) for cell in row] for row in [table.head, *table.rows]]
        rows = [[f"*{row[0]}*", *[""] * (width - 1)] if len(row) == 1 < width else row for row in rows]
        rows.insert(1, [":--", *["--:"] * (width - 1)])
        out.append(f"**{markdown_text(table.title)}**")
        out.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
        out += [markdown_text(table.note)] if table.note else []
    return "\n\n".join(out) + "\n"


def print_evaluation(console: Console, summary: Summary) -> None:
    """Print accuracy, accuracy by type and things lost as tables."""
    print_tables(console, _main_tables(summary, asked=False))  # with what was asked they pass 80 columns


def print_tables(console: Console, tables: Iterable[Table]) -> None:
    """Print tables, each under its title and above its note."""
    from rich import box
    from rich.table import Table as Drawn
    from rich.text import Text

    def text(words: str, style: str = "") -> Text:
        if console.options.ascii_only:
            words = words.replace("±", "+/-").replace("−", "-").replace(NONE, "-").replace("×", "x")
        return Text(words, style)

    for table in tables:
        drawn = Drawn(
            box=box.SIMPLE_HEAD, title=text(table.title, "bold"), title_justify="left", collapse_padding=True
        )
        for i, cell in enumerate(table.head):
            words = "\n".join([cell.text, *filter(None, cell.small.split(", "))])
            # Where it is narrow, heads and headings fold, and names of rows do not.
            whole_names = i == 0 and all(len(row) > 1 for row in table.rows)
            justify: Literal["left", "right"] = "right" if i else "left"
            drawn.add_column(text(words), justify=justify, overflow="fold", no_wrap=whole_names)
        for row in table.rows:
            style = "dim" if len(row) == 1 < len(table.head) else ""
            drawn.add_row(*(text(f"{c.text} {c.small}".strip(), "bold" if c.strong else style) for c in row))
        console.print(drawn)
        if table.note:
            console.print(text(table.note, "dim"))


def _main_tables(summary: Summary, asked: bool = True) -> Iterator[Table]:
    lost = large_table(summary), shown_table(summary)
    for table in (accuracy_table(summary), part_table(summary, "type", asked), *lost):
        if table is not None and table.rows:
            yield table


def _markdown_cell(cell: Cell) -> str:
    words = markdown_text(cell.text)
    return f"{f'**{words}**' if cell.strong else words} {markdown_text(cell.small)}".strip()


def markdown_text(text: str) -> str:
    """Text for a cell: nothing in it is taken for markdown or HTML."""
    text = re.sub(r"([\\`*\[\]|~])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _chart(summary: Summary, where: str, *, width: int, height: int, background: str | None = None) -> str:
    looks: dict[str, int] = {}  # one look per method, the same in every chart
    for name in (name for at in places(summary) for name, _ in methods(summary, at)):
        looks.setdefault(name, len(looks))
    lines = [
        Series(name, [p for s in settings if (p := _point(s))], looks[name])
        for name, settings in methods(summary, where)
    ]
    bounds = [(name, control(summary, name)) for name in CONTROLS]
    values = [(name, share_of(overall(s))) for name, s in bounds if s]
    unpruned = control(summary, "unpruned")
    shares = {p.x for line in lines for p in line.points} | {1.0}
    if len(shares) > 7:
        shares = {1.0, 0.5, 0.25, 0.1, 0.05, min(shares)}
    title = f"Accuracy against the share of visual tokens kept, pruned {place(where)}"
    return line_chart(
        lines,
        x_label="Visual tokens kept",
        y_label="Questions answered correctly",
        x_ticks=sorted(shares, reverse=True),
        y_range=_y_range(summary),
        references=[Reference(name, y) for name, y in values if y is not None],
        start=_point({**unpruned, "retention": 1.0}) if unpruned else None,
        title=title,
        description=f"{headline(summary)} Whiskers are 95% intervals. The numbers are in the tables.",
        width=width,
        height=height,
        background=background,
    )


def _point(setting: Summary) -> Point | None:
    estimate = overall(setting)
    y = share_of(estimate)
    low, high = share_of(estimate, "low"), share_of(estimate, "high")
    return None if y is None else Point(float(setting["retention"]), y, low, high)


def _y_range(summary: Summary) -> tuple[float, float]:
    """From one mark of the axis to another, around everything drawn; the same in every chart.

    A lower bound that would take half the height or more is left to the break of the axis.
    """
    drawn = [s for where in places(summary) for _, all_ in methods(summary, where) for s in all_]
    drawn += [s for s in [control(summary, "unpruned")] if s]
    found = (share_of(overall(s), key) for s in drawn for key in ("value", "low", "high"))
    ends = [end for end in found if end is not None]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    bounds = [share_of(overall(s)) for name in CONTROLS[1:] if (s := control(summary, name))]
    for bound in sorted((b for b in bounds if b is not None), reverse=True):
        if low - bound < high - low:
            low = min(low, bound)
    low, high = max(0.0, low - 0.01), min(1.0, high + 0.01)
    step = tick_step(low, high)
    return step * math.floor(low / step), min(1.0, step * math.ceil(high / step))


def _cards(summary: Summary) -> str:
    """The main setting and what it is to be compared with, large."""
    chosen = main_setting(summary)
    shown = []
    if chosen:
        near = [s for name, all_ in methods(summary, chosen["where"]) for s in all_ if name == "random"]
        share = percent(chosen["retention"])
        shown.append((f"{chosen['method']}, {share} of the tokens", chosen))
        same = [s for s in near if s["retention"] == chosen["retention"] and s is not chosen]
        shown += [(f"random, {share} of the tokens", s) for s in same]
    shown += [(name, s) for name in CONTROLS if (s := control(summary, name))]
    cards = []
    for name, setting in shown[:4]:
        reached, interval = share_of(overall(setting)), interval_text(overall(setting))
        cards.append(
            f'<div class="card"><p class="label words">{escape(name)}</p>'
            f'<p class="big">{NONE if reached is None else percent(reached, 1)}</p>'
            f'<p class="label">{f"95% interval {interval}" if interval else ""}</p></div>'
        )
    return f'<section class="figures{" odd" if len(cards) % 2 else ""}">{"".join(cards)}</section>\n'


def _facts(summary: Summary) -> dict[str, str]:
    names = ("benchmark", "split", "scenes", "questions", "model", "seed")
    facts = {name.capitalize(): summary[name] for name in names if summary.get(name) is not None}
    for name in ("Scenes", "Questions"):
        if name in facts and number(facts[name]) is not None:
            facts[name] = whole(facts[name])
    return facts | dict(summary.get("facts") or {})
