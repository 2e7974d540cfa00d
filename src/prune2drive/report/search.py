"""The result of a search for the retention of each camera: as a page and on the terminal."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..files import write_atomically
from ..rig import RIGS
from .chart import escape, percent
from .evaluation import EVALUATION_CSS
from .evaluation import _html as table_html
from .evaluation_tables import NONE, Cell, Table, number, share_of, whole
from .search_charts import (
    Result,
    Trial,
    amount,
    front_of,
    history_svg,
    importance_svg,
    mode_of,
    objective,
    objective_name,
    quality_svg,
    rates_svg,
    trial_of,
    trials_of,
    uniform_trial,
)
from .style import CSS

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
    css = CSS + SEARCH_CSS
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    title = f"Retention search: {_about(result).get('name') or 'unnamed'}"
    facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in _facts(result).items())
    held = held_out_table(result)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(title)}</title>\n<style>{css}</style>\n</head>\n<body>\n<main>\n"
        f'<header><p class="over">prune2drive</p><h1 class="words">{escape(title)}</h1></header>\n'
        f'<p class="lead words">{escape(verdict(result))}</p>\n{_cards(result)}{_found(result)}'
        f"{_charts(result)}"
        + (f"<h2>{escape(held.title)}</h2>\n{table_html(held)}" if held else "")
        + f"<footer><dl>{facts}</dl></footer>\n</main>\n</body>\n</html>\n"
    )


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
    best = _best(result)
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
    named = [*_weights(result), "exact"]
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


def cameras_table(result: Result) -> Table:
    """Per camera and in all: tokens, those that uniform and searched rates keep, and the importance."""
    tokens, uniform, best = _about(result).get("tokens") or {}, uniform_trial(result), _best(result)
    shares = _importance(result)

    def kept(trial: Trial | None, name: str) -> float | None:
        return number(((trial or {}).get("counts") or {}).get(name))

    def row(name: str, all_: float | None, even: float | None, rate: str, found: float | None) -> list[Cell]:
        change = "" if found is None or even is None else f"({amount(found - even, 0, '+')})"
        share = "" if all_ is None or even is None or not all_ else f"({percent(even / all_, 1)})"
        strong = name == "All cameras"
        return [Cell(name, strong=strong), Cell(whole(all_)), Cell(whole(even), share), Cell(rate),
                Cell(whole(found), change)]  # fmt: skip

    rows = []
    for name in _cameras(result):
        rate = number(((best or {}).get("rates") or {}).get(name))
        rate_text = NONE if rate is None else percent(rate, 1)
        cells = row(name, number(tokens.get(name)), kept(uniform, name), rate_text, kept(best, name))
        rows.append([*cells, *([_share(shares.get(name))] if shares else [])])
    found, even = (number((t or {}).get("kept")) for t in (best, uniform))
    total = _total(result)
    rate_text = percent(found / total, 1) if found is not None and total else NONE
    cells = row("All cameras", total, even, rate_text, found)
    rows.append([*cells, *([Cell("")] if shares else [])])
    head = ["Camera", "Tokens", "Uniform keeps", "Rate found", "It keeps"]
    note = "Tokens per sample. In brackets: the share that uniform rates keep, and the change against them."
    return Table(
        "Rates by camera", [Cell(t) for t in [*head, *(["Importance"] if shares else [])]], rows, note
    )


def front_table(result: Result) -> Table:
    """The points of the front, fewest tokens first: tokens kept, reward, and the rate of each camera."""
    tokens, total = _about(result).get("tokens") or {}, _total(result)
    names = _cameras(result)
    head = [Cell("Trial"), Cell("Tokens kept"), Cell("Reward R")]
    for name in names:
        count = number(tokens.get(name))
        head.append(Cell(name, "" if count is None else f"{whole(count)} tokens"))
    rows = []
    for trial in front_of(result):
        rates, kept = trial.get("rates") or {}, number(trial.get("kept"))
        share = f"({percent(kept / total, 1)})" if kept is not None and total else ""
        reward = amount(number(trial.get("reward")), 4)
        cells = [Cell(str(trial.get("number"))), Cell(whole(kept), share), Cell(reward)]
        rows.append([*cells, *(_share(number(rates.get(name))) for name in names)])
    note = "No complete trial has a higher reward with as few tokens."
    return Table("Points of the front", head, rows, note)


def held_out_table(result: Result) -> Table | None:
    """Each score of searched and uniform rates on held-out data, and the gain; None without such data."""
    held = result.get("held_out")
    if not held:
        return None
    columns = [held.get(name) or {} for name in ("searched", "uniform", "gain")]
    weights = _weights(result)
    rows = []
    for part in dict.fromkeys(name for column in columns for name in column):
        row = [Cell(str(part), "searched for" if part in weights else "")]
        for column, digits, sign in zip(columns, (3, 3, 4), ("", "", "+"), strict=True):
            value, low, high = (share_of(column.get(part), key) for key in ("value", "low", "high"))
            bracket, sure = "", False
            if low is not None and high is not None:
                bracket = f"[{amount(low, digits, sign)} to {amount(high, digits, sign)}]"
                sure = bool(sign) and not low <= 0 <= high
            row.append(Cell(amount(value, digits, sign), bracket, strong=sure))
        rows.append(row)
    note = (
        f"{_data(held.get('data'))}. In brackets: 95% intervals. Bold: the interval of the gain excludes 0. "
        "Higher is better in every row."
    )
    head = [Cell(t) for t in ("Score", "Searched", "Uniform", "Gain")]
    return Table("Scores on held-out data", head, rows, note)


def _found(result: Result) -> str:
    """The car and its cameras' table; of a front, the table of its points."""
    best = _best(result)
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
    if shares := _importance(result):
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
    best, uniform, trials = _best(result), uniform_trial(result), trials_of(result)
    shown = []
    if best is not None:
        total, kept = _total(result), number(best.get("kept"))
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
    about, trials = _about(result), trials_of(result)
    saved = _saved(result)
    workers = {str(t["worker"]) for t in trials if t.get("worker")}
    weights = about.get("weights")
    facts = {
        "Model": about.get("model"),
        "Weights": weights[:16] + "…" if isinstance(weights, str) and len(weights) > 17 else weights,
        "Number format": about.get("dtype"),
        "Selector": about.get("method"),
        "Data": _data(about.get("data")),
        "Held-out data": _data((result.get("held_out") or {}).get("data")),
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
    about = _about(result)
    terms = " + ".join(
        f"{'' if w == 1 else f'{w:g} × '}mean {_SCORED.get(name, name)}"
        for name, w in _weights(result).items()
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


def _about(result: Result) -> Mapping[str, Any]:
    return result.get("about") or {}


def _best(result: Result) -> Trial | None:
    return trial_of(result, result.get("best"))


def _cameras(result: Result) -> list[str]:
    return [str(name) for name in _about(result).get("cameras") or ()]


def _weights(result: Result) -> dict[str, float]:
    """The parts of the reward that count, with their weights."""
    parts = _about(result).get("parts") or {}
    return {str(name): w for name, weight in parts.items() if (w := number(weight))}


def _importance(result: Result) -> dict[str, float]:
    found = (result.get("importance") or {}).items()
    return {str(name): n for name, share in found if (n := number(share)) is not None}


def _share(share: float | None) -> Cell:
    return Cell(NONE if share is None else percent(share, 1))


def _total(result: Result) -> float | None:
    """Tokens of all cameras of a sample, unpruned."""
    counts = [number(n) for n in (_about(result).get("tokens") or {}).values()]
    return sum(n for n in counts if n is not None) or None


def _uniform_rate(result: Result) -> float | None:
    """The rate of the uniform start; without one, the budget's share."""
    rates = [number(r) for r in ((uniform_trial(result) or {}).get("rates") or {}).values()]
    known = [r for r in rates if r is not None]
    share = number((_about(result).get("budget") or {}).get("share"))
    return sum(known) / len(known) if known else share


def _counted(result: Result) -> str:
    states = [(len(trials_of(result, state)), state) for state in ("complete", "pruned", "failed")]
    words = {"complete": "complete", "pruned": "stopped early", "failed": "failed"}
    counted = ", ".join(f"{whole(n)} {words[state]}" for n, state in states if n)
    many = len(trials_of(result))
    return f"{whole(many)} {'trial' if many == 1 else 'trials'}" + (f": {counted}" if counted else "")


def _saved(result: Result) -> float | None:
    """The share of model calls that stopping trials saved; failed trials saved nothing and do not count."""
    full = number((_about(result).get("data") or {}).get("samples"))
    seen = [number(t.get("samples")) for t in trials_of(result, "complete", "pruned")]
    if not full or not seen or None in seen:
        return None
    return max(0.0, 1 - sum(n for n in seen if n is not None) / (len(seen) * full))


def _data(data: Any) -> str:
    if not data:
        return ""
    counts = [f"{whole(data[k])} {k}" for k in ("samples", "questions") if number(data.get(k)) is not None]
    names = [str(data[k]) for k in ("source", "split") if data.get(k)]
    return ", ".join([" ".join(names), *counts] if names else counts)


def _duration(seconds: Iterable[float | None]) -> str:
    total = sum(s for s in seconds if s is not None)
    if total < 100:
        return f"{total:.0f} s" if total else ""
    return f"{total / 60:.0f} min" if total < 6000 else f"{total / 3600:.1f} h"
