"""The result of a search for the retention of each camera: as a page and on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..files import write_atomically
from ..rig import RIGS
from .car import rates_svg
from .chart import escape, percent
from .evaluation import EVALUATION_CSS
from .evaluation_tables import NONE, number, share_of, table_html, whole
from .search_charts import (
    Result,
    amount,
    front_of,
    history_svg,
    importance_svg,
    mode_of,
    objective,
    objective_name,
    quality_svg,
    trials_of,
    uniform_trial,
)
from .search_tables import (
    about_of,
    best_of,
    cameras_table,
    data_words,
    front_table,
    held_out_table,
    importance_of,
    tokens_of,
    weights_of,
)
from .style import document

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["SEARCH_CSS", "print_search", "rates_svg", "render", "verdict", "write_search"]

SEARCH_CSS = (
    EVALUATION_CSS
    + """
.found { display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 7fr); gap: 0 var(--gap);
  align-items: start; }
.found figure { padding: 14px 12px 10px; }
.found .matrix { margin-top: 0; }
.found td, .found thead th:not(:first-child) { padding-left: 6px; padding-right: 12px; }
.car { display: block; width: 100%; max-width: 520px; height: auto; margin: 0 auto; color: var(--ink); }
.car .soft { color: var(--soft); }
.car .fan { stroke: var(--accent); }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); }
.charts .whole { grid-column: 1 / -1; }
.charts .card:not(.whole) .chart { max-width: 660px; margin: 0 auto; }
.charts .hint { margin-top: 4px; }
@media (max-width: 980px) { .found { grid-template-columns: minmax(0, 1fr); gap: var(--gap) 0; } }
@media (max-width: 640px) {
  .matrix th small { display: block; } .matrix td small { white-space: normal; }
  .found table { font-size: 12.5px; } .found .matrix th, .found .matrix td { padding: 7px 3px; }
  .found .matrix th:first-child { padding-left: 10px; }
}
"""
)
"""What the page needs beside the style sheet that all pages share."""

_SCORED = {
    "exact": "exact answers",
    "likelihood": "likelihood of the right answers",
    "probability": "probability of the right answers",
}


def write_search(result: Result, path: str | Path) -> Path:
    """Write the page about a search; a reader sees the old file or the whole new one.

    Args:
        result: what a search saves. Tokens are counts per sample, rates are shares in [0, 1].

    Raises:
        PruneError: the folder is missing, or the file cannot be written.
    """
    path = Path(path)
    write_atomically(path, render(result))
    return path


def render(result: Result) -> str:
    """The page as one string of HTML: nothing is fetched, no script runs, and its policy says so."""
    title = f"Retention search: {about_of(result).get('name') or 'unnamed'}"
    facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in _facts(result).items())
    held = held_out_table(result)
    body = (
        f'<p class="lead words">{escape(verdict(result))}</p>\n{_cards(result)}{_found(result)}'
        f"{_charts(result)}"
        + (f"<h2>{escape(held.title)}</h2>\n{table_html(held)}" if held else "")
        + f"<footer><dl>{facts}</dl></footer>\n"
    )
    return document(escape(title), SEARCH_CSS, body)


def print_search(console: Console, result: Result) -> None:
    """Print the cameras or the front as a table, with the trials counted and the verdict below it."""
    from rich import box
    from rich.table import Table as Drawn
    from rich.text import Text

    def text(words: str, style: str = "") -> Text:
        if console.options.ascii_only:
            words = words.replace("−", "-").replace(NONE, "-").replace("×", "x").replace("λ", "lambda")
        return Text(words, style)

    table = front_table(result) if mode_of(result) == "front" else cameras_table(result)
    drawn = Drawn(
        box=box.SIMPLE_HEAD, title=text(table.title, "bold"), title_justify="left", collapse_padding=True
    )
    for i, cell in enumerate(table.head):
        justify: Literal["left", "right"] = "right" if i else "left"
        # Rates are short and names of cameras are long: heads break at each word, so that columns fit.
        words = cell.text.replace("_", "_\n").replace(" ", "\n") if i else cell.text
        drawn.add_column(text(words), justify=justify, overflow="fold", no_wrap=not i)
    for row in table.rows:
        style = "bold" if row[0].strong else ""
        drawn.add_row(*(text(c.text, style) for c in row))
    console.print(drawn)
    console.print(text(_counted(result)[0].upper() + _counted(result)[1:] + ".", "dim"))
    console.print(text(verdict(result)))


def verdict(result: Result) -> str:
    """What the held-out data say about the searched rates against uniform ones, in one sentence.

    It speaks of the scores that were searched for, and of exact answers, which is what pruning may cost.
    """
    best = best_of(result)
    gains = (result.get("held_out") or {}).get("gain") or {}
    if best is not None and best.get("start") == "uniform":
        return "No trial was better than the uniform start: the rates found are the uniform ones."
    if best is None and not gains:
        front = front_of(result)
        if not front:
            return "No trial was completed: the search found no rates."
        kept = [n for t in front if (n := number(t.get("kept"))) is not None]
        span = " to ".join(dict.fromkeys(whole(n) for n in (min(kept), max(kept)))) if kept else NONE
        return (
            f"The front has {len(front)} {'point' if len(front) == 1 else 'points'}, with {span} tokens; "
            "none of them was compared with uniform rates on held-out data."
        )
    if not gains:
        return (
            "The rates found were not compared with uniform ones on held-out data: whether they are better "
            "is not known."
        )
    said: dict[str, list[str]] = {}
    named = [*weights_of(result), "exact"]
    for part in [p for p in dict.fromkeys(named) if p in gains] or list(gains):
        value, low, high = (share_of(gains[part], key) for key in ("value", "low", "high"))
        found, numbers = "not compared", ""
        if value is not None and (low is None or high is None):
            found, numbers = "of a gain without an interval", f" ({amount(value, 4, '+')})"
        elif value is not None and low is not None and high is not None:
            found = "better" if low > 0 else "worse" if high < 0 else "no difference beyond the interval"
            interval = f"{amount(low, 4, '+')} to {amount(high, 4, '+')}"
            numbers = f" ({amount(value, 4, '+')}, 95% interval {interval})"
        said.setdefault(found, []).append(f"{_SCORED.get(part, part)}{numbers}")
    words = {
        "better": "the searched rates are better than uniform ones in {}",
        "worse": "the searched rates are worse than uniform ones in {}",
        "no difference beyond the interval": "no difference between searched and uniform rates beyond the "
        "interval was shown in {}",
        "of a gain without an interval": "there is no interval, so that nothing can be said, for {}",
        "not compared": "searched and uniform rates were not compared in {}",
    }
    samples = whole(((result.get("held_out") or {}).get("data") or {}).get("samples"))
    where = "On held-out data" if samples == NONE else f"On {samples} held-out samples"
    clauses = [text.format(" and ".join(said[found])) for found, text in words.items() if found in said]
    return f"{where}, {'; '.join(clauses)}."


def _found(result: Result) -> str:
    """The car and its cameras' table; of a front, the table of its points."""
    best = best_of(result)
    if best is None:
        table = front_table(result)
        return f"<h2>{escape(table.title)}</h2>\n{table_html(table)}" if table.rows else ""
    rates = {str(k): n for k, v in (best.get("rates") or {}).items() if (n := number(v)) is not None}
    rig = next((r for r in RIGS.values() if all(name in r for name in rates)), None)
    table = cameras_table(result)
    return (
        f'<h2>{escape(table.title)}</h2>\n<div class="found"><figure class="card">'
        f"{rates_svg(rates, rig, _uniform_rate(result))}</figure><div>{table_html(table)}</div></div>\n"
    )


