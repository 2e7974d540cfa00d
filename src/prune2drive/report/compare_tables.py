"""A comparison of methods at equal budgets, as tables and in words.

A summary is what a comparison saves: facts, and per contender where it chooses, how many visual tokens a
decoder layer sees on average, the accuracy with its interval, the paired differences to unpruned and to
random selection, and what it costs. What it lacks is left out or shown as a dash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .chart import percent
from .evaluation_tables import (
    CONTROLS,
    NONE,
    Cell,
    Summary,
    Table,
    difference,
    interval_text,
    number,
    overall,
    points,
    share_of,
    whole,
)

Contender = Mapping[str, Any]

PLACES = {
    "before": "before the language model",
    "inside": "inside the language model",
    "both": "before and inside",
    "control": "control",
}
"""Where a contender chooses, by the names of a summary, in the order of legends."""
RANDOM = ("random", "random-layer")
"""Methods that are drawn as controls wherever they choose."""
BUDGETS = {
    "average": "{share} of the visual tokens per layer, on average",
    "kept": "{share} of the visual tokens kept where the method chooses",
}
"""What a retention is a share of, by the names of a summary, in the order of tables."""
BETTER, WORSE = "▲", "▼"
_MIB = 2**20


@dataclass(frozen=True)
class Group:
    """Contenders of one budget, the most accurate first."""

    budget: str
    retention: float
    contenders: Sequence[Contender]

    @property
    def title(self) -> str:
        words = BUDGETS.get(self.budget, f"{{share}}, {self.budget}")
        return words.replace("{share}", percent(self.retention))


def contenders_of(summary: Summary) -> list[Contender]:
    """Everything that was compared, the bounds among it."""
    return list(summary.get("contenders") or ())


def bounds_of(summary: Summary) -> dict[str, Contender]:
    """The contenders that are a bound and no way of pruning, by their names."""
    found = {c.get("method"): c for c in contenders_of(summary) if number(c.get("retention")) is None}
    return {name: found[name] for name in CONTROLS if name in found}


def pruned_of(summary: Summary) -> list[Contender]:
    """The contenders with a budget, in the order of the summary."""
    return [c for c in contenders_of(summary) if number(c.get("retention")) is not None]


def groups_of(summary: Summary) -> list[Group]:
    """Contenders by budget: average ones first, most tokens first; each the most accurate first."""
    found: dict[tuple[str, float], list[Contender]] = {}
    for one in pruned_of(summary):
        found.setdefault((str(one.get("budget")), round(one["retention"], 6)), []).append(one)

    def order(key: tuple[str, float]) -> tuple[bool, str, float]:
        return key[0] != "average", key[0], -key[1]

    return [Group(*key, ranked(found[key])) for key in sorted(found, key=order)]


def ranked(contenders: Sequence[Contender]) -> list[Contender]:
    """The most accurate first; last those without an accuracy."""
    reached = [(share_of(overall(c)), c) for c in contenders]
    return [c for value, c in sorted(reached, key=lambda pair: -1.0 if pair[0] is None else -pair[0])]


def name_of(contender: Contender) -> str:
    """The name that stands for a contender everywhere."""
    return str(contender.get("name") or contender.get("method") or NONE)


def place_of(contender: Contender) -> str:
    """Which of `PLACES` a contender is drawn as."""
    stage = str(contender.get("stage"))
    return stage if stage in PLACES and contender.get("method") not in RANDOM else "control"


def tokens_of(contender: Contender) -> float | None:
    """Visual tokens that a decoder layer sees on average."""
    return number(contender.get("layer_averaged"))


def headline(summary: Summary) -> str:
    """What was compared and which front came out, in two sentences."""
    pruned = pruned_of(summary)
    if not pruned:
        return "Nothing was compared."
    methods = len({str(c.get("method")) for c in pruned})
    said = f"{methods} {'method' if methods == 1 else 'methods'} at {len(groups_of(summary))} "
    said += "budget" if len(groups_of(summary)) == 1 else "budgets"
    if (asked := whole(summary.get("questions"))) != NONE:
        said += f", {asked} questions each"
        if (scenes := whole(summary.get("scenes"))) != NONE:
            said += f" about {scenes} scenes"
    front = [c for c in pruned if c.get("pareto")]
    if front:
        said += f". {len(front)} of {len(pruned)} contenders "
        said += "is" if len(front) == 1 else "are"
        said += " on the front: no other is as accurate with as few tokens"
    return said + "."


def overall_table(summary: Summary) -> Table | None:
    """Everything about every contender, by budget; the columns of costs only where something was measured."""
    columns = [(head, of) for head, of in _COSTS if any(of(c).text != NONE for c in contenders_of(summary))]

    def row(one: Contender) -> list[Cell]:
        title = str(one.get("title") or "")
        place = str(one.get("stage") or NONE)
        accuracy = overall(one)
        return [
            Cell(
                name_of(one),
                "" if title.casefold() == name_of(one).casefold() else title,
                strong=bool(one.get("pareto")),
            ),
            Cell(place, "reads the question" if one.get("reads_question") else ""),
            Cell(_tokens(tokens_of(one))),
            Cell(points(share_of(accuracy)), interval_text(accuracy)),
            change(difference(one, "unpruned")),
            change(difference(one, "random")),
            change(difference(one, "tfps")),
            *(of(one) for _, of in columns),
        ]

    bounds, groups = bounds_of(summary), groups_of(summary)
    rows: list[list[Cell]] = [[Cell("Bounds")], *(row(b) for b in bounds.values())] if bounds else []
    for group in groups:
        rows += [[Cell(_sentence(group.title))], *(row(c) for c in group.contenders)]
    if not rows:
        return None
    rivals = [f"Against {name}" for name in ("unpruned", "random", "T-FPS")]
    titles = ["Contender", "Chooses", "Tokens per layer", "Accuracy, %", *rivals]
    head = [*(Cell(t) for t in titles), *(Cell(t) for t, _ in columns)]
    note = (
        "Sorted by accuracy within each budget. Tokens per layer: visual tokens that a layer of the language "
        "model sees, averaged over layers and scenes. Below the figures: 95% intervals over scenes. "
        "Differences are in points and paired, question by question; both rivals choose at the same budget: "
        "before the language model for an average, in the same layer for a share kept. "
        "Bold differences: the interval excludes 0. Bold names: on the front."
    )
    if columns:
        note += (
            " Costs are medians for one prompt at a time; prefill includes choosing, FLOPs are those of the "
            "language model without choosing, and × is the ratio to the unpruned model in the same run."
        )
    return Table("Every contender", head, rows, note)


def type_table(summary: Summary) -> Table | None:
    """Accuracy by type of question: unpruned first, then every budget with the best of each type marked."""
    everyone = [*bounds_of(summary).values(), *pruned_of(summary)]
    types = list(dict.fromkeys(name for c in everyone for name in _types(c)))
    if not types:
        return None
    counts = {
        name: max((n for c in everyone if (n := share_of(_types(c).get(name), "n"))), default=None)
        for name in types
    }

    def row(one: Contender, best: Mapping[str, float]) -> list[Cell]:
        cells = [Cell(name_of(one))]
        against = ((one.get("difference") or {}).get("random") or {}).get("type") or {}
        for name in types:
            reached = share_of(_types(one).get(name))
            top = reached is not None and reached >= best.get(name, 2.0) - 1e-12
            cells.append(Cell(points(reached), sign(against.get(name)), strong=top))
        return cells

    bounds = bounds_of(summary).values()
    rows: list[list[Cell]] = [[Cell("Bounds")], *(row(b, {}) for b in bounds)] if bounds else []
    for group in groups_of(summary):
        best: dict[str, float] = {}
        for one in group.contenders:
            for name in types:
                best[name] = max(best.get(name, 0.0), share_of(_types(one).get(name)) or 0.0)
        rows += [[Cell(_sentence(group.title))], *(row(c, best) for c in group.contenders)]
    head = [
        Cell("Contender"),
        *(Cell(str(n), "" if counts[n] is None else f"{whole(counts[n])} asked") for n in types),
    ]
    note = (
        f"Bold: the best of a type at that budget. {BETTER} better than random and {WORSE} worse, where the "
        "95% interval of the paired difference excludes 0."
    )
    return Table("Accuracy by type of question, %", head, rows, note)


def impossible_table(summary: Summary) -> Table | None:
    """What could not be compared, and why."""
    found = [row for row in summary.get("impossible") or () if isinstance(row, Mapping)]
    rows = [[Cell(name_of(row)), Cell(str(row.get("reason") or NONE))] for row in found]
    return Table("Not possible", [Cell("Contender"), Cell("Why")], rows) if rows else None


def sign(estimate: Any) -> str:
    """Whether a difference's interval lies above or below 0; empty where it holds 0 or lacks."""
    low, high = share_of(estimate, "low"), share_of(estimate, "high")
    if low is None or high is None or low <= 0 <= high:
        return ""
    return BETTER if low > 0 else WORSE


