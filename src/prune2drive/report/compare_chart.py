"""The trade-off of a comparison as SVG: accuracy against the visual tokens that a layer sees on average.

Pure functions from a summary to text, in the looks of `chart`: groups of methods differ by colour and by
marker, every mark says its numbers when pointed at, and what a summary lacks is not drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .chart import (
    COLOURS,
    FONT,
    INK,
    LINE,
    MARKERS,
    SOFT,
    Frame,
    escape,
    percent,
    shortened,
    svg_text,
    text_width,
    tick_step,
)
from .compare_tables import (
    PLACES,
    Contender,
    bounds_of,
    headline,
    name_of,
    place_of,
    pruned_of,
    tokens_of,
)
from .evaluation_tables import Summary, number, overall, share_of, whole

LOOKS = {"before": 0, "inside": 1, "both": 2, "control": 5}
"""Places -> which colour of `COLOURS`; the marker is the place's number in `PLACES`."""
FRONT = 3
"""The colour of the Pareto front."""

_SIZE = 11.0
"""Markers so far apart or farther do not hide one another."""
_WHISKERS = 5.0
"""Whiskers so far apart or farther can be told apart."""
_ASIDE = 0.04
"""How far marks that would hide one another are moved at most, as a share of the plot's width; at least two
markers far."""
_NARROW = 600
"""Below this width names of the front leave out the budget, which the axis shows."""
_STRIP = 26.0
"""Height of each line below the break of the axis."""
_NEAR = 0.15
"""A bound so far below all contenders, as a share of their range, still stands on the axis."""
_LETTERS = 12
_SHARES = (1.0, 0.5, 0.25, 0.1, 0.05, 0.025, 0.01, 0.15, 0.35, 0.7)

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


@dataclass(frozen=True)
class Mark:
    """One contender on the chart: ``x`` tokens and ``y`` accuracy with its interval where there is one."""

    contender: Contender
    x: float
    y: float
    low: float | None
    high: float | None

    @property
    def front(self) -> bool:
        return bool(self.contender.get("pareto"))

    @property
    def place(self) -> str:
        return place_of(self.contender)


