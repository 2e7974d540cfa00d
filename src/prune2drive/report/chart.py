"""A line chart as SVG: shares against the share of tokens kept, with intervals and reference lines.

Pure functions from numbers to text. Series differ by colour, by marker and by dash, so that the chart
can be read without seeing colours. Colours are presentation attributes (``color``, then
``currentColor``): a stand-alone file needs no style sheet, and the style sheet of a page overrides them.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

COLOURS = ("#0072b2", "#d55e00", "#00805d", "#a8478a", "#806600", "#4a5664")
"""Of the series, after Okabe and Ito; darkened until each reaches 3:1 on white."""
DARK_COLOURS = ("#56b4e9", "#f58a4b", "#34d3a0", "#e39ac6", "#e9c54a", "#b8c0ca")
"""The same on a dark page."""
INK, SOFT, LINE = "#12161c", "#56606d", "#dfe3e8"
DASHES = ("", "7 4", "2 3", "9 3 2 3", "4 2", "12 4")
REFERENCE_DASHES = ("", "6 4", "2 3")

MARKERS = (
    "M-4.6 0a4.6 4.6 0 1 0 9.2 0a4.6 4.6 0 1 0-9.2 0z",
    "M-4.2-4.2h8.4v8.4h-8.4z",
    "M0-5.4L5.2 4H-5.2z",
    "M0-5.8L5.4 0L0 5.8L-5.4 0z",
    "M0 5.4L5.2-4H-5.2z",
    "M-1.7-5h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3z",
)
"""Paths of the series; each spans about 9 units around the origin."""
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif"
EM = 7.3
"""Width of a character of a label: about the widest that 13 pixel letters are on average."""
_APART = 16.0
_LONGEST = 20
_STRIP = 22.0
"""Height of each line below the break of the axis."""


@dataclass(frozen=True)
class Point:
    """A share ``y`` measured at the share ``x`` (above 0), with its interval where there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points joined by a line. ``look``: which colour, marker and dash; None for the place in the list."""

    name: str
    points: Sequence[Point]
    look: int | None = None


@dataclass(frozen=True)
class Reference:
    """A horizontal line at ``y`` with its name."""

    name: str
    y: float


def escape(text: object) -> str:
    """Text for HTML and XML; characters that neither allows, even escaped, become U+FFFD."""
    return html.escape(_NOT_XML.sub("\ufffd", str(text)), quote=True)


def percent(share: float, digits: int = 0) -> str:
    """0.1 -> "10%", 0.025 -> "2.5%"; with ``digits``, always so many of them: "10.0%"."""
    return f"{100 * share:.{digits}f}%" if digits else f"{100 * share:.3g}%"


def svg_open(title: str, description: str, width: float, height: float, background: str | None = None) -> str:
    """The beginning of a chart, up to its marks; ``background``: a colour, for files outside a page."""
    ground = f'<rect width="100%" height="100%" fill="{escape(background)}"/>' if background else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'role="img" color="{INK}" fill="currentColor" font-family="{FONT}" font-size="13">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{ground}"
    )


def svg_text(x: float, y: float, words: str, anchor: str = "") -> str:
    """Words at a place; ``anchor``: which of their points lies there, by default the first."""
    where = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{where}>{escape(words)}</text>'


def line_chart(
    series: Iterable[Series],
    *,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float],
    y_range: tuple[float, float],
    references: Sequence[Reference] = (),
    start: Point | None = None,
    title: str = "",
    description: str = "",
    width: int = 760,
    height: int = 440,
    background: str | None = None,
) -> str:
    """Draw the chart. All numbers are shares in [0, 1] and written as percentages.

    Args:
        series: the lines, in the order of their looks. Points in any order.
        x_ticks: marked shares of tokens. The axis is logarithmic and runs from the largest, on the left.
        y_range: lowest and highest share on the y axis. Points beyond are drawn at the edge.
        references: horizontal lines. Those below the range stand under a visible break of the axis, the
            highest first and not to scale, so that a far bound does not flatten everything else.
        start: where every line begins (nothing is pruned yet); drawn once.
        title, description: for readers who do not see the picture; the title also names the element.
        width, height: of the view box. The element fills the width of its place.
        background: a colour, for files shown outside a page.

    Returns:
        One ``<svg>`` element.
    """
    drawn = [Series(s.name, sorted(s.points, key=lambda p: -p.x), s.look) for s in series if s.points]
    references = [replace(r, name=f"{r.name} {percent(r.y, 1)}") for r in references]
    below = sorted((r for r in references if r.y < y_range[0]), key=lambda r: -r.y)
    frame = _frame(
        drawn, references, x_ticks, y_range, start, width, height - _STRIP * len(below) - (4 if below else 0)
    )
    base = frame.bottom + _STRIP * len(below) + (4 if below else 0)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'color="{INK}" fill="currentColor" font-family="{FONT}" font-size="13">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    ]
    if background:
        out.append(f'<rect width="{width}" height="{height}" fill="{escape(background)}"/>')
    out.append(_axes(frame, base, x_label, y_label, x_ticks, y_range))
    if below:
        out.append(_break(frame))
    labels = []  # (wanted y, where the line ends or None, its group, what stands there)
    for i, reference in enumerate(references):
        dash = REFERENCE_DASHES[i % len(REFERENCE_DASHES)]
        y = frame.y(reference.y)
        if reference in below:
            y = frame.bottom + _STRIP * (below.index(reference) + 0.7)
        out.append(
            f'<g class="soft" color="{SOFT}"><path d="M{frame.left:.1f} {y:.1f}H{frame.right:.1f}" '
            f'fill="none" stroke="currentColor" stroke-width="1.2"{_dashed(dash)}/></g>'
        )
        labels.append((y, frame.right, f'<g class="soft" color="{SOFT}">', reference.name, ""))
    step = _dodge(frame, x_ticks, len(drawn))
    for i, one in enumerate(drawn):
        look = (i if one.look is None else one.look) % len(COLOURS)
        group = f'<g class="s{look}" color="{COLOURS[look]}">'
        aside = step * (i - (len(drawn) - 1) / 2)
        out.append(group + _line(frame, one, look, aside, start) + "</g>")
        last = one.points[-1]
        labels.append((frame.y(last.y), frame.x(last.x) + aside + 6, group, one.name, MARKERS[look]))
    if start is not None:
        whisker, marker = _mark(frame, start, frame.x(start.x), MARKERS[0], "")
        out.append(f"<g>{whisker}{marker}</g>")
    out.append(_labels(frame, base, labels))
    return "".join(out) + "</svg>\n"


@dataclass(frozen=True)
class Frame:
    """The plotting area in pixels, and what its edges stand for."""

    left: float
    right: float
    top: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        """Pixel of a value on the horizontal axis."""
        low, high = self.x_range
        return self.left + (self.right - self.left) * (value - low) / ((high - low) or 1.0)

    def y(self, value: float) -> float:
        """Pixel of a value on the vertical axis, at the edge when it is beyond."""
        low, high = self.y_range
        part = (value - low) / ((high - low) or 1.0)
        return self.bottom - (self.bottom - self.top) * min(1.0, max(0.0, part))


class _Frame(Frame):
    """Shares of tokens on a logarithmic axis, the largest on the left."""

    def x(self, value: float) -> float:
        low, high = self.x_range
        span = math.log(high / low) or 1.0
        return self.left + (self.right - self.left) * (0.04 + 0.92 * math.log(high / value) / span)


def _frame(
    series: Sequence[Series],
    references: Sequence[Reference],
    ticks: Sequence[float],
    y_range: tuple[float, float],
    start: Point | None,
    width: float,
    height: float,
) -> _Frame:
    names = [(34, s.name) for s in series] + [(20, r.name) for r in references]
    beside = max((room + EM * len(shortened(name)) for room, name in names), default=12.0)
    xs = [*ticks, *(p.x for s in series for p in s.points), *([start.x] if start else [])] or [1.0]
    return _Frame(48, max(width - beside, 100), 36, height - 48, (min(xs), max(xs)), y_range)


def shortened(name: str, longest: int = _LONGEST) -> str:
    """A name as it fits beside a line; an overlong one is cut."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def text_width(words: str) -> float:
    """At most so many pixels wide at 13 pixel letters."""
    return sum(13.0 if ord(c) > 0x2E7F else 9.2 if c.isupper() or c in "@%—…" else EM for c in words)


