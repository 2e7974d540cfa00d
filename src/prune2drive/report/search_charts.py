"""Charts of the per-camera retention search as SVG: the history of the trials, what the objective
depends on, and quality against tokens kept.

Pure functions from a search's saved result to text, in the looks of `chart`; every point says its numbers
when pointed at. What a result lacks is not drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .chart import (
    COLOURS,
    EM,
    LINE,
    MARKERS,
    SOFT,
    Frame,
    escape,
    percent,
    shortened,
    svg_open,
    svg_text,
)
from .evaluation_tables import number, whole

Result = Mapping[str, Any]
Trial = Mapping[str, Any]

UNIFORM = "uniform"
"""The ``start`` of the trials that give every camera the same rate."""
_DOT = '<circle r="3.8"/>'
_HOLLOW = '<circle r="3.3" fill="none" stroke="currentColor" stroke-width="1.3" stroke-opacity=".75"/>'
_DASHED = '<path d="M-9 0h18" fill="none" stroke="currentColor" stroke-width="1.3" stroke-dasharray="6 4"/>'
_STEP = '<path d="M-9 3h9v-6h9" fill="none" stroke="currentColor" stroke-width="2"/>'
_DIAMOND, _TRIANGLE, _BELOW = (f'<path d="{MARKERS[i]}"/>' for i in (3, 2, 4))
_RING = '<circle r="8.5" fill="none" stroke="currentColor" stroke-width="1.8"/>'


def amount(value: float | None, digits: int = 3, sign: str = "") -> str:
    """A plain number with so many digits; ``sign``: "+" to write plus signs. None is a dash."""
    if value is None:
        return "–"
    return f"{round(value, digits) + 0.0:{sign},.{digits}f}".replace("-", "−")


def trials_of(result: Result, *states: str) -> list[Trial]:
    """The trials in one of ``states``, or all of them, in the order of their numbers."""
    found = [t for t in result.get("trials") or () if not states or t.get("state") in states]
    return sorted(found, key=lambda t: number(t.get("number")) or 0.0)


def trial_of(result: Result, which: Any) -> Trial | None:
    """The trial with the number ``which``."""
    return next((t for t in trials_of(result) if which is not None and t.get("number") == which), None)


def mode_of(result: Result) -> str:
    """What was searched: rates for a "budget", under a "penalty", or a "front" of them."""
    return str((result.get("about") or {}).get("mode"))


def objective(result: Result, trial: Trial) -> float | None:
    """What a trial reached, to be as large as possible: the reward alone where there are two objectives."""
    return number(trial.get("reward" if mode_of(result) == "front" else "value"))


def uniform_trial(result: Result) -> Trial | None:
    """The best of the complete trials with uniform rates: what the search has to beat."""
    starts = [t for t in trials_of(result, "complete") if t.get("start") == UNIFORM]
    reached = [(v, t) for t in starts if (v := objective(result, t)) is not None]
    return max(reached, key=lambda pair: pair[0])[1] if reached else None


def running_best(result: Result) -> list[tuple[float, float]]:
    """(trial number, best objective of the complete trials up to it), where it grows; ascending."""
    out: list[tuple[float, float]] = []
    for trial in trials_of(result, "complete"):
        value, at = objective(result, trial), number(trial.get("number"))
        if value is not None and at is not None and (not out or value > out[-1][1]):
            out.append((at, value))
    return out


def front_of(result: Result) -> list[Trial]:
    """The front of reward against tokens kept, ascending in tokens.

    A result of one objective saves none; there it is what no other complete trial outdoes in both.
    """
    named = [t for which in result.get("front") or () if (t := trial_of(result, which))]
    if named or mode_of(result) == "front":
        return named
    out: list[Trial] = []
    places = [(p, t) for t in trials_of(result, "complete") if (p := _place(t))]
    for (_, reward), trial in sorted(places, key=lambda pair: (pair[0][0], -pair[0][1])):
        if not out or reward > (number(out[-1]["reward"]) or 0.0):
            out.append(trial)
    return out


def history_svg(result: Result, *, width: int = 1100, height: int = 320) -> str:
    """The objective by trial: complete and stopped trials, the best so far, the uniform start.

    ``width``, ``height``: of the view box, in pixels.
    """
    done, stopped = (_valued(result, state) for state in ("complete", "pruned"))
    best, start = running_best(result), uniform_trial(result)
    level = None if start is None else objective(result, start)
    low, high = _clipped([v for _, _, v in (*done, *stopped)], [] if level is None else [level])
    y_ticks = ticks(low, high)
    numbers = [x for _, x, _ in (*done, *stopped)] or [0.0]
    out = (min(numbers), max(max(numbers), min(numbers) + 1))
    below = any(v < y_ticks[0] for _, _, v in (*done, *stopped))
    legend = [("s0", _DOT, "complete"), ("soft", _HOLLOW, "stopped early")] if stopped else []
    legend += [("s1", _STEP, "best so far")] if best else []
    legend += [("soft", _DASHED, "uniform start")] if level is not None else []
    legend += [("soft", _BELOW, "below the axis")] if below else []
    plot, head = _begin(result_title(result), legend, out, y_ticks, width, height, "Trials by number")
    words = _axis_words(plot, ticks(*out, whole_steps=True), y_ticks, "Trial", objective_name(result))
    body = []
    if level is not None:
        body.append(
            f'<g class="soft" color="{SOFT}"><path class="start" d="M{plot.left:.1f} {plot.y(level):.1f}'
            f'H{plot.right:.1f}" fill="none" stroke="currentColor" stroke-width="1.3" stroke-dasharray="6 4">'
            f"<title>uniform start: {amount(level)}</title></path></g>"
        )
    if best:
        path = f"M{plot.x(best[0][0]):.1f} {plot.y(best[0][1]):.1f}"
        path += "".join(f"H{plot.x(x):.1f}V{plot.y(y):.1f}" for x, y in best[1:])
        body.append(
            f'<g class="s1" color="{COLOURS[1]}"><path class="best" d="{path}H{plot.x(out[1]):.1f}" '
            'fill="none" stroke="currentColor" stroke-width="2"/></g>'
        )
    for state, look, shape in (("pruned", "soft", _HOLLOW), ("complete", "s0", _DOT)):
        marks = [(t, x, v) for t, x, v in _valued(result, state)]
        body.append(_marks(plot, state, look, shape, marks, result))
    return head + words + "".join(body) + "</svg>\n"


def quality_svg(result: Result, *, width: int = 620, height: int = 360) -> str:
    """Reward against tokens kept, with the front of the trials that no other outdoes in both.

    ``width``, ``height``: of the view box, in pixels.
    """
    front, best = front_of(result), trial_of(result, result.get("best"))
    drawn = {state: [t for t in trials_of(result, state) if _place(t)] for state in ("complete", "pruned")}
    points = [p for group in drawn.values() for t in group if (p := _place(t))]
    edge = [p[1] for t in front if (p := _place(t))]
    low, high = _clipped([y for _, y in points], edge)
    y_ticks, xs = ticks(low, high), [x for x, _ in points] or [0.0]
    x_ticks = ticks(min(xs), max(xs), whole_steps=True)
    starts = [t for t in drawn["complete"] if t.get("start") == UNIFORM]
    legend = [("s1", _DIAMOND, "front")] if front else []
    legend += [("s0", _DOT, "complete")] if drawn["complete"] else []
    legend += [("soft", _HOLLOW, "stopped early")] if drawn["pruned"] else []
    legend += [("s2", _TRIANGLE, "uniform")] if starts else []
    legend += [("s1", _RING, "found")] if best else []
    legend += [("soft", _BELOW, "below the axis")] if any(y < y_ticks[0] for _, y in points) else []
    across = (x_ticks[0], x_ticks[-1])
    plot, head = _begin("Reward against tokens kept", legend, across, y_ticks, width, height, "One per trial")
    words = _axis_words(plot, x_ticks, y_ticks, "Tokens kept per sample", "Reward R")
    path = ""
    for x, y in (p for t in front if (p := _place(t))):
        path += f"{'H' if path else 'M'}{plot.x(x):.1f}{'V' if path else ' '}{plot.y(y):.1f}"
    body = [
        f'<g class="s1" color="{COLOURS[1]}"><path class="front" d="{path}" fill="none" '
        'stroke="currentColor" stroke-width="1.8"/></g>'
        if path
        else ""
    ]
    chosen = [t.get("number") for t in (*front, *starts)]
    layers = [
        ("pruned", "soft", _HOLLOW, drawn["pruned"]),
        ("complete", "s0", _DOT, [t for t in drawn["complete"] if t.get("number") not in chosen]),
        ("uniform", "s2", _TRIANGLE, [t for t in starts if t not in front]),
        ("front", "s1", _DIAMOND, front),
        ("found", "s1", _RING, [best] if best else []),
    ]
    for name, look, shape, group in layers:
        body.append(_marks(plot, name, look, shape, [(t, *p) for t in group if (p := _place(t))], result))
    return head + words + "".join(body) + "</svg>\n"


def importance_svg(shares: Mapping[str, float], *, width: int = 620, height: int = 0) -> str:
    """Bars of how much of the objective's spread each camera's rate explains, the largest first.

    ``shares``: in [0, 1]. ``height``: at least, in pixels; each bar takes 36.
    """
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    bottom = max(36.0 * len(ranked) + 6, height - 48.0)
    y_step = (bottom - 6) / max(len(ranked), 1)
    marks = ticks(0.0, max([*shares.values(), 0.01]), most=5)
    plot = Frame(14, width - 60, 6, bottom, (0.0, marks[-1]), (0.0, 1.0))
    grid = "".join(f"M{plot.x(tick):.1f} 6V{bottom:.1f}" for tick in marks)
    out = [
        svg_open(
            "How much the rate of each camera matters", "The numbers are in the table.", width, bottom + 48
        ),
        f'<g class="grid" color="{LINE}"><path d="{grid}" stroke="currentColor"/></g>',
        f'<g class="soft" color="{SOFT}">',
        *(svg_text(plot.x(tick), bottom + 18, percent(tick), "middle") for tick in marks),
        svg_text((plot.left + plot.right) / 2, bottom + 40, "Share of the importance", "middle"),
        "</g>",
    ]
    for i, (name, share) in enumerate(ranked):
        y, long = 6 + y_step * (i + 0.5), plot.x(share) - plot.left
        out.append(
            f'{svg_text(plot.left, y - 5, shortened(name))}<g class="s0" color="{COLOURS[0]}"><rect '
            f'x="{plot.left}" y="{y + 2:.1f}" width="{max(long, 0.5):.1f}" height="10" rx="2">'
            f"<title>{escape(name)}: {percent(share, 1)}</title></rect></g>"
            + svg_text(plot.x(share) + 7, y + 12, percent(share, 1))
        )
    return "".join(out) + "</svg>\n"


def result_title(result: Result) -> str:
    """What the history shows, for readers who do not see it."""
    return f"{objective_name(result)} by trial"


def objective_name(result: Result) -> str:
    """The objective in a few characters."""
    return "Objective M" if mode_of(result) == "penalty" else "Reward R"


def ticks(low: float, high: float, most: int = 6, whole_steps: bool = False) -> list[float]:
    """Round marks from at or below ``low`` to at or above ``high``, ``most`` steps apart or a few more."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-3):
        aside = max(abs(low) * 0.05, 1.0 if whole_steps else 0.01)
        low, high = low - (0.0 if whole_steps else aside), high + aside
    rough = (high - low) / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= rough * (1 - 1e-9))
    step = max(step, 1.0) if whole_steps else step
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _begin(
    title: str,
    legend: Sequence[tuple[str, str, str]],
    across: tuple[float, float],
    y_ticks: Sequence[float],
    width: int,
    height: int,
    description: str,
) -> tuple[Frame, str]:
    """The area below the legend (look, mark, words), and the beginning of the element with it."""
    left = 14 + EM * max(len(text) for text in _decimals(y_ticks))
    marks, x, y = [], 4.0, 40.0
    for look, shape, words in legend:
        long = 30 + EM * len(words)
        if x + long > width and x > 4:
            x, y = 4.0, y + 20
        marks.append(
            f'<g class="{look}" color="{_COLOUR[look]}"><g transform="translate({x + 9:.1f} {y - 4.5:.1f})">'
            f"{shape}</g></g>{svg_text(x + 23, y, words)}"
        )
        x += long + 12
    top = y + 18 if legend else 36.0
    plot = Frame(left, width - 16, top, height - 48, across, (y_ticks[0], y_ticks[-1]))
    return plot, svg_open(title, description, width, height) + "".join(marks)