def tradeoff_svg(
    summary: Summary, *, width: int = 1140, height: int = 560, background: str | None = None
) -> str:
    """Accuracy against layer-averaged visual tokens, every contender with its interval, and the front.

    Args:
        width, height: of the view box, in pixels.
        background: a colour, for files shown outside a page.

    Returns:
        One ``<svg>`` element. The x axis is logarithmic. Bounds far below all contenders stand under a
        visible break of the y axis, not to scale.
    """
    found = marks_of(summary)
    bounds = {n: (y, c) for n, c in bounds_of(summary).items() if (y := share_of(overall(c))) is not None}
    legend, top = _legend(found, width)
    y_range = _y_range(found, bounds)
    below = [n for n, (y, _) in sorted(bounds.items(), key=lambda b: -b[1][0]) if y < y_range[0]]
    base = height - 62.0
    bottom = base - (_STRIP * len(below) + 8 if below else 0)
    xs = [mark.x for mark in found] or [1.0]
    plot = _Plot(48, width - 14, top, bottom, (min(xs), max(xs)), y_range)
    placed = _spread(plot, found)
    words = _Words(plot, base)
    for x, mark in placed:
        words.taken += _taken(plot, x, mark)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'color="{INK}" fill="currentColor" font-family="{FONT}" font-size="13">'
        "<title>Accuracy against visual tokens per layer</title>"
        f"<desc>{escape(headline(summary))} Whiskers are 95% intervals. The numbers are in the tables.</desc>"
    ]
    if background:
        out.append(f'<rect width="{width}" height="{height}" fill="{escape(background)}"/>')
    out += [legend, _axes(plot, base, summary, found)]
    heights = {name: bottom + 4 + _STRIP * (below.index(name) + 0.8) for name in below}
    for name, (y, one) in bounds.items():
        out.append(_bound(plot, name, heights.get(name, plot.y(y)), one, name not in below))
    if below:
        teeth = "l5-5l5 5" * int((plot.right - plot.left) // 10)
        out.append(
            f'<g class="soft" color="{SOFT}"><path d="M{plot.left:.1f} {bottom + 3:.1f}{teeth}" '
            'fill="none" stroke="currentColor" stroke-width=".9"/></g>'
        )
    out += [_front(plot, found), *_drawn(plot, placed)]
    # Bounds are named first: their names have fewer places to go.
    for name, (y, one) in bounds.items():
        at = heights.get(name, plot.y(y))
        band = plot.y(share_of(overall(one), "high") or y)
        # Above a narrow band; in a wide one a name there would be far from its line.
        above = band if name == "unpruned" and at - 16 < band < at else at
        out.append(words.of_line(f"{name} {percent(y, 1)}", above - 5, at + 14))
    for x, mark in sorted((p for p in placed if p[1].front), key=lambda p: (p[0], p[1].y)):
        named = mark.contender.get("method") if width < _NARROW else None
        out.append(words.of_mark(shortened(str(named or name_of(mark.contender)), 28), x, plot.y(mark.y)))
    return "".join(out) + "</svg>\n"


def marks_of(summary: Summary) -> list[Mark]:
    """The contenders that can be drawn: with a budget, tokens and an accuracy; by tokens, then accuracy."""
    out = []
    for one in pruned_of(summary):
        x, estimate = tokens_of(one), overall(one)
        y = share_of(estimate)
        if x is not None and x > 0 and y is not None:
            out.append(Mark(one, x, y, share_of(estimate, "low"), share_of(estimate, "high")))
    return sorted(out, key=lambda mark: (mark.x, mark.y))


class _Plot(Frame):
    """Counts of tokens on a logarithmic axis, with room to the left for the names of the front."""

    def x(self, value: float) -> float:
        low, high = self.x_range
        part = math.log(value / low) / math.log(high / low) if high > low else 0.5
        return self.left + (self.right - self.left) * (0.12 + 0.82 * part)


def _y_range(marks: Sequence[Mark], bounds: dict[str, tuple[float, Contender]]) -> tuple[float, float]:
    """From one mark of the axis to another, around all marks and unpruned.

    A lower bound that would take much of the height is left to the break of the axis.
    """
    ends = [end for m in marks for end in (m.y, m.low, m.high) if end is not None]
    if "unpruned" in bounds:
        y, one = bounds["unpruned"]
        ends += [
            e for e in (y, share_of(overall(one), "low"), share_of(overall(one), "high")) if e is not None
        ]
    ends = ends or [y for y, _ in bounds.values()]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    for bound in sorted((y for y, _ in bounds.values()), reverse=True):
        if low - bound < _NEAR * (high - low):
            low = min(low, bound)
    low, high = max(0.0, low - 0.01), min(1.0, high + 0.01)
    step = tick_step(low, high)
    return step * math.floor(low / step), min(1.0, step * math.ceil(high / step))


def _spread(plot: _Plot, marks: Sequence[Mark]) -> list[tuple[float, Mark]]:
    """Where each mark stands: at its tokens, or as little beside as leaves it and its whisker visible.

    The front stands first, then the most accurate: equal budgets put many marks at nearly one place.
    """
    out: list[tuple[float, Mark]] = []
    reach = max(_ASIDE * (plot.right - plot.left), 2 * _SIZE + 1)
    steps = [0.0] + [side * 2.5 * i for i in range(1, int(reach / 2.5) + 1) for side in (1, -1)]

    def hidden(x: float, mark: Mark) -> int:
        y, span = plot.y(mark.y), _span(plot, mark)
        count = 0
        for other_x, other in out:
            dx, between = abs(x - other_x), _span(plot, other)
            if dx < _SIZE and abs(y - plot.y(other.y)) < _SIZE:
                count += 3  # markers on one another are worse than whiskers
            elif dx < _WHISKERS and span[0] < between[1] and between[0] < span[1]:
                count += 1
        return count

    for mark in sorted(marks, key=lambda m: (not m.front, -m.y)):
        exact = plot.x(mark.x)
        # The first of the least hidden places is the nearest of them.
        x = min((exact + step for step in steps), key=lambda x: hidden(x, mark))
        out.append((x, mark))
    return out


def _span(plot: _Plot, mark: Mark) -> tuple[float, float]:
    """Top and bottom pixel of a mark with its whisker."""
    high, low = (mark.y if end is None else end for end in (mark.high, mark.low))
    return plot.y(high) - 1, plot.y(low) + 1


def _taken(plot: _Plot, x: float, mark: Mark) -> list[Box]:
    """Where no words may stand for the sake of a mark."""
    y, (top, bottom) = plot.y(mark.y), _span(plot, mark)
    return [(x - 6, y - 6, x + 6, y + 6), (x - 3, top, x + 3, bottom)]


def _drawn(plot: _Plot, placed: Iterable[tuple[float, Mark]]) -> Iterator[str]:
    """All whiskers, then all markers, the front on top; one group per place."""
    order = sorted(placed, key=lambda p: (p[1].front, p[0]))
    for x, mark in order:
        if mark.low is None or mark.high is None:
            continue
        look, y = LOOKS[mark.place], plot.y(mark.y)
        up, down = plot.y(mark.high) - y, plot.y(mark.low) - y
        yield (
            f'<g class="s{look}" color="{COLOURS[look]}"><path class="whisker" fill="none" '
            f'transform="translate({x:.1f} {y:.1f})" d="M-2.5 {up:.1f}h5m-2.5 0V{down:.1f}m-2.5 0h5" '
            f'stroke="currentColor" stroke-width="1.1" stroke-opacity="{1 if mark.front else 0.5}"/></g>'
        )
    for x, mark in order:
        look = LOOKS[mark.place]
        yield (
            f'<g class="s{look}" color="{COLOURS[look]}"><g class="contender" '
            f'transform="translate({x:.1f} {plot.y(mark.y):.1f})"><title>{escape(_said(mark))}</title>'
            f'<path class="halo" d="{_marker(mark.place)}" stroke="#ffffff" stroke-width="1"/></g></g>'
        )


def _marker(place: str) -> str:
    return MARKERS[list(PLACES).index(place)]


def _said(mark: Mark) -> str:
    """A mark's numbers in words."""
    title = str(mark.contender.get("title") or "")
    words = name_of(mark.contender) + (f" ({title})" if title else "")
    words += f", {PLACES[mark.place]}: {mark.x:,.1f} tokens per layer, {percent(mark.y, 1)}"
    if mark.low is not None and mark.high is not None:
        words += f" ({percent(mark.low, 1)} to {percent(mark.high, 1)})"
    return words + (", on the front" if mark.front else "")


def _front(plot: _Plot, marks: Sequence[Mark]) -> str:
    """The front as steps: what accuracy can be had for so many tokens or fewer."""
    steps: list[Mark] = []
    for mark in marks:
        if mark.front and (not steps or mark.y > steps[-1].y):
            steps.append(mark)
    if not steps:
        return ""
    path = f"M{plot.x(steps[0].x):.1f} {plot.y(steps[0].y):.1f}"
    path += "".join(f"H{plot.x(m.x):.1f}V{plot.y(m.y):.1f}" for m in steps[1:])
    return (
        f'<g class="s{FRONT}" color="{COLOURS[FRONT]}"><path class="front" d="{path}H{plot.right:.1f}" '
        'fill="none" stroke="currentColor" stroke-width="1.8" stroke-opacity=".75"/></g>'
    )


def _bound(plot: _Plot, name: str, y: float, contender: Contender, to_scale: bool) -> str:
    """A bound as a thin line over the whole width; unpruned is thicker and has its interval as a band."""
    band = ""
    low, high = share_of(overall(contender), "low"), share_of(overall(contender), "high")
    main = name == "unpruned"
    if main and to_scale and low is not None and high is not None:
        band = (
            f'<rect class="band" x="{plot.left:.1f}" y="{plot.y(high):.1f}" fill-opacity=".13" '
            f'width="{plot.right - plot.left:.1f}" height="{max(0.5, plot.y(low) - plot.y(high)):.1f}"/>'
        )
    style = 'stroke-width="1.6"' if main else 'stroke-width="1" stroke-dasharray="5 4"'
    return (
        f'<g class="soft" color="{SOFT}">{band}<path class="bound" d="M{plot.left:.1f} {y:.1f}'
        f'H{plot.right:.1f}" fill="none" stroke="currentColor" {style}>'
        f"<title>{escape(name)}: {percent(share_of(overall(contender)) or 0.0, 1)}</title></path></g>"
    )


def _legend(marks: Sequence[Mark], width: float) -> tuple[str, float]:
    """What markers and lines stand for, in rows below the axis' name, and where the plot begins."""
    there = [place for place in PLACES if any(m.place == place for m in marks)]
    entries = [(LOOKS[p], f'<path d="{_marker(p)}"/>', PLACES[p]) for p in there]
    if any(m.front for m in marks):
        step = '<path d="M-9 3h9v-6h9" fill="none" stroke="currentColor" stroke-width="1.8"/>'
        entries.append((FRONT, step, "front"))
    out, x, y = [], 4.0, 40.0
    for look, shape, words in entries:
        long = 30 + text_width(words)
        if x + long > width and x > 4:
            x, y = 4.0, y + 20
        out.append(
            f'<g class="s{look}" color="{COLOURS[look]}"><g transform="translate({x + 9:.1f} {y - 4.5:.1f})">'
            f"{shape}</g></g>{svg_text(x + 23, y, words)}"
        )
        x += long + 10
    return "".join(out), y + 18 if entries else 36.0


def _axes(plot: _Plot, base: float, summary: Summary, marks: Sequence[Mark]) -> str:
    """Grid, ticks and names of the axes; ``base``: pixel of the x axis."""
    step = tick_step(*plot.y_range)
    first, last = math.ceil(plot.y_range[0] / step - 1e-9), math.floor(plot.y_range[1] / step + 1e-9)
    grid, words = [], []
    for i in range(first, last + 1):
        y = plot.y(i * step)
        grid.append(f"M{plot.left:.1f} {y:.1f}H{plot.right:.1f}")
        words.append(svg_text(plot.left - 8, y + 4.5, percent(i * step), "end"))
    visual, ticks = number(summary.get("visual")), ""
    for tokens in _x_ticks(plot, visual, marks):
        x = plot.x(tokens)
        ticks += f"M{x:.1f} {base:.1f}v5"
        words.append(svg_text(x, base + 19, whole(tokens), "middle"))
        if visual:
            words.append(svg_text(x, base + 34, percent(tokens / visual), "middle"))
    middle = (plot.left + plot.right) / 2
    name = "Visual tokens per layer on average, log scale"
    return (
        f'<g class="grid" color="{LINE}"><path d="{"".join(grid)}" stroke="currentColor"/></g>'
        f'<g class="soft" color="{SOFT}"><path d="{ticks}M{plot.left:.1f} {base:.1f}'
        f'H{plot.right:.1f}" stroke="currentColor"/>{"".join(words)}'
        f"{svg_text(4, 16, 'Questions answered correctly')}{svg_text(middle, base + 55, name, 'middle')}</g>"
    )


def _x_ticks(plot: _Plot, visual: float | None, marks: Sequence[Mark]) -> list[float]:
    """Where the axis is marked: the budgets first, then round shares, as far as their words have room."""
    wanted: list[float] = []
    if visual:
        budgets = {c["retention"] for m in marks if (c := m.contender).get("budget") == "average"}
        wanted = [visual * share for share in (*sorted(budgets), *_SHARES)]
    else:
        wanted = [m * 10.0**e for m in (1, 5, 2) for e in range(6)]
    out: list[float] = []
    for tokens in wanted:
        x = plot.x(tokens) if tokens > 0 else -1.0
        inside = plot.left + 16 <= x <= plot.right - 16
        if inside and all(abs(x - plot.x(other)) >= 44 for other in out):
            out.append(tokens)
    return sorted(out)


class _Words:
    """Places names where they cover neither marks nor one another.

    ``base``: pixel of the x axis. ``taken``: where no words may stand.
    """

    def __init__(self, plot: _Plot, base: float) -> None:
        self.plot = plot
        self.base = base
        self.taken: list[Box] = []

    def of_line(self, words: str, above: float, under: float) -> str:
        """The name of a horizontal line, above it on the left if there is room, with a halo."""
        plot, long = self.plot, text_width(words)
        spots = [
            (x, y)
            for y in (above, under)
            for x in [plot.left + 6 + (plot.right - plot.left - long - 12) * i / 12 for i in range(13)]
        ]
        found = next((spot for spot in spots if self._free(self._box(*spot, long), self.base)), None)
        if found is None:
            return ""
        self.taken.append(self._box(*found, long))
        return f'<g class="soft" color="{SOFT}">{_haloed(*found, words)}</g>'

    def of_mark(self, words: str, x: float, y: float) -> str:
        """The name of a mark as near as there is room, up and left first, where the front leaves room.

        A name that is not next to its mark gets a line to it; one without room anywhere is left out.
        """
        long = 1.08 * text_width(words)  # fonts differ, and names of methods have wide letters
        for far in range(10, 260, 6):
            for degrees in (135, 150, 120, 165, 105, 90, 180, 75, 60, 45, 30, 0, 330, 315, 300, 270, 225):
                turned = math.radians(degrees)
                px, py = x + far * math.cos(turned), y - far * math.sin(turned)
                lean = math.cos(turned)
                left = px - long if lean < -0.1 else px if lean > 0.1 else px - long / 2
                box = self._box(left, py + 4, long)
                if not self._free(box, self.plot.bottom):
                    continue
                self.taken.append(box)
                line = ""
                if far > 16:
                    line = (
                        f'<path class="lead" d="M{x:.1f} {y:.1f}L{px:.1f} {py:.1f}" fill="none" '
                        'stroke="currentColor" stroke-width=".8" stroke-opacity=".5"/>'
                    )
                return line + _haloed(left, py + 4, words, _LETTERS)
        return ""

    def _box(self, left: float, y: float, long: float) -> Box:
        return left - 1, y - 11, left + long + 1, y + 4

    def _free(self, box: Box, lowest: float) -> bool:
        across = box[0] >= self.plot.left + 2 and box[2] <= self.plot.right
        return (
            across
            and self.plot.top - 8 <= box[1]
            and box[3] <= lowest
            and not any(
                box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
                for other in self.taken
            )
        )


def _haloed(x: float, y: float, words: str, size: int = 13) -> str:
    """Words with a rim in the colour of the ground, to be read over lines."""
    return (
        f'<text class="halo name" x="{x:.1f}" y="{y:.1f}" font-size="{size}" stroke="#ffffff" '
        f'stroke-width="3" stroke-linejoin="round" paint-order="stroke">{escape(words)}</text>'
    )
