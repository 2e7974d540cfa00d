"""One self-contained HTML page about one pruned answer: the words, the pictures, the numbers.

Nothing is fetched and no script runs; the page carries a content security policy that says so. It
can be mailed, archived, or opened from disk.
"""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..files import write_atomically
from .style import document

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_LEGEND = (
    "Clear patches with a line around them are the tokens the language model sees. Dark ones were dropped."
)


@dataclass(frozen=True)
class Panel:
    """One camera on the page.

    ``picture``: JPEG bytes, as `overlay_jpeg` returns them. ``before``, ``kept``: token counts.
    ``yaw_deg``: where the camera looks, 0 ahead, positive to the left; None when unknown.
    ``note``: a remark under the picture.
    """

    name: str
    picture: bytes
    before: int
    kept: int
    yaw_deg: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Timing:
    """One measured stage in milliseconds; None where it was not measured or does not exist."""

    stage: str
    pruned: float | None
    unpruned: float | None = None


@dataclass(frozen=True)
class Asked:
    """One of many questions: the right answer, and the answers with few and with all tokens."""

    question: str
    wanted: str
    pruned: str
    unpruned: str


@dataclass(frozen=True)
class Report:
    """Everything on the page. All text is escaped when rendered.

    ``unpruned_answer``: the answer of the same model with all tokens, if it was asked.
    ``facts``: name -> value for the footer (model, method, settings, versions, hardware, date).
    ``notes``: warnings shown above everything else.
    ``asked``: more questions about the same pictures. ``section``: HTML shown before the footer, as it
    stands, with the styles ``section_css``; never made of a model's words unescaped.
    """

    title: str
    question: str
    answer: str
    panels: Sequence[Panel]
    unpruned_answer: str | None = None
    times: Sequence[Timing] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    asked: Sequence[Asked] = ()
    section: str = ""
    section_css: str = ""


def write_page(report: Report, path: str | Path) -> Path:
    """Render ``report`` into ``path``; a reader sees the old file or the whole new one.

    Raises:
        PruneError: the folder is missing, or the file cannot be written.
    """
    path = Path(path)
    write_atomically(path, render(report))
    return path


def render(report: Report) -> str:
    """The page as one string of HTML."""
    times = _times(report)
    tables = f'<div class="tables"><section>{_tokens(report)}</section><section>{times}</section></div>'
    body = (
        "".join(f'<p class="note" role="note">{_e(note)}</p>\n' for note in report.notes)
        + _words(report)
        + _figures(report)
        + f"<h2>What each camera keeps</h2>\n{_surround(report.panels)}"
        + (tables if times else _tokens(report))
        + _asked(report)
        + report.section
        + _footer(report)
    )
    return document(_e(report.title), report.section_css, body, pictures=True)


def _e(text: object) -> str:
    # Control characters, which models do emit, are not allowed in HTML even when escaped.
    return html.escape(_CONTROL.sub("\ufffd", str(text)), quote=True)


def _percent(kept: int, before: int) -> str:
    share = 100 * kept / before if before else 0.0
    return f"{share:.1f}%".replace(".0%", "%")


