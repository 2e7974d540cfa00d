"""The result of an evaluation as tables of text: made once here, then written as HTML, markdown or to a
terminal.

A summary is what an evaluation saves: facts, and per setting the accuracy (overall and by part), the
paired differences, and what became of large objects. What it lacks is left out or shown as a dash.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .chart import escape, percent

Summary = Mapping[str, Any]

CONTROLS = ("unpruned", "blind", "guess")
"""Names that stand for a bound and not for a way of pruning."""
MEANING = {"blind": " (grey pictures)", "guess": " (the most frequent answer, no model)"}
NEAR = 0.1
"""The retention that the tables of parts show."""
PARTS = {"type": "type of question", "stage": "stage", "camera": "camera", "weather": "weather"}
SHADES = (2, 5, 10, 20)
"""Points below unpruned from which on a cell is tinted, and tinted more."""
NONE = "–"


@dataclass(frozen=True)
class Cell:
    """``small``: a remark beside the text. ``shade``: 0 to 4. ``strong``: stands out."""

    text: str
    small: str = ""
    shade: int = 0
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under a head; a row of one cell is a heading of the rows below it.

    ``shades``: what the tints mean, where they can be seen.
    """

    title: str
    head: list[Cell]
    rows: list[list[Cell]]
    note: str = ""
    shades: str = ""


def headline(summary: Summary) -> str:
    """The result in two sentences."""
    chosen, unpruned = main_setting(summary), control(summary, "unpruned")
    reached = None if chosen is None else share_of(overall(chosen))
    if chosen is None or reached is None:
        return "Nothing was evaluated with pruning."
    asked = whole(summary.get("questions"))
    said = f"With {percent(chosen['retention'])} of the visual tokens, {chosen['method']} answers "
    said += f"{percent(reached, 1)} of {'the' if asked == NONE else asked} questions correctly"
    full = share_of(overall(unpruned)) if unpruned else None
    if full is None:
        return said + "."
    said += f"; with all of them the model answers {percent(full, 1)}."
    part = difference(chosen, "unpruned")
    change = share_of(part)
    if change is not None and (interval := interval_text(part, "+")):
        said += f" The paired difference is {points(change, '+')} points, 95% interval {interval}."
    return said


def accuracy_table(summary: Summary) -> Table:
    """Methods x retention: accuracy with half its interval."""
    shares = _shares(summary)
    head = [Cell("Method"), *(Cell(percent(share), _tokens(summary, share)) for share in shares)]
    rows: list[list[Cell]] = []
    for where in places(summary):
        rows.append([Cell(place(where).capitalize())])
        for method, settings in methods(summary, where):
            found = {_key(s["retention"]): overall(s) for s in settings}
            rows.append([Cell(method), *(with_half(found.get(share)) for share in shares)])
    bounds = [(name, control(summary, name)) for name in CONTROLS]
    said = [
        f"{n}{MEANING.get(n, '')} {c.text} {c.small}".strip()
        for n, s in bounds
        if s
        for c in [with_half(overall(s))]
    ]
    note = f"For comparison: {', '.join(said)}. " if said else ""
    note += "± is the longer half of the 95% interval."
    return Table("Accuracy by tokens kept, %", head, rows, note)


def every_setting(summary: Summary) -> Table | None:
    """All settings with intervals and paired differences."""
    rows: list[list[Cell]] = []

    def row(name: str, setting: Summary) -> list[Cell]:
        accuracy, share = overall(setting), 1.0 if name == "unpruned" else number(setting.get("retention"))
        return [
            Cell(name),
            Cell(NONE if share is None or name in CONTROLS[1:] else percent(share)),
            Cell(whole(setting.get("tokens"))),
            Cell(points(share_of(accuracy)), _bracket(accuracy)),
            _change(None if name == "unpruned" else difference(setting, "unpruned")),
            _change(None if name == "random" else difference(setting, "random")),
        ]

    bounds = [row(name, s) for name in CONTROLS if (s := control(summary, name))]
    if bounds:
        rows += [[Cell("Bounds")], *bounds]
    for where in places(summary):
        rows.append([Cell(place(where).capitalize())])
        rows += [row(method, s) for method, settings in methods(summary, where) for s in settings]
    head = ["Method", "Share kept", "Tokens kept", "Accuracy, %", "Points against unpruned"]
    note = (
        "In brackets: 95% intervals. Differences are paired, question by question; random chooses as many "
        "tokens at the same place. Bold: the interval excludes 0."
    )
    titles = [Cell(t) for t in [*head, "Points against random"]]
    return Table("Every setting", titles, rows, note) if rows else None


