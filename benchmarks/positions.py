"""Which position policy suits which question: paired differences to "keep", by type of question.

    prune2drive compare --methods tfps,divprune,visionzip,apet,pact --retention 0.25,0.10 \
        --positions keep,reindex,calibrate --budget average --costs 0 --scenes 200 --out out/positions
    python benchmarks/positions.py out/positions        writes docs/comparison.md and results/positions.json

Without a folder it writes the table anew from the results.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from comparison import ROOT, put
from prune2drive.benchmarks.contenders import TITLES
from prune2drive.benchmarks.statistics import resamples
from prune2drive.benchmarks.summary import Table
from prune2drive.files import write_atomically

RESULT = ROOT / "benchmarks" / "results" / "positions.json"


def measured(folder: Path) -> list[dict[str, Any]]:
    """One entry per method, budget and policy but "keep": what changes against "keep"."""
    rows: dict[str, dict[str, Any]] = {}
    for line in (folder / "records.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows.setdefault(row["setting"], {})[row["sample"]] = row
    scenes = sorted(set.intersection(*(set(by_scene) for by_scene in rows.values())))
    drawn = resamples(len(scenes))
    tables = {name: Table([by_scene[s] for s in scenes]) for name, by_scene in rows.items()}
    out = []
    for name, by_scene in rows.items():
        one = by_scene[scenes[0]]
        if one["positions"] in (None, "keep") or one["method"] not in TITLES:
            continue
        keep = tables[name.rpartition("/")[0]]
        out.append(
            {
                "method": one["method"],
                "retention": one["retention"],
                "positions": one["positions"],
                "scenes": len(scenes),
                "keep": keep.accuracy(drawn)["overall"],
                "difference": tables[name].gain(keep, drawn),
            }
        )
    return sorted(out, key=lambda e: (e["positions"], -e["retention"], e["method"]))


def table(entries: list[dict[str, Any]]) -> str:
    """Rows: policy, method and budget; columns: all questions and each type, in points."""

    def cell(found: dict[str, Any], interval: bool = False) -> str:
        value, low, high = (found[key] for key in ("value", "low", "high"))
        text = f"{100 * value:+.1f}" + (f" ({100 * low:.1f} to {100 * high:.1f})" if interval else "")
        sure = low is not None and (low > 0 or high < 0)
        return f"**{text}**" if sure else text

    types = list(entries[0]["difference"]["type"])
    lines = [f"| against keep, points | keep | all questions | {' | '.join(types)} |"]
    lines.append("|---|" + "---:|" * (len(types) + 2))
    for one in entries:
        name = f"{one['positions']}: {TITLES[one['method']]} at {one['retention']:.0%}"
        gain = one["difference"]
        cells = [name, f"{100 * one['keep']['value']:.1f}", cell(gain["overall"], interval=True)]
        lines.append(f"| {' | '.join([*cells, *(cell(gain['type'][kind]) for kind in types)])} |")
    scenes = entries[0]["scenes"]
    said = f"{scenes} scenes; paired differences, bold where the 95% interval over scenes excludes 0."
    return "\n".join([*lines, "", said])


def main() -> None:
    """Read a folder's records, if one is given, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="of prune2drive compare")
    args = parser.parse_args()
    if args.folder is not None:
        write_atomically(RESULT, json.dumps(measured(args.folder), indent=1) + "\n")
    put(ROOT / "docs" / "comparison.md", "positions", table(json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