def _charts(result: Result) -> str:
    cards: list[tuple[str, Callable[..., str], str]] = []
    if trials_of(result):
        failed = len(trials_of(result, "failed"))
        note = f"{whole(failed)} failed {'trial is' if failed == 1 else 'trials are'} not drawn."
        cards.append(
            ("History of the search", lambda **size: history_svg(result, **size), note if failed else "")
        )
    if shares := importance_of(result):
        note = "How much of the spread of the objective over the trials each camera's rate explains."
        cards.append(
            ("Importance of each camera's rate", lambda **size: importance_svg(shares, **size), note)
        )
    if mode_of(result) != "budget" and trials_of(result):
        note = "Stopped trials were scored on the samples seen so far."
        note = note if trials_of(result, "pruned") else ""
        cards.append(("Quality against tokens kept", lambda **size: quality_svg(result, **size), note))
    out = []
    for i, (title, draw, note) in enumerate(cards):
        alone = i == 0 and len(cards) != 2
        drawn = draw(width=960 if alone else 540, height=330 if alone else 340)
        small = draw(width=350, height=340).replace('class="chart"', 'class="chart small"', 1)
        hint = f'<p class="hint">{escape(note)}</p>' if note else ""
        out.append(
            f'<div class="card{" whole" if alone else ""}"><h3>{escape(title)}</h3>{drawn}{small}{hint}</div>'
        )
    return f'<h2>The search</h2>\n<div class="charts">{"".join(out)}</div>\n' if out else ""