_COLOUR = {"s0": COLOURS[0], "s1": COLOURS[1], "s2": COLOURS[2], "soft": SOFT}


def _decimals(marks: Sequence[float]) -> list[str]:
    """Marks of an axis with as many digits as their step needs."""
    step = marks[1] - marks[0] if len(marks) > 1 else 1.0
    return [amount(mark, max(0, -math.floor(math.log10(step) + 1e-6))) for mark in marks]


def _axis_words(
    plot: Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str
) -> str:
    """Grid, ticks and names of the axes."""
    grid = "".join(f"M{plot.left:.1f} {plot.y(tick):.1f}H{plot.right:.1f}" for tick in y_ticks)
    inside = [tick for tick in x_ticks if plot.x_range[0] <= tick <= plot.x_range[1]]
    marks = "".join(f"M{plot.x(tick):.1f} {plot.bottom:.1f}v5" for tick in inside)
    texts = [
        svg_text(plot.left - 8, plot.y(tick) + 4.5, words, "end")
        for tick, words in zip(y_ticks, _decimals(y_ticks), strict=True)
    ]
    texts += [svg_text(plot.x(tick), plot.bottom + 20, whole(tick), "middle") for tick in inside]
    texts.append(svg_text(4, 16, y_label))
    texts.append(svg_text((plot.left + plot.right) / 2, plot.bottom + 41, x_label, "middle"))
    return (
        f'<g class="grid" color="{LINE}"><path d="{grid}" stroke="currentColor"/></g>'
        f'<g class="soft" color="{SOFT}"><path d="{marks}M{plot.left:.1f} {plot.bottom:.1f}'
        f'H{plot.right:.1f}" stroke="currentColor"/>{"".join(texts)}</g>'
    )


