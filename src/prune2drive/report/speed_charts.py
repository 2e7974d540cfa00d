"""Charts of the speed suite as SVG: bars, stacked or on a logarithmic axis, and ratios against retention.

Pure functions from numbers to text, in the looks of `chart`; every mark says its number when pointed at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .chart import (
    COLOURS,
    DASHES,
    EM,
    LINE,
    MARKERS,
    SOFT,
    Frame,
    Series,
    apart,
    escape,
    percent,
    shortened,
    svg_open,
    svg_text,
    text_width,
)

Words = Callable[[float], str]

_ROW, _HEADING, _THICK = 25.0, 26.0, 13.0
_LEGEND = 20.0
_LONGEST = 48
_NARROW = 450
"""Below this width labels of bars stand above them."""


@dataclass(frozen=True)
class Bar:
    """A bar of parts, each (place in the legend, value); a bar without parts is a heading.

    ``told``: what stands at its end, by default the sum. ``faint``: drawn hollow, for a bound.
    """

    name: str
    parts: Sequence[tuple[int, float]] = ()
    told: str = ""
    faint: bool = False


@dataclass(frozen=True)
class Mark:
    """A vertical line at a value, with its name."""

    name: str
    at: float


def milliseconds(value: float) -> str:
    """Milliseconds in the unit that suits them: "85 µs", "3.21 ms", "24.6 s"."""
    if value <= 0:
        return "0 ms"
    if value < 0.0995:
        return f"{1000 * value:.2g} µs" if value < 0.00995 else f"{1000 * value:.0f} µs"
    for limit, digits in ((9.995, 2), (99.95, 1), (999.5, 0)):
        if value < limit:
            return f"{value:.{digits}f} ms"
    seconds = value / 1000
    return (
        f"{seconds:.2f} s"
        if seconds < 9.995
        else f"{seconds:.1f} s"
        if seconds < 99.95
        else f"{seconds:.0f} s"
    )


def bars_svg(
    bars: Sequence[Bar],
    *,
    title: str,
    description: str = "",
    label: str = "",
    legend: Sequence[str] = (),
    words: Words = milliseconds,
    log: bool = False,
    highest: float | None = None,
    mark: Mark | None = None,
    width: int = 760,
    background: str | None = None,
) -> str:
    """Horizontal bars, their parts one after the other, with what they come to at their ends.

    Args:
        bars: in order; each takes a line of its own. Values at or above 0.
        label: of the axis; ``words``: how its ticks and the sums are written.
        legend: names of the parts; none is drawn for fewer than two.
        log: a logarithmic axis, for bars of one part. Values at or below 0 have no bar then.
        highest: the axis reaches at least so far.
        mark: a vertical line.
        width: of the view box, in pixels; the height follows from the bars.
        background: a colour, for files shown outside a page.
    """
    narrow = width < _NARROW
    shown = [bar for bar in bars if bar.parts]
    told = {id(bar): bar.told or words(sum(value for _, value in bar.parts)) for bar in shown}
    beside = (
        0.0 if narrow else max((text_width(shortened(b.name, _LONGEST)) for b in shown), default=0.0) + 12
    )
    end = max((text_width(words) for words in told.values()), default=40.0) + 12
    keys = list(dict.fromkeys(i for bar in shown for i, _ in bar.parts))
    top, head = _legend([(i, legend[i]) for i in sorted(keys)] if len(legend) > 1 else [], width)
    line = _ROW + 16 if narrow else _ROW
    heights = [_HEADING if not bar.parts else line for bar in bars]
    top += 20 if mark else 4
    bottom = top + sum(heights) + 4
    sums = [sum(value for _, value in bar.parts) for bar in shown]
    ticks = _ticks([v for v in sums if v > 0] + ([highest] if highest else []), log)
    frame = _Log if log else Frame
    edges = (math.log10(ticks[0]), math.log10(ticks[-1])) if log else (ticks[0], ticks[-1])
    plot = frame(
        20.0 if narrow else beside + 4, max(width - end, beside + 60), top, bottom, edges, (0.0, 1.0)
    )
    axis = _axis_words(words, ticks[-1], log)
    ticks = _thinned(ticks, plot, axis)
    grid = "".join(f"M{plot.x(tick):.1f} {top:.1f}V{bottom:.1f}" for tick in ticks)
    out = [
        svg_open(title, description, width, bottom + (46 if label else 26), background) + head,
        f'<g class="grid" color="{LINE}"><path d="{grid}" stroke="currentColor"/></g>',
        f'<g class="soft" color="{SOFT}">',
        *(svg_text(plot.x(tick), bottom + 18, axis(tick), "middle") for tick in ticks),
        svg_text((plot.left + plot.right) / 2, bottom + 39, label, "middle") if label else "",
        "</g>",
    ]
    y = top
    for bar, height in zip(bars, heights, strict=True):
        if not bar.parts:
            out.append(f'<g font-weight="620">{_haloed(4, y + 18, shortened(bar.name, int(width / EM)))}</g>')
        else:
            out.append(_bar(plot, bar, told[id(bar)], y, height, legend, words, narrow))
        y += height
    if mark:
        x = plot.x(mark.at)
        out.append(
            f'<g class="soft" color="{SOFT}"><path d="M{x:.1f} {top:.1f}V{bottom:.1f}" fill="none" '
            f'stroke="currentColor" stroke-width="1.4" stroke-dasharray="6 4"/>'
            f"{svg_text(x, top - 6, mark.name, 'middle' if x < width - 70 else 'end')}</g>"
        )
    return "".join(out) + "</svg>\n"


def ratio_svg(
    series: Sequence[Series],
    *,
    title: str,
    description: str = "",
    y_label: str = "Times faster",
    width: int = 620,
    height: int = 360,
) -> str:
    """Lines of ratios against retention, both axes logarithmic, nothing pruned on the left.

    Args:
        series: ``x`` in (0, 1], ``y`` a ratio above 0, with its interval where there is one. The looks with
            an odd number are dashed.
        width, height: of the view box, in pixels.
    """
    drawn = [
        Series(s.name, sorted((p for p in s.points if p.x > 0 and p.y > 0), key=lambda p: -p.x), s.look)
        for s in series
    ]
    drawn = [s for s in drawn if s.points]
    xs = sorted({p.x for s in drawn for p in s.points}, reverse=True) or [1.0]
    ys = [v for s in drawn for p in s.points for v in (p.y, p.low, p.high) if v and v > 0]
    y_ticks = _ratios(min([1.0, *ys]), max([2.0, *ys]))
    beside = max((text_width(shortened(s.name)) for s in drawn), default=0.0) + 34
    plot = _Retention(
        40, max(width - beside, 120), 34, height - 48, (xs[-1], xs[0]), (y_ticks[0], y_ticks[-1])
    )
    grid = "".join(f"M{plot.left:.1f} {plot.y(tick):.1f}H{plot.right:.1f}" for tick in y_ticks)
    words = [svg_text(plot.left - 8, plot.y(tick) + 4.5, f"{tick:g}", "end") for tick in y_ticks]
    words += [
        svg_text(plot.x(x), plot.bottom + 20, percent(x), "middle")
        for x in spaced(xs, 1.6 if width > 400 else 2.4)
    ]
    words += [svg_text(4, 16, y_label)]
    words += [svg_text((plot.left + plot.right) / 2, plot.bottom + 41, "Visual tokens kept", "middle")]
    out = [
        svg_open(title, description, width, height),
        f'<g class="grid" color="{LINE}"><path d="{grid}" stroke="currentColor"/></g>',
        f'<g class="soft" color="{SOFT}">{"".join(words)}</g>',
    ]
    ends = []
    for i, one in enumerate(drawn):
        look = (i if one.look is None else one.look) % len(COLOURS)
        group = f'<g class="s{look}" color="{COLOURS[look]}">'
        path = "L".join(f"{plot.x(p.x):.1f} {plot.y(p.y):.1f}" for p in one.points)
        dash = f' stroke-dasharray="{DASHES[look]}"' if DASHES[look] else ""
        out.append(
            f'{group}<path d="M{path}" fill="none" stroke="currentColor" stroke-width="2" '
            f'stroke-linejoin="round"{dash}/>'
        )
        for p in one.points:
            said = f"{one.name}, {percent(p.x)} kept: {p.y:.2f}"
            x, y = plot.x(p.x), plot.y(p.y)
            if p.low and p.high:
                said += f" ({p.low:.2f} to {p.high:.2f})"
                out.append(
                    f'<path d="M{x:.1f} {plot.y(p.low):.1f}V{plot.y(p.high):.1f}" fill="none" '
                    'stroke="currentColor" stroke-width="1.3"/>'
                )
            out.append(
                f'<path class="halo" d="{MARKERS[look]}" transform="translate({x:.1f} {y:.1f})" '
                f'stroke="#ffffff" stroke-width="1"><title>{escape(said)}</title></path>'
            )
        out.append("</g>")
        ends.append((plot.y(one.points[-1].y), plot.x(one.points[-1].x), group, one.name, MARKERS[look]))
    ends.sort(key=lambda found: found[0])
    left = plot.right + 14
    for (at, x, group, name, marker), y in zip(
        ends, apart([found[0] for found in ends], plot.top, plot.bottom), strict=True
    ):
        out.append(
            f'{group}<path d="M{x + 6:.1f} {at:.1f}L{left - 2:.1f} {y:.1f}" fill="none" '
            f'stroke="currentColor" stroke-width=".8" stroke-opacity=".55"/>'
            f'<path d="{marker}" transform="translate({left + 5:.1f} {y:.1f})"/></g>'
            + svg_text(left + 14, y + 4.5, shortened(name))
        )
    return "".join(out) + "</svg>\n"


def spaced(shares: Iterable[float], apart: float = 1.6) -> list[float]:
    """Shares, the largest first, without those less than ``apart`` times smaller than one before."""
    out: list[float] = []
    for share in sorted(set(shares), reverse=True):
        if not out or out[-1] / share >= apart:
            out.append(share)
    return out


class _Log(Frame):
    """Values on a logarithmic axis; ``x_range`` holds their logarithms. Beyond an edge: at the edge."""

    def x(self, value: float) -> float:
        return super().x(min(max(math.log10(max(value, 1e-12)), self.x_range[0]), self.x_range[1]))


class _Retention(Frame):
    """Shares kept on a logarithmic axis, the largest on the left, and ratios on another."""

    def x(self, value: float) -> float:
        low, high = self.x_range
        part = math.log(high / value) / (math.log(high / low) or 1.0)
        return self.left + (self.right - self.left) * (0.04 + 0.92 * part)

    def y(self, value: float) -> float:
        low, high = self.y_range
        part = math.log(value / low) / (math.log(high / low) or 1.0)
        return self.bottom - (self.bottom - self.top) * min(1.0, max(0.0, part))


def _bar(
    plot: Frame,
    bar: Bar,
    told: str,
    y: float,
    height: float,
    legend: Sequence[str],
    words: Words,
    narrow: bool,
) -> str:
    """The name of a bar, its parts, and what it comes to."""
    top = y + height - _THICK - 6
    name = shortened(bar.name, 44 if narrow else _LONGEST)
    at = _haloed(plot.left, top - 5, name) if narrow else svg_text(4, top + 11, name)
    out, done = [at], 0.0
    first = plot.left
    for look, value in bar.parts:
        done += value
        last = plot.x(done) if done > 0 else plot.left
        colour = COLOURS[look % len(COLOURS)]
        said = f"{bar.name}, {legend[look]}" if look < len(legend) else bar.name
        hollow = ' fill="none" stroke="currentColor" stroke-dasharray="3 2"' if bar.faint else ""
        out.append(
            f'<g class="s{look % len(COLOURS)}" color="{colour}"><rect x="{first:.1f}" y="{top:.1f}" '
            f'width="{max(last - first, 0.6):.1f}" height="{_THICK:g}"{hollow}>'
            f"<title>{escape(said)}: {escape(words(value))}</title></rect></g>"
        )
        first = last
    return "".join(out) + _haloed(first + 6, top + 11, told)


def _legend(names: Sequence[tuple[int, str]], width: float) -> tuple[float, str]:
    """Where what follows may begin, and the names of the parts in lines above it."""
    x, y, out = 4.0, 15.0, []
    for look, name in names:
        long = 20 + text_width(name)
        if x + long > width and x > 4:
            x, y = 4.0, y + _LEGEND
        out.append(
            f'<g class="s{look % len(COLOURS)}" color="{COLOURS[look % len(COLOURS)]}"><rect x="{x:.1f}" '
            f'y="{y - 10:.1f}" width="12" height="12"/></g>{svg_text(x + 17, y, name)}'
        )
        x += long + 14
    return (y + 10 if names else 4.0), "".join(out)


def _ticks(values: Sequence[float], log: bool) -> list[float]:
    """Round marks that hold the values: powers of ten around them, or steps from 0."""
    if log:
        low, high = min(values, default=0.1), max(values, default=1.0)
        # A bar of the lowest value still has some length.
        first, last = math.floor(math.log10(low) - 0.15), math.ceil(math.log10(high) - 1e-9)
        return [10.0**i for i in range(first, max(last, first + 1) + 1)]
    high = max(values, default=1.0)
    size = 10.0 ** math.floor(math.log10(high / 5))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= high / 5 * (1 - 1e-9))
    return [round(i * step, 12) for i in range(math.ceil(high / step - 1e-6) + 1)]


def _thinned(ticks: Sequence[float], plot: Frame, words: Words) -> list[float]:
    """As many of the ticks as can be written below the axis without touching."""
    every = 1
    while every < len(ticks):
        kept = ticks[::every]
        wide = max(text_width(words(tick)) for tick in kept)
        if all(plot.x(b) - plot.x(a) > wide + 10 for a, b in pairwise(kept)):
            return list(kept)
        every += 1
    return [ticks[-1]]


def _axis_words(words: Words, highest: float, log: bool) -> Words:
    """How ticks are written: times without digits that say nothing, on a linear axis in one unit."""
    if words is not milliseconds:
        return words

    def tick(value: float) -> str:
        near = value if log else highest
        size, unit = (1000.0, "s") if near >= 1000 else (1.0, "ms") if near >= 1 or not log else (0.001, "µs")
        return f"{value / size:g} {unit}" if value else "0"

    return tick


def _ratios(low: float, high: float) -> list[float]:
    """Round ratios from at or below ``low`` to at or above ``high``."""
    marks = [m * 10.0**e for e in range(-2, 5) for m in (1, 2, 5)]
    first = max((i for i, m in enumerate(marks) if m <= low * 1.001), default=0)
    last = min((i for i, m in enumerate(marks) if m >= high * 0.999), default=len(marks) - 1)
    return marks[first : last + 1]


def _haloed(x: float, y: float, words: str) -> str:
    """Words that lines of the grid do not cross."""
    return (
        f'<text class="halo" x="{x:.1f}" y="{y:.1f}" stroke="#ffffff" stroke-width="4" '
        f'paint-order="stroke">{escape(words)}</text>'
    )
