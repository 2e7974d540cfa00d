"""The result of a comparison at equal budgets as one page: the trade-off, the tables, and what was kept."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import PruneError
from ..files import write_atomically
from ..rig import NUSCENES
from ..world.generate import scene
from ..world.labels import GRID
from ..world.render import render as drawn
from .chart import escape, percent
from .compare_chart import tradeoff_svg
from .compare_tables import (
    Contender,
    Group,
    bounds_of,
    groups_of,
    headline,
    impossible_table,
    name_of,
    overall_table,
    tokens_of,
    type_table,
)
from .evaluation import EVALUATION_CSS
from .evaluation_tables import (
    NONE,
    Summary,
    Table,
    interval_text,
    number,
    overall,
    share_of,
    table_html,
    whole,
)
from .overlay import DIM, OUTLINE
from .page import Panel, arrange
from .style import document

Kept = Mapping[str, Any]

_LINE = ", ".join(map(str, OUTLINE))

COMPARE_CSS = (
    EVALUATION_CSS
    + """
.tradeoff { padding: 14px 16px 12px; }
.tradeoff .hint { max-width: none; margin-top: 6px; }
.wide .hint { max-width: 110ch; }
.wide table { font-size: 14px; }
.wide th, .wide td { padding: 7px 8px; }
.wide td:nth-child(2) { text-align: left; }
.wide thead th:nth-child(2) { text-align: left; }
.wide td small, .wide tbody th small { display: block; font-size: 12px; line-height: 1.3; }
.types table { font-size: 14px; }
.types th, .types td { padding: 6px 8px; }
.types td small { display: inline-block; width: 1em; text-align: center; font-size: 10px; }
.types td:not(:has(small))::after { content: ""; display: inline-block; width: 1em; margin-left: .25em; }
.reasons td { white-space: normal; text-align: left; min-width: 220px; }
.reasons thead th { text-align: left; }
.store { position: absolute; width: 0; height: 0; overflow: hidden; }
.kept { margin-top: 12px; }
.kept summary { cursor: pointer; padding: 12px 16px; font-size: 15px; font-weight: 620; }
.kept[open] summary { border-bottom: 1px solid var(--line); }
.kept summary span { font-weight: 400; color: var(--soft); }
.picks { padding: 12px 16px 14px; }
.picks + .picks { border-top: 1px solid var(--line); }
.picks h3 { font-size: 14.5px; font-weight: 620; display: flex; flex-wrap: wrap; gap: 0 12px;
  margin-bottom: 8px; overflow-wrap: anywhere; }
.picks h3 span { font-weight: 400; color: var(--soft); font-variant-numeric: tabular-nums; }
.six { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 8px; }
.six svg { display: block; width: 100%; height: auto; aspect-ratio: 16 / 9; background: #000;
  border-radius: 4px; }