def _ms(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _totals(report: Report) -> tuple[int, int]:
    return sum(p.before for p in report.panels), sum(p.kept for p in report.panels)


def _words(report: Report) -> str:
    def answer(label: str, text: str) -> str:
        shown = _e(text.strip()) or "<i>(empty)</i>"
        return f'<div><p class="label">{label}</p><p class="words">{shown}</p></div>'

    before, kept = _totals(report)
    answers = answer(f"Answer with {_percent(kept, before)} of the visual tokens", report.answer)
    two = ""
    if report.unpruned_answer is not None:
        answers += answer("Answer with all tokens", report.unpruned_answer)
        two = " two"
    return (
        f'<section class="card ask"><p class="label">Question</p>'
        f'<p class="question words">{_e(report.question)}</p>'
        f'<div class="answers{two}">{answers}</div></section>\n'
    )


def _figures(report: Report) -> str:
    """The counts and the first three times, large."""
    before, kept = _totals(report)
    cards = [("Visual tokens kept", f"{kept:,}", "", f"of {before:,} ({_percent(kept, before)})")]
    for timing in [t for t in report.times if t.pruned is not None][:3]:
        beside = "unpruned: no such step"
        if timing.unpruned is not None:
            beside = f"unpruned {_ms(timing.unpruned)} ms"
            if timing.pruned and timing.unpruned / timing.pruned >= 1.05:
                beside += f", {timing.unpruned / timing.pruned:.1f}× faster"
        elif all(t.unpruned is None for t in report.times):
            beside = ""
        cards.append((_e(timing.stage), _ms(timing.pruned), " <small>ms</small>", beside))
    shown = "".join(
        f'<div class="card"><p class="label">{name}</p><p class="big">{value}{unit}</p>'
        f'<p class="label">{beside}</p></div>'
        for name, value, unit, beside in cards
    )
    return f'<section class="figures{" odd" if len(cards) % 2 else ""}">{shown}</section>\n'


def arrange(panels: Sequence[Panel]) -> tuple[list[Panel], list[Panel]] | None:
    """Front and back row as seen from above, left to right; None when the yaws do not allow it.

    A camera within 90 degrees of straight ahead is in front.
    """
    turned: list[tuple[float, Panel]] = []
    for panel in panels:
        if panel.yaw_deg is None or not math.isfinite(panel.yaw_deg):
            return None
        turned.append(((panel.yaw_deg + 180) % 360 - 180, panel))
    front = [p for yaw, p in sorted(turned, key=lambda t: -t[0]) if abs(yaw) < 90]
    back = [p for yaw, p in sorted(turned, key=lambda t: t[0] % 360) if abs(yaw) >= 90]
    return (front, back) if max(len(front), len(back)) <= 4 else None


def _surround(panels: Sequence[Panel]) -> str:
    rows = arrange(panels)
    if rows is None:
        shown = "".join(_panel(p) for p in panels)
        return f'<div class="cols3"><div class="row flow">{shown}</div></div><p class="hint">{_LEGEND}</p>\n'
    front, back = rows
    out = []
    for row in (front, back):
        middle = len(row) // 2 if len(row) % 2 else None
        out.append("".join(_panel(p, lead=i == middle) for i, p in enumerate(row)))
    cols = max(len(front), len(back))
    first, last = (f'<div class="row">{row}</div>\n' if row else "" for row in out)
    return f'<div class="surround cols{cols}">{first}{_ego(panels)}{last}</div>\n'


def _panel(panel: Panel, lead: bool = False) -> str:
    data = base64.b64encode(panel.picture).decode()
    note = f'<span class="aside">{_e(panel.note)}</span>' if panel.note else ""
    return (
        f'<figure class="panel card{" lead" if lead else ""}">'
        f'<img alt="{_e(panel.name)}: kept patches are clear, dropped ones dark"'
        f' src="data:image/jpeg;base64,{data}">'
        f"<figcaption><b>{_e(panel.name)}</b>"
        f"<span>{panel.kept:,} of {panel.before:,} kept ({_percent(panel.kept, panel.before)})</span>"
        f"{note}</figcaption></figure>"
    )


def _ego(panels: Sequence[Panel]) -> str:
    """The car seen from above, with one fan per camera: the longer, the larger the share it keeps."""
    share = [p.kept / p.before if p.before else 0.0 for p in panels]
    top = max(share, default=0.0) or 1.0
    fans = []
    for panel, part in zip(panels, share, strict=True):
        radius = 44 + 36 * part / top  # the shortest still shows beyond the car
        # Page coordinates: up is ahead, so yaw (positive to the left) turns against the clock.
        angles = [math.radians(90 + (panel.yaw_deg or 0.0) + offset) for offset in (-24, 24)]
        (ax, ay), (bx, by) = ((105 + radius * math.cos(a), 85 - radius * math.sin(a)) for a in angles)
        fans.append(
            f'<path class="fan" d="M105 85L{ax:.1f} {ay:.1f}'
            f'A{radius:.1f} {radius:.1f} 0 0 0 {bx:.1f} {by:.1f}Z"/>'
        )
    return (
        f'<div class="ego"><p>{_LEGEND}</p>'
        '<svg viewBox="0 0 210 170" role="img" aria-label="The car from above; one fan per camera">'
        + "".join(fans)
        + '<rect class="body" x="89" y="50" width="32" height="70" rx="10"/>'
        '<path class="glass" d="M93 71q12-6 24 0l-2 10h-20zM95 104h20l2 7q-12 4-24 0z"/>'
        '<rect class="lamp" x="92" y="52" width="7" height="3" rx="1.5"/>'
        '<rect class="lamp" x="111" y="52" width="7" height="3" rx="1.5"/></svg>'
        "<p>Seen from above, driving upwards. The longer a fan, the larger the share of tokens its camera "
        "keeps.</p>"
        "</div>\n"
    )


def _tokens(report: Report) -> str:
    def line(name: str, kept: int, before: int, cell: str) -> str:
        width = 100 * kept / before if before else 0.0
        bar = (
            '<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect class="track" width="100" height="8"/>'
            f'<rect class="fill" width="{width:.2f}" height="8"/></svg>'
        )
        return (
            f'<tr><th scope="row">{name}</th><{cell}>{before:,}</{cell}><{cell}>{kept:,}</{cell}>'
            f'<{cell}>{_percent(kept, before)}</{cell}><td class="bar">{bar}</td></tr>'
        )

    before, kept = _totals(report)
    body = "".join(line(_e(p.name), p.kept, p.before, "td") for p in report.panels)
    return (
        '<h2>Tokens</h2><div class="card scroll"><table><thead><tr><th scope="col">Camera</th>'
        '<th scope="col">Tokens</th><th scope="col">Kept</th><th scope="col">Share</th><td></td></tr></thead>'
        f"<tbody>{body}</tbody><tfoot>{line('All cameras', kept, before, 'td')}</tfoot></table></div>\n"
    )


def _times(report: Report) -> str:
    if not report.times:
        return ""
    both = any(t.unpruned is not None for t in report.times)
    body = "".join(
        f'<tr><th scope="row">{_e(t.stage)}</th><td>{_ms(t.pruned)}</td>'
        + (f"<td>{_ms(t.unpruned)}</td>" if both else "")
        + "</tr>"
        for t in report.times
    )
    head = (
        '<th scope="col">Pruned</th><th scope="col">Unpruned</th>' if both else '<th scope="col">Pruned</th>'
    )
    return (
        f'<h2>Milliseconds</h2><div class="card scroll"><table><thead><tr><th scope="col">Stage</th>'
        f"{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>\n"
    )


def _asked(report: Report) -> str:
    if not report.asked:
        return ""

    def cell(given: str, wanted: str) -> str:
        mark, word = ("✓", "right") if given == wanted else ("✗", "wrong")
        return f'<td>{_e(given) or "(empty)"} <span role="img" aria-label="{word}">{mark}</span></td>'

    body = "".join(
        f'<tr><th scope="row">{_e(a.question)}</th><td>{_e(a.wanted)}</td>'
        f"{cell(a.pruned, a.wanted)}{cell(a.unpruned, a.wanted)}</tr>"
        for a in report.asked
    )
    return (
        '<h2>Questions about these pictures</h2><div class="card scroll"><table><thead><tr>'
        '<th scope="col">Question</th><th scope="col">Right</th><th scope="col">Pruned</th>'
        f'<th scope="col">All tokens</th></tr></thead><tbody>{body}</tbody></table></div>\n'
    )


def _footer(report: Report) -> str:
    facts = "".join(f"<div><dt>{_e(k)}</dt><dd>{_e(v)}</dd></div>" for k, v in report.facts.items())
    return f"<footer><dl>{facts}</dl></footer>\n" if facts else ""