def change(estimate: Any) -> Cell:
    """A difference in points above its interval; bold where the interval excludes 0."""
    return Cell(points(share_of(estimate), "+"), interval_text(estimate, "+"), strong=bool(sign(estimate)))


def _types(contender: Contender) -> Mapping[str, Any]:
    return (contender.get("accuracy") or {}).get("type") or {}


def _cost(contender: Contender, key: str) -> float | None:
    return number((contender.get("costs") or {}).get(key))


def _tokens(count: float | None) -> str:
    return NONE if count is None else f"{count:,.1f}" if 0 < count < 100 else f"{count:,.0f}"


def _ms(value: float | None) -> str:
    return NONE if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _times(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}×"


def _mib(value: float | None) -> str:
    return NONE if value is None else f"{value / _MIB:,.1f}"


def _prefill(contender: Contender) -> Cell:
    ratio = _cost(contender, "prefill_ratio")
    return Cell(_ms(_cost(contender, "prefill_ms")), "" if ratio is None else _times(ratio))


_COSTS = (
    ("FLOPs", lambda c: Cell(_times(_cost(c, "flops_ratio")))),
    ("Choosing, ms", lambda c: Cell(_ms(_cost(c, "choose_ms")))),
    ("Prefill, ms", _prefill),
    ("KV cache, MiB", lambda c: Cell(_mib(_cost(c, "kv_bytes")))),
    ("Memory, MiB", lambda c: Cell(_mib(_cost(c, "memory_bytes")))),
)
"""Columns of costs: the head, and a contender's cell."""


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]