.six .dark { fill: #000; fill-rule: evenodd; stroke-opacity: .9; stroke-width: 1.25; }
.six figcaption { display: flex; gap: 7px; font-size: 11px; margin-top: 2px;
  color: var(--soft); font-variant-numeric: tabular-nums; }
.six figcaption b { font-weight: 400; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
@media (max-width: 640px) {
  .tradeoff { padding: 10px 8px 8px; }
  .six { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  .picks { padding: 10px 10px 12px; }
  .types td small { display: inline-block; }
}
"""
    # The looks of `overlay`, so that pictures on all pages read alike.
    + f".six .dark {{ fill-opacity: {1 - DIM:g}; stroke: rgb({_LINE}); }}\n"
)
"""What the page needs beside the style sheet that all pages share."""


def write(path: str | Path, summary: Summary, kept: Kept | None) -> None:
    """Write the page about a comparison; a reader sees the old file or the whole new one.

    Args:
        summary: what a comparison saves, see `compare_tables`.
        kept: which tokens every contender kept in one scene: ``{"sample": "test/0", "contenders": {name:
            {camera: [indices]}}}``; without it the page shows no pictures.

    Raises:
        PruneError: the folder is missing, the file cannot be written, or ``kept`` names no scene or tokens
            that a picture does not have.
    """
    write_atomically(path, render(summary, kept))


def chart(summary: Summary, *, width: int = 1000, height: int = 560) -> str:
    """The trade-off chart as a file of its own, on white; sizes of the view box in pixels."""
    return tradeoff_svg(summary, width=width, height=height, background="#ffffff")


def render(summary: Summary, kept: Kept | None = None) -> str:
    """The page as one string of HTML: nothing is fetched, no script runs, and its policy says so."""
    title = f"Methods at equal budgets: {summary.get('benchmark', 'comparison')}"
    facts = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in _facts(summary).items()
    )
    tables = [
        (overall_table(summary), "wide"),
        (type_table(summary), "types"),
        (impossible_table(summary), "reasons"),
    ]
    body = (
        f'<p class="lead words">{escape(headline(summary))}</p>\n{_cards(summary)}{_tradeoff(summary)}'
        + "".join(_section(table, name) for table, name in tables[:2] if table)
        + _pictures(summary, kept)
        + "".join(_section(table, name) for table, name in tables[2:] if table)
        + (f"<footer><dl>{facts}</dl></footer>\n" if facts else "")
    )
    return document(escape(title), COMPARE_CSS, body, pictures=True)


def _section(table: Table, name: str) -> str:
    return f'<h2>{escape(table.title)}</h2>\n<div class="{name}">{table_html(table)}</div>\n'


def _cards(summary: Summary) -> str:
    """The best contender at every average budget, and unpruned, large."""
    shown = [("unpruned", bound, "")] if (bound := bounds_of(summary).get("unpruned")) is not None else []
    for group in groups_of(summary):
        if group.budget == "average":
            best = group.contenders[0]
            random = next((c for c in group.contenders if c.get("method") == "random"), best)
            reached = share_of(overall(random))
            remark = "" if random is best or reached is None else f"random {percent(reached, 1)}"
            shown.append((f"best at {percent(group.retention)}: {best.get('method')}", best, remark))
    cards = [
        f'<div class="card"><p class="label words">{escape(label)}</p>'
        f'<p class="big">{percent(reached, 1)}</p>'
        + "".join(f'<p class="label">{escape(line)}</p>' for line in (_interval(one), remark) if line)
        + "</div>"
        for label, one, remark in shown[:6]
        if (reached := share_of(overall(one))) is not None
    ]
    if not cards:
        return ""
    return f'<section class="figures{" odd" if len(cards) % 2 else ""}">{"".join(cards)}</section>\n'


def _interval(contender: Contender) -> str:
    found = interval_text(overall(contender))
    return f"95% interval {found}" if found else ""


def _tradeoff(summary: Summary) -> str:
    if not groups_of(summary):
        return ""
    small = tradeoff_svg(summary, width=370, height=470).replace('class="chart"', 'class="chart small"', 1)
    return (
        '<h2>Accuracy against tokens</h2>\n<div class="card tradeoff">'
        f"{tradeoff_svg(summary)}{small}"
        '<p class="hint">Up and to the left is better. Whiskers: 95% intervals; the band is that of the '
        "unpruned model. Point at a mark for its name and figures. Marks that would hide one another stand "
        "a little beside their place.</p></div>\n"
    )


def _facts(summary: Summary) -> dict[str, str]:
    machine, packages = summary.get("hardware") or {}, summary.get("versions") or {}
    facts = {
        "Benchmark": summary.get("benchmark"),
        "Split": summary.get("split"),
        "Scenes": whole(summary.get("scenes")),
        "Questions": whole(summary.get("questions")),
        "Model": summary.get("model"),
        "Layers of the language model": whole(summary.get("depth")),
        "Visual tokens per scene": whole(summary.get("visual")),
        "Seed": summary.get("seed"),
        "Hardware": _machine(machine) if isinstance(machine, Mapping) else machine,
        "Versions": ", ".join(f"{k} {v}" for k, v in packages.items())
        if isinstance(packages, Mapping)
        else packages,
    }
    return {k: str(v) for k, v in facts.items() if v not in (None, "", NONE)}


def _machine(found: Mapping[str, Any]) -> str:
    words = [str(found[key]) for key in ("gpu", "cpu") if found.get(key)]
    if (cores := number(found.get("cores"))) is not None:
        words.append(f"{cores:.0f} {'core' if cores == 1 else 'cores'}")
    if (threads := number(found.get("threads"))) is not None:
        words.append(f"{threads:.0f} {'thread' if threads == 1 else 'threads'}")
    if (memory := number(found.get("ram_bytes"))) is not None:
        words.append(f"{memory / 2**30:.0f} GiB")
    return ", ".join(words)


def _pictures(summary: Summary, kept: Kept | None) -> str:
    """One scene as every contender keeps it: a row of pictures each, folded away by budget.

    Each picture is embedded once; a row lays what was dropped over it.
    """
    picks = (kept or {}).get("contenders") or {}
    shown = [(g, rows) for g in groups_of(summary) if (rows := _rows(g, picks))]
    if kept is None or not shown:
        return ""
    cameras = _in_order(NUSCENES.names)
    least = min(g.retention for g, _ in shown if g.budget == shown[0][0].budget)
    folds, unfolded = [], ' open=""'
    for group, rows in shown:
        first = group.budget == shown[0][0].budget and group.retention == least
        many = sum(len(names) for names, _, _ in rows)
        folds.append(
            f'<details class="card kept"{unfolded if first else ""}><summary>'
            f"{escape(group.title[:1].upper() + group.title[1:])} "
            f"<span>{many} {'contender' if many == 1 else 'contenders'}</span></summary>"
            + "".join(_row(names, one, found, cameras) for names, one, found in rows)
            + "</details>\n"
        )
    sample = str(kept.get("sample"))
    everything = {camera: range(GRID**2) for camera in cameras}
    hint = (
        "Clear patches with a line around them are the tokens that the last stage leaves, dark ones were "
        "dropped; of merged tokens the one they became is shown. The numbers count what a picture keeps."
    )
    if kept.get("question"):
        hint += f" Methods that read the question chose for: {kept['question']}"
    return (
        f"<h2>What is kept of one scene, {escape(sample)}</h2>\n{_store(sample, cameras)}"
        f'<div class="card kept">{_row(["everything"], {}, everything, cameras)}</div>\n{"".join(folds)}'
        f'<p class="hint">{escape(hint)}</p>\n'
    )


def _rows(group: Group, picks: Mapping[str, Any]) -> list[tuple[list[str], Contender, Mapping[str, Any]]]:
    """Names, first contender and picks of each row: those that keep the same by one method share one."""
    out: list[tuple[list[str], Contender, Mapping[str, Any]]] = []
    for one in group.contenders:
        found = picks.get(name_of(one))
        if not isinstance(found, Mapping):
            continue
        same = next((r for r in out if r[1].get("method") == one.get("method") and r[2] == found), None)
        if same is not None:
            same[0].append(name_of(one))
        else:
            out.append(([name_of(one)], one, found))
    return out


def _in_order(names: Sequence[str]) -> list[str]:
    """Cameras in front from left to right, then those behind: three columns show the car's surround."""
    rows = arrange([Panel(name, b"", 0, 0, NUSCENES.camera(name).yaw_deg) for name in names])
    return list(names) if rows is None else [panel.name for row in rows for panel in row]


def _row(names: Sequence[str], one: Contender, picks: Mapping[str, Any], cameras: Sequence[str]) -> str:
    said = []
    if (tokens := tokens_of(one)) is not None:
        said.append(f"{tokens:,.0f} tokens per layer")
    if (left := number(one.get("kept"))) is not None:
        said.append(f"{left:,.0f} left")
    if (reached := share_of(overall(one))) is not None:
        said.append(f"{percent(reached, 1)} right")
    figures = "".join(_picture(i, camera, picks.get(camera, ())) for i, camera in enumerate(cameras))
    beside = f"<span>{escape(', '.join(said))}</span>" if said else ""
    return (
        f'<section class="picks"><h3>{escape(", ".join(names))} {beside}</h3>'
        f'<div class="six">{figures}</div></section>'
    )


def _picture(index: int, camera: str, picks: Sequence[int]) -> str:
    """One camera's shared picture, dark but for its kept patches."""
    count = GRID**2
    kept = sorted({int(pick) for pick in picks})
    if kept and not 0 <= kept[0] <= kept[-1] < count:
        raise PruneError(
            f"{camera}: kept tokens reach from {kept[0]} to {kept[-1]}, but a picture has {count}. "
            "Compare again, so that the saved tokens belong to the saved result."
        )
    dark = ""
    if len(kept) < count:
        # The outer rectangle lies beyond the picture, so that its line is not seen.
        cells = "".join(f"M{pick % GRID} {pick // GRID}h1v1h-1z" for pick in kept)
        around = f"M-1-1h{GRID + 2}v{GRID + 2}h-{GRID + 2}z"
        dark = f'<path class="dark" vector-effect="non-scaling-stroke" d="{around}{cells}"/>'
    return (
        f'<figure><svg viewBox="0 0 {GRID} {GRID}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(camera)}: {len(kept)} of {count} kept"><use href="#view{index}"/>{dark}</svg>'
        f"<figcaption><b>{escape(camera)}</b><span>{len(kept)}</span></figcaption></figure>"
    )


def _store(sample: str, cameras: Sequence[str]) -> str:
    """The scene's pictures, each embedded once under a name that `_picture` draws again."""
    split, _, at = sample.partition("/")
    if not at.isdecimal():
        raise PruneError(f"{sample!r} is no scene of the world benchmark; they are named like 'test/0'.")
    pixels = drawn([scene(split, int(at))], NUSCENES).images[0].permute(0, 2, 3, 1).numpy()
    shown = []
    for index, camera in enumerate(cameras):
        buffer = io.BytesIO()
        picture = Image.fromarray(pixels[NUSCENES.names.index(camera)])
        picture.save(buffer, "JPEG", quality=90, optimize=True)
        data = base64.b64encode(buffer.getvalue()).decode()
        shown.append(
            f'<image id="view{index}" width="{GRID}" height="{GRID}" preserveAspectRatio="none" '
            f'href="data:image/jpeg;base64,{data}"/>'
        )
    return f'<svg class="store" aria-hidden="true"><defs>{"".join(shown)}</defs></svg>\n'