def part_table(summary: Summary, part: str, asked: bool = True) -> Table | None:
    """Accuracy by one of `PARTS`: unpruned, each method at about `NEAR`, and the lower bounds.

    ``asked``: with a column of how many questions there are.
    """
    near, unpruned = _near(summary), control(summary, "unpruned")
    several = len(places(summary)) > 1
    columns = [(Cell("unpruned"), unpruned)] if unpruned else []
    for setting in near:
        small = percent(setting["retention"])
        if several and setting["where"] != "before":
            small += ", " + setting["where"].replace("layer", "layer ")
        columns.append((Cell(str(setting["method"]), small), setting))
    columns += [(Cell(name), s) for name in CONTROLS[1:] if (s := control(summary, name))]
    found = [_part(setting, part) for _, setting in columns]
    full = _part(unpruned, part) if unpruned else {}
    rows = []
    for name in dict.fromkeys(name for estimates in found for name in estimates):
        counts = [n for estimates in found if (n := share_of(estimates.get(name), "n")) is not None]
        best = share_of(full.get(name))
        row = [Cell(str(name)), *([Cell(whole(max(counts, default=None)))] if asked else [])]
        for estimates in found:
            reached = share_of(estimates.get(name))
            lost = 0.0 if reached is None or best is None else 100 * (best - reached)
            row.append(Cell(points(reached), shade=sum(lost >= step - 1e-9 for step in SHADES)))
        rows.append(row)
    head = [Cell(part.capitalize()), *([Cell("Questions")] if asked else []), *(cell for cell, _ in columns)]
    shades = f"Shaded: {', '.join(map(str, SHADES[:-1]))} or {SHADES[-1]} points and more below unpruned."
    return Table(f"Accuracy by {PARTS[part]}, %", head, rows, shades=shades if full else "") if rows else None


def large_table(summary: Summary) -> Table | None:
    """Methods x retention: the share of large objects lost."""
    shares = _shares(summary)
    rows: list[list[Cell]] = []
    counts: set[float] = set()
    for where in places(summary):
        lines = []
        for method, settings in methods(summary, where):
            found = {}
            for setting in settings:
                objects, lost = (share_of(setting.get("large"), key) for key in ("objects", "lost"))
                if objects and lost is not None:
                    ratio = share_of(setting["large"], "ratio")
                    small = "" if ratio is None else f"({ratio:.2f}×)"
                    found[_key(setting["retention"])] = Cell(points(lost), small)
                    counts.add(objects)
            if found:
                lines.append([Cell(method), *(found.get(share, Cell(NONE)) for share in shares)])
        rows += [[Cell(place(where).capitalize())], *lines] if lines else []
    if not rows:
        return None
    many = " to ".join(whole(n) for n in sorted({min(counts), max(counts)}))
    note = f"Of {many} large objects, those of which no token is kept."
    if any(cell.small for row in rows for cell in row):
        note += (
            " In brackets: their share of the kept tokens over their share of the picture; 1 where the "
            "choice does not care, below 1 where it passes them over."
        )
    return Table("Large objects lost, %", [Cell("Method"), *(Cell(percent(s)) for s in shares)], rows, note)


def shown_table(summary: Summary) -> Table | None:
    """Each method at about `NEAR`: the share of things left without a token, by their size."""
    rows: list[list[Cell]] = []
    sizes: dict[str, float] = {}
    for where in places(summary):
        lines = []
        for setting in _near(summary):
            found = setting.get("shown") or {}
            if setting["where"] != where or not found:
                continue
            for size, estimate in found.items():
                sizes[size] = max(sizes.get(size, 0.0), share_of(estimate, "n") or 0.0)
            name = Cell(str(setting["method"]), percent(setting["retention"]))
            lines.append([name, *(with_half(found.get(size)) for size in sizes)])
        rows += [[Cell(place(where).capitalize())], *lines] if lines else []
    if not rows:
        return None
    head = [Cell("Method"), *(Cell(size, f"{whole(n)} things") for size, n in sizes.items())]
    note = (
        "Of what is clearly in a picture, that of which no token is kept. Small: shown by up to 3 tokens of "
        "a picture, medium: up to 15. ± is the longer half of the 95% interval."
    )
    return Table("Things lost by size, %", head, rows, note)


def table_html(table: Table) -> str:
    """A table and its notes as HTML, without its title, in the styles of `EVALUATION_CSS`."""

    def cell(c: Cell, tag: str, scope: str = "") -> str:
        words = f"<b>{escape(c.text)}</b>" if c.strong else escape(c.text)
        small = f" <small>{escape(c.small)}</small>" if c.small else ""
        shade = f' class="d{c.shade}"' if c.shade else ""
        return f"<{tag}{scope}{shade}>{words}{small}</{tag}>"

    head = "".join(cell(c, "th", ' scope="col"') for c in table.head)
    body = []
    for first, *rest in table.rows:
        if not rest:
            body.append(
                f'<tr><th class="group" scope="rowgroup" colspan="{len(table.head)}">'
                f"{escape(first.text)}</th></tr>"
            )
            continue
        name = cell(first, "th", ' scope="row"')
        body.append(f"<tr>{name}{''.join(cell(c, 'td') for c in rest)}</tr>")
    note = " ".join(part for part in (table.note, table.shades) if part)
    return (
        f'<div class="card scroll matrix"><table aria-label="{escape(table.title)}"><thead><tr>{head}</tr>'
        f"</thead><tbody>{''.join(body)}</tbody></table></div>\n"
        + (f'<p class="hint">{escape(note)}</p>\n' if note else "")
    )