def _dashed(dash: str) -> str:
    return f' stroke-dasharray="{dash}"' if dash else ""


def tick_step(low: float, high: float) -> float:
    """The finest step of round percentages that makes at most seven steps of a range."""
    steps = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
    return next((step for step in steps if (high - low) / step <= 7.001), 0.25)


def _axes(
    frame: _Frame,
    base: float,
    x_label: str,
    y_label: str,
    ticks: Sequence[float],
    y_range: tuple[float, float],
) -> str:
    """Grid, ticks and names of the axes; ``base``: pixel of the x axis."""
    step = tick_step(*y_range)
    first, last = math.ceil(y_range[0] / step - 1e-9), math.floor(y_range[1] / step + 1e-9)
    grid, words = [], []
    for i in range(first, last + 1):
        y = frame.y(i * step)
        grid.append(f"M{frame.left:.1f} {y:.1f}H{frame.right:.1f}")
        words.append(
            f'<text x="{frame.left - 8:.1f}" y="{y + 4.5:.1f}" text-anchor="end">{percent(i * step)}</text>'
        )
    marks = []
    for tick in ticks:
        x = frame.x(tick)
        marks.append(f"M{x:.1f} {base:.1f}v5")
        words.append(f'<text x="{x:.1f}" y="{base + 20:.1f}" text-anchor="middle">{percent(tick)}</text>')
    middle = (frame.left + frame.right) / 2
    return (
        f'<g class="grid" color="{LINE}"><path d="{"".join(grid)}" stroke="currentColor"/></g>'
        f'<g class="soft" color="{SOFT}"><path d="{"".join(marks)}M{frame.left:.1f} {base:.1f}'
        f'H{frame.right:.1f}" stroke="currentColor"/>{"".join(words)}'
        f'<text x="4" y="16">{escape(y_label)}</text><text x="{middle:.1f}" y="{base + 41:.1f}" '
        f'text-anchor="middle">{escape(x_label)}</text></g>'
    )