def _cards(result: Result) -> str:
    """What was found and how much was tried, large: (label, value, remark)."""
    best, uniform, trials = best_of(result), uniform_trial(result), trials_of(result)
    shown = []
    if best is not None:
        total, kept = tokens_of(result), number(best.get("kept"))
        share = f" of {whole(total)} ({percent(kept / total, 1)})" if kept is not None and total else ""
        shown.append(("Tokens kept per sample", whole(kept), share.strip()))
        value = None if uniform is None else objective(result, uniform)
        remark = "" if value is None else f"uniform start {amount(value)}"
        shown.append((f"{objective_name(result)} in the search", amount(objective(result, best)), remark))
    elif front_of(result):
        shown.append(("Points of the front", whole(len(front_of(result))), "reward against tokens kept"))
    shown.append(("Trials", whole(len(trials)), _counted(result).partition(": ")[2]))
    if (saved := _saved(result)) is not None:
        shown.append(("Model calls saved", percent(saved), "by stopping hopeless trials"))
    cards = "".join(
        f'<div class="card"><p class="label">{escape(label)}</p><p class="big">{escape(value)}</p>'
        f'<p class="label">{escape(remark)}</p></div>'
        for label, value, remark in shown
    )
    return f'<section class="figures{" odd" if len(shown) % 2 else ""}">{cards}</section>\n'


def _facts(result: Result) -> dict[str, str]:
    about, trials = about_of(result), trials_of(result)
    saved = _saved(result)
    workers = {str(t["worker"]) for t in trials if t.get("worker")}
    weights = about.get("weights")
    facts = {
        "Model": about.get("model"),
        "Weights": weights[:16] + "…" if isinstance(weights, str) and len(weights) > 17 else weights,
        "Number format": about.get("dtype"),
        "Selector": about.get("method"),
        "Data": data_words(about.get("data")),
        "Held-out data": data_words((result.get("held_out") or {}).get("data")),
        "Objective": formula(result),
        "Sampler": about.get("sampler"),
        "Pruner of trials": about.get("pruner"),
        "Trials": _counted(result),
        "Model calls saved": None if saved is None else f"{percent(saved)}, by stopping hopeless trials",
        "Time of all trials": _duration(number(t.get("seconds")) for t in trials),
        "Workers": whole(len(workers)) if workers else None,
        "Seed": about.get("seed"),
        "Version": about.get("version"),
    }
    return {k: str(v) for k, v in facts.items() if v not in (None, "", NONE)}


def formula(result: Result) -> str:
    """The objective in words."""
    about = about_of(result)
    terms = " + ".join(
        f"{'' if w == 1 else f'{w:g} × '}mean {_SCORED.get(name, name)}"
        for name, w in weights_of(result).items()
    )
    reward = f"R = {terms}" if terms else "reward R"
    if mode_of(result) == "penalty":
        lam = number(about.get("penalty"))
        times = "λ" if lam is None else f"{lam:g}"
        return f"highest M = R − {times} × sum of the cameras' rates, where {reward}"
    if mode_of(result) == "front":
        return f"highest {reward}, with the fewest tokens"
    budget = about.get("budget") or {}
    count, share = number(budget.get("tokens")), number(budget.get("share"))
    beside = "" if share is None else f" ({percent(share)} of all)"
    return f"highest {reward}" + ("" if count is None else f", keeping {whole(count)} tokens{beside}")


def _uniform_rate(result: Result) -> float | None:
    """The rate of the uniform start; without one, the budget's share."""
    rates = [number(r) for r in ((uniform_trial(result) or {}).get("rates") or {}).values()]
    known = [r for r in rates if r is not None]
    share = number((about_of(result).get("budget") or {}).get("share"))
    return sum(known) / len(known) if known else share


def _counted(result: Result) -> str:
    states = [(len(trials_of(result, state)), state) for state in ("complete", "pruned", "failed")]
    words = {"complete": "complete", "pruned": "stopped early", "failed": "failed"}
    counted = ", ".join(f"{whole(n)} {words[state]}" for n, state in states if n)
    many = len(trials_of(result))
    return f"{whole(many)} {'trial' if many == 1 else 'trials'}" + (f": {counted}" if counted else "")


def _saved(result: Result) -> float | None:
    """The share of model calls that stopping trials saved.

    Failed trials saved nothing, and copies of earlier ones would have cost nothing: neither counts.
    """
    full = number((about_of(result).get("data") or {}).get("samples"))
    asked = [t for t in trials_of(result, "complete", "pruned") if t.get("copied") is None]
    seen = [number(t.get("samples")) for t in asked]
    if not full or not seen or None in seen:
        return None
    return max(0.0, 1 - sum(n for n in seen if n is not None) / (len(seen) * full))


def _duration(seconds: Iterable[float | None]) -> str:
    total = sum(s for s in seconds if s is not None)
    if total < 100:
        return f"{total:.0f} s" if total else ""
    return f"{total / 60:.0f} min" if total < 6000 else f"{total / 3600:.1f} h"