def number(value: Any) -> float | None:
    """A finite number, or None for what is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def share_of(estimate: Any, key: str = "value") -> float | None:
    """One number of an estimate ``{"value", "low", "high", "n"}``; None where it lacks."""
    return number(estimate.get(key)) if isinstance(estimate, Mapping) else None


def overall(setting: Summary) -> Any:
    """The overall accuracy of a setting, with its interval."""
    return (setting.get("accuracy") or {}).get("overall")


def control(summary: Summary, name: str) -> Summary | None:
    """The setting of one of `CONTROLS`, if it was evaluated."""
    return next((s for s in summary.get("settings") or () if s.get("method") == name), None)


def places(summary: Summary) -> list[str]:
    """Where was pruned: before the language model first, then its layers in order."""
    found = dict.fromkeys(s["where"] for s in _pruned(summary))
    return sorted(found, key=lambda where: (where != "before", len(where), where))


def place(where: str) -> str:
    """A place of pruning in words."""
    if where == "before":
        return "before the language model"
    layer = re.fullmatch(r"layer(\d+)", where)
    return f"inside the language model, at layer {layer[1]}" if layer else where


def methods(summary: Summary, where: str) -> list[tuple[str, list[Summary]]]:
    """The methods at one place in the order of the summary, each with its settings, most tokens first."""
    found: dict[str, list[Summary]] = {}
    for setting in _pruned(summary):
        if setting["where"] == where:
            found.setdefault(str(setting["method"]), []).append(setting)
    return [(name, sorted(all_, key=lambda s: -s["retention"])) for name, all_ in found.items()]


def _pruned(summary: Summary) -> list[Summary]:
    return [
        s
        for s in summary.get("settings") or ()
        if s.get("method") not in CONTROLS
        and isinstance(s.get("where"), str)
        and 0 < (number(s.get("retention")) or 0) <= 1
    ]


def main_setting(summary: Summary) -> Summary | None:
    """What the headline is about: T-FPS at about `NEAR`, or the first method."""
    near = _near(summary)
    return next((s for s in near if s["method"] == "tfps"), near[0] if near else None)


def _near(summary: Summary) -> list[Summary]:
    """Of each method at each place the setting with about `NEAR` of the tokens."""
    return [
        min(settings, key=lambda s: abs(math.log(s["retention"] / NEAR)))
        for where in places(summary)
        for _, settings in methods(summary, where)
    ]


def _shares(summary: Summary) -> list[float]:
    return sorted({_key(s["retention"]) for s in _pruned(summary)}, reverse=True)


def _key(share: float) -> float:
    return round(share, 6)


def _tokens(summary: Summary, share: float) -> str:
    """How many tokens a retention keeps: the mean, or the least and the most of the methods."""
    kept = [number(s.get("tokens")) for s in _pruned(summary) if _key(s["retention"]) == share]
    counts = [k for k in kept if k is not None]
    if not counts:
        return ""
    return "–".join(dict.fromkeys((whole(min(counts)), whole(max(counts))))) + " tokens"


def _part(setting: Summary, part: str) -> Mapping[str, Any]:
    return (setting.get("accuracy") or {}).get(part) or {}


def difference(setting: Summary, other: str) -> Any:
    """The paired difference of a setting to another at the same questions, over all of them."""
    return ((setting.get("difference") or {}).get(other) or {}).get("overall")


def points(share: float | None, sign: str = "") -> str:
    """A share in percent with one digit, without the sign %; ``sign``: "+" to write plus signs."""
    if share is None:
        return NONE
    return f"{round(100 * share, 1) + 0.0:{sign}.1f}".replace("-", "−")


def whole(value: Any) -> str:
    """A whole number with commas."""
    found = number(value)
    return NONE if found is None else f"{found:,.0f}"


def interval_text(estimate: Any, sign: str = "") -> str:
    """The interval of an estimate in percent or points; empty where it lacks."""
    low, high = share_of(estimate, "low"), share_of(estimate, "high")
    return "" if low is None or high is None else f"{points(low, sign)} to {points(high, sign)}"


def _bracket(estimate: Any, sign: str = "") -> str:
    return f"[{found}]" if (found := interval_text(estimate, sign)) else ""


def with_half(estimate: Any) -> Cell:
    """A share and the longer half of its interval."""
    middle, low, high = (share_of(estimate, key) for key in ("value", "low", "high"))
    if middle is None or low is None or high is None:
        return Cell(points(middle))
    return Cell(points(middle), f"± {points(max(high - middle, middle - low))}")


def _change(estimate: Any) -> Cell:
    low, high = share_of(estimate, "low"), share_of(estimate, "high")
    sure = low is not None and high is not None and not low <= 0 <= high
    return Cell(points(share_of(estimate), "+"), _bracket(estimate, "+"), strong=sure)
