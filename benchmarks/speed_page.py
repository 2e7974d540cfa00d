"""Writes what the speed suite found where readers look: a page per machine, README, docs/speed.md.

    python benchmarks/gpu_suite.py                            measures
    python benchmarks/speed_page.py out/speed/suite.json      keeps the result and writes
    python benchmarks/speed_page.py                           writes anew from the kept results
    python benchmarks/speed_page.py --check                   changes nothing, fails if something differs

Results are kept as benchmarks/results/speed_<machine>.json, each with its page beside it and its picture in
docs/images. Between the markers in README.md and docs/speed.md only what this script says stands there.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from comparison import block, put, rounded
from prune2drive.files import write_atomically
from prune2drive.profiling.suite import load_suite
from prune2drive.report.evaluation import tables_markdown
from prune2drive.report.evaluation_tables import NONE, Table, number
from prune2drive.report.speed import picture, speed_page
from prune2drive.report.speed_rows import (
    Row,
    Suite,
    at,
    case_of,
    machine,
    median,
    memory,
    mode_of,
    ms,
    on_gpu,
    prefill_groups,
    share,
    times_of,
)
from prune2drive.report.speed_tables import (
    break_even_table,
    break_even_words,
    headline,
    kernel_table,
    predictions_table,
    steps_table,
)

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
WIDTH = 110
SHOWN = 0.1
"""The retention that the README tells of."""
HEADS = (
    "10% of the tokens kept",
    "prefill",
    "time to first token",
    "decode, per token",
    "KV cache",
    "choosing",
    "of the limit",
)
COMMAND = "`python benchmarks/gpu_suite.py`"
NOTHING = (
    "**GPU figures have not been measured yet**, and no result of the speed suite is committed; "
    f"{COMMAND} makes one on your machine."
)
NO_GPU = (
    "**No GPU result is committed yet**: the figures above are of the CPU only, and say nothing about a GPU. "
    f"{COMMAND} measures everything on one CUDA GPU, by our reckoning in ten minutes."
)

Suites = dict[str, Suite]
"""Name of the result without "speed_" -> the result."""


def slug(suite: Suite) -> str:
    """The name of a machine in file names: "h100" of "NVIDIA H100 80GB HBM3", "cpu" without a GPU."""
    if not on_gpu(suite):
        return "cpu"
    words = re.findall(r"[a-z0-9]+", str(at(suite, "hardware")["gpu"]).lower())
    return next((w for w in words if re.search(r"\d", w)), words[0] if words else "gpu")


def committed(folder: Path | None = None) -> Suites:
    """The kept results: those of GPUs first."""
    folder = RESULTS if folder is None else folder
    found = {p.stem.removeprefix("speed_"): load_suite(p) for p in sorted(folder.glob("speed_*.json"))}
    return dict(sorted(found.items(), key=lambda item: (not on_gpu(item[1]), item[0])))


def readme(suites: Suites) -> str:
    """The table of the README, with the machine of each part, and what has not been measured."""
    parts = []
    for name, suite in suites.items():
        lines = list(_lines(suite))
        said = wrapped(f"{headline(suite)} [All figures](benchmarks/results/speed_{name}.html).")
        if lines:
            parts.append(
                "\n".join([f"| {' | '.join(HEADS)} |", "|---|" + "---:|" * (len(HEADS) - 1), *lines])
            )
        parts.append(said)
        if picture(suite):
            parts.append(f"![Time to first token on {machine(suite)}](docs/images/speed-{name}.svg)")
    if not suites:
        return wrapped(NOTHING)
    if not any(on_gpu(suite) for suite in suites.values()):
        parts.append(wrapped(NO_GPU))
    return "\n\n".join(parts)


def docs(suites: Suites) -> str:
    """The tables of docs/speed.md about what each change brings."""
    return _told(suites, lambda suite: [kernel_table(suite), steps_table(suite), predictions_table(suite)])


def break_even(suites: Suites) -> str:
    """Where pruning does not pay, machine by machine."""
    found = {n: s for n, s in suites.items() if break_even_table(s)}
    if not found:
        return wrapped(
            f"Break-even points have not been measured yet; {COMMAND} finds them for your machine."
        )
    return _told(found, lambda suite: [break_even_table(suite)], break_even_words)


def _told(
    suites: Suites,
    make: Callable[[Suite], list[Table | None]],
    say: Callable[[Suite], str] = lambda suite: "",
) -> str:
    parts = []
    for suite in suites.values():
        tables: list[Table] = [table for table in make(suite) if table]
        if tables:
            parts.append(f"On **{machine(suite)}**:")
            parts += [wrapped(said)] if (said := say(suite)) else []
            parts += [_wrapped_outside(tables_markdown(map(_bracketed, tables)))]
    if not parts:
        return wrapped(NOTHING)
    if not any(on_gpu(suite) for suite in suites.values()):
        parts.append(wrapped(NO_GPU))
    return "\n\n".join(parts)


def _lines(suite: Suite) -> Iterator[str]:
    """A row of the README's table per shape and batch, captured where that was measured."""
    for _, group in prefill_groups(suite):
        modes = {mode_of(row) for row in group}
        mode = "captured" if "captured" in modes else next(iter(modes))
        kept = {number(row["retention"]): row for row in group if mode_of(row) == mode}
        full, pruned = kept.get(1.0), kept.get(SHOWN)
        if pruned is not None:
            yield f"| {' | '.join(_cells(full or {}, pruned, mode))} |"