def _break(frame: _Frame) -> str:
    """A zigzag over the whole width: below it the axis is not to scale."""
    teeth = "l5-5l5 5" * int((frame.right - frame.left) // 10)
    return (
        f'<g class="soft" color="{SOFT}"><path d="M{frame.left:.1f} {frame.bottom + 3:.1f}{teeth}" '
        'fill="none" stroke="currentColor" stroke-width=".9"/></g>'
    )


def _dodge(frame: _Frame, ticks: Sequence[float], count: int) -> float:
    """How far apart the points of two series at the same share stand: far enough to see both whiskers."""
    places = sorted(frame.x(tick) for tick in ticks)
    room = min((b - a for a, b in pairwise(places)), default=60.0)
    return min(9.0, 0.7 * room / max(count, 1))


def _line(frame: _Frame, series: Series, look: int, aside: float, start: Point | None) -> str:
    """Line, whiskers and markers of one series, its points moved ``aside`` pixels."""
    places = [(frame.x(p.x) + aside, frame.y(p.y)) for p in series.points]
    if start is not None and all(p.x < start.x for p in series.points):
        places.insert(0, (frame.x(start.x), frame.y(start.y)))
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    line = (
        f'<path d="M{path}" fill="none" stroke="currentColor" stroke-width="2.2" stroke-linejoin="round"'
        f"{_dashed(DASHES[look])}/>"
    )
    marks = [_mark(frame, p, frame.x(p.x) + aside, MARKERS[look], series.name) for p in series.points]
    return line + "".join(whisker for whisker, _ in marks) + "".join(marker for _, marker in marks)


def _mark(frame: _Frame, point: Point, x: float, marker: str, name: str) -> tuple[str, str]:
    """Whisker and marker of a point; the marker says its numbers when pointed at."""
    said = f"{name}, " if name else ""
    said += f"{percent(point.x)} kept: {percent(point.y, 1)}"
    whisker = ""
    if point.low is not None and point.high is not None:
        low, high = frame.y(point.low), frame.y(point.high)
        said += f" ({percent(point.low, 1)} to {percent(point.high, 1)})"
        whisker = (
            f'<path d="M{x - 3:.1f} {high:.1f}h6m-3 0V{low:.1f}m-3 0h6" fill="none" stroke="currentColor" '
            'stroke-width="1.3"/>'
        )
    shape = (
        f'<path class="halo" d="{marker}" transform="translate({x:.1f} {frame.y(point.y):.1f})" '
        f'stroke="#ffffff" stroke-width="1.2"><title>{escape(said)}</title></path>'
    )
    return whisker, shape


def _labels(frame: _Frame, base: float, labels: Sequence[tuple[float, float, str, str, str]]) -> str:
    """Names to the right of the plot, at the height of their lines unless they would touch."""
    order = sorted(range(len(labels)), key=lambda i: labels[i][0])
    heights = apart([labels[i][0] for i in order], frame.top, base)
    left = frame.right + 12
    out = []
    for i, y in zip(order, heights, strict=True):
        wanted, end, group, name, marker = labels[i]
        out.append(group)
        if marker:
            out.append(f'<path d="{marker}" transform="translate({left + 6:.1f} {y:.1f})"/>')
        if abs(wanted - y) > 2 or end < frame.right - 20:
            out.append(
                f'<path d="M{end:.1f} {wanted:.1f}L{frame.right:.1f} {wanted:.1f}L{left - 1:.1f} {y:.1f}" '
                'fill="none" stroke="currentColor" stroke-width=".8" stroke-opacity=".55"/>'
            )
        words = (
            f'<text x="{left + (16 if marker else 2):.1f}" y="{y + 4.5:.1f}">{escape(shortened(name))}</text>'
        )
        # Names of series in the colour of text: their own is too light for letters.
        out.append("</g>" + words if marker else words + "</g>")
    return "".join(out)


def apart(wanted: Sequence[float], top: float, bottom: float) -> list[float]:
    """Ascending heights, moved as little as simple means allow until they are `_APART` or more apart."""
    out: list[float] = []
    for y in wanted:
        out.append(max(y, top if not out else out[-1] + _APART))
    limit = max(bottom, top + _APART * (len(out) - 1))
    for i in range(len(out) - 1, -1, -1):
        out[i] = min(out[i], limit)
        limit = out[i] - _APART
    return out
