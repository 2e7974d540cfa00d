"""The result of a search as tables of text, which are written as HTML or to a terminal, and the parts of
the result that they and the page read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .chart import percent
from .evaluation_tables import NONE, Cell, Table, number, share_of, whole
from .search_charts import Result, Trial, amount, front_of, trial_of, uniform_trial


def cameras_table(result: Result) -> Table:
    """Per camera and in all: tokens, those that uniform and searched rates keep, and the importance."""
    tokens, uniform, best = about_of(result).get("tokens") or {}, uniform_trial(result), best_of(result)
    shares = importance_of(result)

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
    total = tokens_of(result)
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
    tokens, total = about_of(result).get("tokens") or {}, tokens_of(result)
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
    weights = weights_of(result)
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
        f"{data_words(held.get('data'))}. In brackets: 95% intervals. Bold: the interval of the gain "
        "excludes 0. Higher is better in every row."
    )
    head = [Cell(t) for t in ("Score", "Searched", "Uniform", "Gain")]
    return Table("Scores on held-out data", head, rows, note)


def about_of(result: Result) -> Mapping[str, Any]:
    """What was searched: the model, the data, the cameras, the objective."""
    return result.get("about") or {}


def best_of(result: Result) -> Trial | None:
    """The trial with the rates found; None where a front was searched for, or nothing was found."""
    return trial_of(result, result.get("best"))


def weights_of(result: Result) -> dict[str, float]:
    """The parts of the reward that count, with their weights."""
    parts = about_of(result).get("parts") or {}
    return {str(name): w for name, weight in parts.items() if (w := number(weight))}


def importance_of(result: Result) -> dict[str, float]:
    """How much each camera's rate explains of the objective's spread, in [0, 1]."""
    found = (result.get("importance") or {}).items()
    return {str(name): n for name, share in found if (n := number(share)) is not None}


def tokens_of(result: Result) -> float | None:
    """Tokens of all cameras of a sample, unpruned."""
    counts = [number(n) for n in (about_of(result).get("tokens") or {}).values()]
    return sum(n for n in counts if n is not None) or None


def data_words(data: Any) -> str:
    """Data in words: where they are from, and how many."""
    if not data:
        return ""
    counts = [f"{whole(data[k])} {k}" for k in ("samples", "questions") if number(data.get(k)) is not None]
    names = [str(data[k]) for k in ("source", "split") if data.get(k)]
    return ", ".join([" ".join(names), *counts] if names else counts)


def _cameras(result: Result) -> list[str]:
    return [str(name) for name in about_of(result).get("cameras") or ()]


def _share(share: float | None) -> Cell:
    return Cell(NONE if share is None else percent(share, 1))