def _cells(full: Row, pruned: Row, mode: str) -> Iterator[str]:
    yield f"{case_of(pruned)}, {mode}"
    for time in ("prefill_ms", "ttft_ms", "decode_ms_per_token"):
        yield _both(ms(median(full, time)), ms(median(pruned, time)), pruned, f"{time[:-3]}_ratio")
    yield _both(memory(full.get("kv_bytes")), memory(pruned.get("kv_bytes")))
    yield ms(median(pruned, "select_ms"))
    yield share(pruned.get("share_of_limit"))


def _both(before: str, after: str, pruned: Row | None = None, ratio: str = "") -> str:
    """ "2.53 s to 185 ms, **13.7x**", as far as it was measured."""
    if before == after == NONE:
        return NONE
    found = times_of(pruned.get(ratio)) if pruned is not None else NONE
    return f"{before} to {after}" + ("" if found == NONE else f", **{found}**")


def wrapped(text: str) -> str:
    """A paragraph in lines that keep code whole."""
    text = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\0"), text)
    filled = textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    return filled.replace("\0", " ")


def _bracketed(table: Table) -> Table:
    """Remarks in brackets: markdown has no smaller letters."""
    rows = [[replace(c, small=f"({c.small})") if c.small else c for c in row] for row in table.rows]
    return replace(table, rows=rows)


def _wrapped_outside(text: str) -> str:
    """Lines outside tables, wrapped."""
    lines = [
        line if line.startswith("|") or not line else wrapped(line) for line in text.strip().splitlines()
    ]
    return "\n".join(lines)


def blocks(suites: Suites) -> list[tuple[Path, str, str]]:
    """(file, name of the markers, text between them)."""
    page = ROOT / "docs" / "speed.md"
    return [
        (ROOT / "README.md", "speed", readme(suites)),
        (page, "speed", docs(suites)),
        (page, "break-even", break_even(suites)),
    ]


def files(suites: Suites) -> dict[Path, str]:
    """Every page and picture with its text."""
    out = {RESULTS / f"speed_{name}.html": speed_page(suite) for name, suite in suites.items()}
    for name, suite in suites.items():
        if (drawn := picture(suite)) is not None:
            out[ROOT / "docs" / "images" / f"speed-{name}.svg"] = drawn
    return out


def stale(suites: Suites) -> list[str]:
    """What is committed but not what would be written: one line each."""
    out = [
        f"{path.relative_to(ROOT)}: {name}"
        for path, name, text in blocks(suites)
        if block(name, text) not in path.read_text()
    ]
    for path, text in files(suites).items():
        if not path.exists() or path.read_text() != text:
            out.append(str(path.relative_to(ROOT)))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Keep the given results, then write or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="*", type=Path, help="suite.json of benchmarks/gpu_suite.py")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if something differs")
    args = parser.parse_args(argv)
    if args.check:
        lines = stale(committed())
        print("\n".join([*lines, "run: python benchmarks/speed_page.py"] if lines else ["up to date"]))
        return int(bool(lines))
    for path in args.suites:
        if path.resolve().parent != RESULTS:
            suite = load_suite(path)
            write_atomically(
                RESULTS / f"speed_{slug(suite)}.json", json.dumps(rounded(suite), indent=1) + "\n"
            )
    suites = committed()
    for path, text in files(suites).items():
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, text)
    for path, name, text in blocks(suites):
        put(path, name, text)
    print(f"{len(suites)} results told of")
    return 0


if __name__ == "__main__":
    sys.exit(main())