def _marks(
    plot: Frame,
    name: str,
    look: str,
    shape: str,
    points: Iterable[tuple[Trial, float, float]],
    result: Result,
) -> str:
    """One mark per trial at (x, y), which says its numbers; below the axis it becomes an arrow."""
    out = []
    for trial, x, y in points:
        drawn = _BELOW if y < plot.y_range[0] else shape
        out.append(
            f'<g class="{name}" transform="translate({plot.x(x):.1f} {plot.y(y):.1f})">'
            f"<title>{escape(_said(trial, result))}</title>{drawn}</g>"
        )
    return f'<g class="{look}" color="{_COLOUR[look]}">{"".join(out)}</g>'


def _said(trial: Trial, result: Result) -> str:
    words = [f"trial {trial.get('number')}: {objective_name(result)} {amount(objective(result, trial))}"]
    if mode_of(result) == "penalty" and (reward := number(trial.get("reward"))) is not None:
        words.append(f"reward R {amount(reward)}")
    if number(trial.get("kept")) is not None:
        words.append(f"{whole(trial['kept'])} tokens")
    if trial.get("state") == "pruned":
        words.append(f"stopped after {whole(trial.get('samples'))} samples")
    if trial.get("start"):
        words.append(f"{trial['start']} start")
    return ", ".join(words)


def _valued(result: Result, state: str) -> list[tuple[Trial, float, float]]:
    """(trial, its number, its objective) of the trials in a state that have one."""
    found = [(t, number(t.get("number")), objective(result, t)) for t in trials_of(result, state)]
    return [(t, at, value) for t, at, value in found if at is not None and value is not None]


def _place(trial: Trial) -> tuple[float, float] | None:
    """(tokens kept, reward) of a trial."""
    kept, reward = number(trial.get("kept")), number(trial.get("reward"))
    return None if kept is None or reward is None else (kept, reward)


def _clipped(values: Sequence[float], needed: Sequence[float]) -> tuple[float, float]:
    """A range around ``needed`` and the better part of ``values``.

    A few hopeless trials far below would flatten all that the search is about.
    """
    every = sorted([*values, *needed])
    if not every:
        return 0.0, 1.0
    low, middle, high = every[0], every[len(every) // 2], every[-1]
    if high > middle:
        low = max(low, high - 3 * (high - middle))
    return min([low, *needed]), high
