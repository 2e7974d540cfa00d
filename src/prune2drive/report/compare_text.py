"""A comparison of methods at equal budgets as tables for a README and for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .chart import percent
from .compare_tables import (
    Contender,
    Group,
    bounds_of,
    change,
    groups_of,
    name_of,
    tokens_of,
    type_table,
)
from .evaluation import markdown_text, print_tables, tables_markdown
from .evaluation_tables import MEANING, NONE, Cell, Summary, Table, difference, number, overall, with_half

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 120
"""Columns of a terminal that has room for intervals."""

Column = tuple[str, Callable[[Contender], Cell]]


def markdown_tables(summary: Summary) -> str:
    """Accuracy by budget, every budget in full, accuracy by type, and what was not possible, as markdown."""
    found = (accuracy_table(summary), *budget_tables(summary), type_table(summary))
    out = [tables_markdown(table for table in found if table is not None)]
    if reasons := list(summary.get("impossible") or ()):
        lines = [f"- `{row['name']}`: {markdown_text(str(row['reason']))}" for row in reasons]
        out.append("**Not possible**\n\n" + "\n".join(lines) + "\n")
    return "\n".join(out)


def print_comparison(console: Console, summary: Summary) -> None:
    """Print accuracy by budget, and how much was not possible."""
    if (table := accuracy_table(summary, halves=console.width >= WIDE)) is not None:
        print_tables(console, [table])
    if lost := len(summary.get("impossible") or ()):
        console.print(
            f"not possible: {lost} {'row' if lost == 1 else 'rows'}, for reasons in the files below"
        )


def accuracy_table(summary: Summary, halves: bool = True) -> Table | None:
    """Methods x budget: accuracy with half its interval; the best method of the first column first.

    ``halves``: whether there is room for the intervals.
    """

    def shown(one: Contender) -> Cell:
        value = overall(one).get("value")
        return with_half(overall(one)) if halves else Cell(NONE if value is None else f"{100 * value:.1f}")

    groups = groups_of(summary)
    if not groups:
        return None
    rows = [
        [_bound(name, one, halves), *[shown(one)] * len(groups)] for name, one in bounds_of(summary).items()
    ]
    found: dict[str, dict[int, Contender]] = {}
    for at, group in enumerate(groups):
        for one in group.contenders:
            found.setdefault(_method(one), {})[at] = one
    for name, by_group in found.items():  # in the order of the first group that has them, best first
        cells = [by_group.get(at) for at in range(len(groups))]
        rows.append([Cell(name), *(shown(c) if c else Cell(NONE) for c in cells)])
    short = {} if halves else {"on average": "avg"}
    head = [
        Cell("Method"),
        *(Cell(percent(g.retention), short.get(_budget(g), _budget(g))) for g in groups),
    ]
    half = f"± is the longer half of the 95% interval over {summary.get('scenes')} scenes. " if halves else ""
    note = (
        f"{half}On average: the "
        "share of the visual tokens that a layer of the language model sees. Kept: the share that a method "
        "leaves in its layer. A dash: not possible, or no such budget for that method."
    )
    return Table("Accuracy, %", head, rows, note)


def budget_tables(summary: Summary) -> Iterator[Table]:
    """Every budget in full: accuracy, paired difference to random, tokens, costs; the last has the note."""
    unpruned = bounds_of(summary).get("unpruned")
    costs = [column for column in _COSTS if any(column[1](c).text != NONE for c in _everyone(summary))]
    columns: list[Column] = [
        ("Chooses", lambda c: Cell(str(c.get("stage") or NONE))),
        ("Accuracy, %", lambda c: with_half(overall(c))),
        ("Against random", lambda c: _against(c, "random")),
        ("Against T-FPS", lambda c: _against(c, "tfps")),
        ("Tokens per layer", lambda c: _figure(tokens_of(c), ".1f")),
        *costs,
    ]
    groups = groups_of(summary)
    for group in groups:
        rows = [
            [Cell(_method(c), strong=bool(c.get("pareto"))), *(of(c) for _, of in columns)]
            for c in group.contenders
        ]
        if unpruned is not None:
            rows.append([Cell("unpruned"), *(of(unpruned) for _, of in columns)])
        yield Table(
            group.title,
            [Cell(t) for t in ("Method", *(t for t, _ in columns))],
            rows,
            _note(costs) if group is groups[-1] else "",
        )


def _note(costs: list[Column]) -> str:
    note = (
        "Against random, against T-FPS: paired difference in points with its 95% interval; both keep as many "
        "tokens, for a share kept in the same layer. Bold differences: the interval excludes 0. Bold names: "
        "no other contender, at any budget, is as accurate with as few tokens."
    )
    if costs:
        note += (
            " Costs: medians for one prompt at a time; × is the ratio to the unpruned model in the same "
            "run, prefill including choosing."
        )
    return note


def _against(one: Contender, rival: str) -> Cell:
    found = change(difference(one, rival))
    return Cell(found.text, f"[{found.small}]" if found.small else "", strong=found.strong)


def _everyone(summary: Summary) -> list[Contender]:
    return [one for group in groups_of(summary) for one in group.contenders]


def _bound(name: str, one: Contender, told: bool = True) -> Cell:
    return Cell(name_of(one), MEANING.get(name, "").strip() if told else "")


def _method(one: Contender) -> str:
    """A contender's name without its budget."""
    policy = one.get("positions")
    title = str(one.get("title") or one.get("method"))
    return title if policy in (None, "keep") else f"{title}, {policy}"


def _budget(group: Group) -> str:
    return {"average": "on average", "kept": "kept"}.get(group.budget, group.budget)


def _figure(value: float | None, digits: str, unit: str = "") -> Cell:
    return Cell(NONE if value is None else f"{value:,{digits}}{unit}")


def _cost(one: Contender, key: str) -> float | None:
    costs: Any = one.get("costs")
    return number(costs.get(key)) if isinstance(costs, Mapping) else None


_COSTS: list[Column] = [
    ("FLOPs", lambda c: _figure(_cost(c, "flops_ratio"), ".2f", "×")),
    ("Choosing, ms", lambda c: _figure(_cost(c, "choose_ms"), ".1f")),
    ("Prefill", lambda c: _figure(_cost(c, "prefill_ratio"), ".2f", "×")),
]
