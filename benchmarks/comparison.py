"""Writes what the comparison of methods found where readers look: README, docs/comparison.md, the chart.

    prune2drive compare --scenes 200 --out out/comparison        measures (`make comparison` does both)
    python benchmarks/comparison.py out/comparison               writes

Between the markers in README.md and docs/comparison.md only what this script says stands there; the summary
it was made from is kept as benchmarks/results/comparison.json. Without a folder it writes anew from there.
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from pathlib import Path
from typing import Any

from prune2drive.files import write_atomically
from prune2drive.report.compare import chart
from prune2drive.report.compare_text import markdown_tables

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "comparison.json"
PICTURE = ROOT / "docs" / "images" / "tradeoff.svg"
RATES = (0.25, 0.10, 0.05)
WIDTH = 116
SHOWN = 0.10
"""The budget at which differences and costs are told."""

Row = dict[str, Any]


def percent(row: Row | None) -> str:
    """Accuracy with the longer half of its interval, in percent."""
    if row is None:
        return ""
    overall = row["accuracy"]["overall"]
    value, low, high = (overall[key] for key in ("value", "low", "high"))
    return f"{100 * value:.1f} ± {100 * max(high - value, value - low):.1f}"


def points(row: Row | None, rival: str) -> str:
    """Paired difference in points with its interval; bold where the interval excludes 0."""
    found = (row or {}).get("difference", {}).get(rival)
    if not found:
        return ""
    value, low, high = (100 * found["overall"][key] for key in ("value", "low", "high"))
    text = f"{value:+.1f} ({low:.1f} to {high:.1f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def cost(row: Row | None, key: str, digits: str) -> str:
    """A figure of the cost measurement, empty where none was taken."""
    costs = (row or {}).get("costs") or {}
    return "" if costs.get(key) is None else format(costs[key], digits)


def table(rows: dict[str, dict[float, Row]], at: float, heads: list[str]) -> list[str]:
    """One line per method, the most accurate at ``at`` first; methods without that budget last."""

    def rank(item: tuple[str, dict[float, Row]]) -> tuple[bool, float]:
        by_rate = item[1]
        best = by_rate.get(at) or next(iter(by_rate.values()))
        return at not in by_rate, -best["accuracy"]["overall"]["value"]

    lines = [f"| {' | '.join(heads)} |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for title, by_rate in sorted(rows.items(), key=rank):
        one = next(iter(by_rate.values()))
        shown = by_rate.get(at)
        cells = [title, one["stage"], *(percent(by_rate.get(rate)) for rate in RATES)]
        cells += [points(shown, "random"), points(shown, "tfps"), cost(shown, "flops_ratio", ".1%")]
        cells += [cost(shown, "choose_ms", ".1f"), cost(shown, "prefill_ratio", ".2f")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def readme(summary: dict[str, Any]) -> str:
    """The two tables of the README: equal averages, and equal shares kept inside."""
    average: dict[str, dict[float, Row]] = {}
    kept: dict[str, dict[float, Row]] = {}
    for row in summary["contenders"]:
        if row["positions"] == "keep" and row["retention"] in RATES:
            group = average if row["budget"] == "average" else kept
            group.setdefault(row["title"], {})[row["retention"]] = row
    bounds = {row["method"]: percent(row) for row in summary["contenders"] if row["retention"] is None}
    heads = ["tokens a layer sees on average", "chooses", "25%", "10%", "5%"]
    heads += ["10% against random", "10% against T-FPS", "FLOPs", "choosing, ms", "prefill"]
    inside = [f"kept at layer {summary['layer']}", *heads[1:5], *heads[5:]]
    said = (
        f"{summary['scenes']} scenes, {summary['questions']:,} questions of the {summary['split']} split; "
        f"unpruned {bounds.get('unpruned')}, grey pictures {bounds.get('blind')}, most frequent answer "
        f"{bounds.get('guess')}. 95% intervals over scenes, differences paired; FLOPs and prefill (choosing "
        "included) as a share of unpruned at 10%, medians for one prompt at a time on "
        f"{summary['hardware'].get('cpu') or summary['hardware'].get('gpu')}. An empty cell: "
        "the layers before the first choice alone see more."
    )
    parts = [*table(average, SHOWN, heads), "", *table(kept, SHOWN, inside), "", said]
    return "\n".join(parts)


def rounded(value: Any) -> Any:
    """Plain data with five digits behind the point, which is more than any interval is worth."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 5) if isinstance(value, float) else value


def block(name: str, text: str) -> str:
    """What stands in a file between the markers of ``name``, markers included."""
    begin, end = (f"<!-- {name}: {what} -->" for what in ("written by a script in benchmarks", "end"))
    lines = [
        line if line.startswith("|") else textwrap.fill(line, WIDTH) for line in text.strip().splitlines()
    ]
    return "\n".join([begin, "", *lines, "", end])


def put(path: Path, name: str, text: str) -> None:
    """Write ``text`` between the markers ``name`` in a file."""
    found, new = path.read_text(), block(name, text)
    begin, end = new.splitlines()[0], new.splitlines()[-1]
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(found):
        raise SystemExit(f"{path}: no markers {begin!r} ... {end!r}")
    write_atomically(path, pattern.sub(lambda _: new, found))


def main() -> None:
    """Take a folder's summary, if one is given, and write everything that is made from it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="of prune2drive compare")
    args = parser.parse_args()
    if args.folder is not None:
        found = json.loads((args.folder / "summary.json").read_text())
        write_atomically(RESULT, json.dumps(rounded(found)) + "\n")
    summary = json.loads(RESULT.read_text())
    put(ROOT / "README.md", "comparison", readme(summary))
    put(ROOT / "docs" / "comparison.md", "tables", markdown_tables(summary))
    write_atomically(PICTURE, chart(summary))


if __name__ == "__main__":
    main()
