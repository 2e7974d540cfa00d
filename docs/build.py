"""Writes what the documentation tells of methods: docs/methods/*.md, and the tables in docs/methods.md.

    python docs/build.py            write
    python docs/build.py --check    change nothing, fail if something committed is not what would be written

Everything comes from the code: docstrings and fields of the methods, their needs, and what the families
of the contract tests lack. In docs/methods.md only what stands between markers is written.
"""

from __future__ import annotations

import argparse
import functools
import html
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")] if str(ROOT / "tests") not in sys.path else []

from families_table import FAMILIES  # noqa: E402
from legacy_standins import build_fork, build_remote  # noqa: E402
from methods_table import METHODS, MethodCase  # noqa: E402
from prune2drive.describe import Description, describe, meanings  # noqa: E402
from prune2drive.families import find_family  # noqa: E402
from prune2drive.families.base import Family  # noqa: E402
from prune2drive.families.remote import RemoteFamily  # noqa: E402
from prune2drive.selectors.base import Selector  # noqa: E402
from tiny_models import LAYERS  # noqa: E402

DOCS = ROOT / "docs"
INDEX = DOCS / "methods.md"
PAGES = DOCS / "methods"
WIDTH = 116

REMOTE = {"LLaVA forks": build_fork, "InternVLChat": build_remote}
"""Models with code of their own: name in the table -> a tiny stand-in."""
INSIDE = (
    "Tokens of a model with code of its own are chosen before its language model only; convert it to a stock "
    "class for methods that choose inside."
)
FEATURES = (
    "A model with code of its own shows the projected features only; convert it to a stock class for methods "
    "that need more."
)

_KEPT = "\0"
"""Stands for a space at which no line may end."""


# -- what is said


@functools.cache
def cases() -> list[MethodCase]:
    """The methods of this package; a third party's are told by that party."""
    return [case for case in METHODS if type(case.build()).__module__.startswith("prune2drive.")]


@functools.cache
def families() -> dict[str, Family | RemoteFamily]:
    """Every family of the contract tests, bound to a tiny model of its kind."""
    found = {case.name: find_family(case.model()) for case in FAMILIES}
    return found | {name: find_family(make()) for name, make in REMOTE.items()}


def reason(method: MethodCase, family: Family | RemoteFamily) -> str | None:
    """Why a method does not work with a family, in a sentence; None if it does."""
    stages = method.stages(LAYERS)
    if isinstance(family, RemoteFamily):
        if not all(isinstance(stage, Selector) for stage in stages):
            return INSIDE
        return FEATURES if any(stage.needs for stage in stages) else None
    for stage in stages:
        for signal in sorted(stage.needs):
            if (why := family.lacks(signal)) is not None:
                return f"{why[0].upper()}{why[1:]}."
    return None


# -- pages


def page(found: Description) -> str:
    """The page of one method."""
    package, kind = found.kind.rpartition(".")[0].rpartition(".")[0], found.kind.rpartition(".")[2]
    words = meanings()
    signals = "; ".join(f"{words[signal]} (`{signal}`)" for signal in found.signals)
    set_up = f", or an object of `{package}.{kind}` to set hyper-parameters" if found.parameters else ""
    facts = {
        "Use": f'`method="{found.name}"`{set_up}.',
        "Chooses": found.chooses,
        "Ranks": found.pool,
        "Reads the question": "yes." if found.reads_question else "no.",
        "Merges": found.merging,
        "Signals": f"{signals or 'none'}.",
        "Needs": found.needs,
        "Costs": found.costs,
        "Source": found.source,
    }
    out = [
        f"# {found.name}",
        "",
        f"<!-- Written by docs/build.py from the docstring of {kind}: change it there. -->",
        "",
        *wrapped(found.summary),
    ]
    for paragraph in found.idea:
        out += ["", *wrapped(paragraph)]
    out += ["", *(line for name, text in facts.items() for line in entry(f"**{name}**: {text}"))]
    out += ["", "## Formula", ""]
    if "\n" in found.formula:
        out += ["```text", *found.formula.replace("`", "").splitlines(), "```"]
    else:
        out += wrapped(found.formula)
    out += ["", "## Hyper-parameters", ""]
    out += parameters(found) if found.parameters else ["None."]
    out += ["", "## Decisions", "", "What the source leaves open, or what is done otherwise here:", ""]
    out += [line for decision in found.decisions for line in entry(decision)]
    return "\n".join([*out, "", "[All methods](../methods.md)", ""])


def parameters(found: Description) -> list[str]:
    """Fields, defaults and meanings: in HTML, whose cells may have several lines."""
    out = ["<table>", "<tr><th>name</th><th>default</th><th>meaning</th></tr>"]
    for parameter in found.parameters:
        meaning = re.sub(
            r"`([^`]*)`", r"<code>\1</code>", html.escape(single(parameter.meaning), quote=False)
        )
        default = html.escape(parameter.default, quote=False)
        out.append(f"<tr><td><code>{parameter.name}</code></td><td><code>{default}</code></td>")
        out += textwrap.wrap(
            f"<td>{meaning}</td></tr>", WIDTH, break_long_words=False, break_on_hyphens=False
        )
    return [*out, "</table>"]


def single(text: str) -> str:
    """Code marked as Markdown does."""
    return text.replace("``", "`")


def wrapped(text: str, indent: str = "") -> list[str]:
    """A paragraph in lines, none of which could be taken for something else than text."""
    text = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", _KEPT), single(text))
    text = re.sub(r" (?=[-+*=>#|] |\d+[.)] )", _KEPT, text)
    lines = textwrap.wrap(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace(_KEPT, " ") for line in lines]


def entry(text: str) -> list[str]:
    """An entry of a list."""
    return wrapped(f"- {text}".replace("- ", f"-{_KEPT}", 1), "  ")


# -- tables


def index(found: Sequence[Description]) -> list[str]:
    """What each method does, and the facts about it."""
    out = ["| method | what it does |", "|---|---|"]
    out += [f"| [{one.name}] | {cell(one.summary)} |" for one in found]
    out += [
        "",
        "| method | chooses | reads the question | merges | needs | source |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        reads, merges = ("yes" if flag else "no" for flag in (one.reads_question, one.merges))
        needs = ", ".join(one.signals) or "features"
        place = one.place.removesuffix(f" of {one.depth}")
        out.append(f"| [{one.name}] | {place} | {reads} | {merges} | {needs} | {source(one)} |")
    out += ["", *(f"[{one.name}]: methods/{one.name}.md" for one in found)]
    out += [f"[{number}]: https://arxiv.org/abs/{number}" for number in sorted(numbers(found))]
    return out


def source(found: Description) -> str:
    """Where a method comes from, in a cell: venue, with a link to the paper."""
    if found.source.startswith("none"):
        return "control"
    venue = re.search(r"\b[A-Z][A-Za-z]+ 20\d\d\b", found.source)
    number = re.search(r"arXiv (\d{4}\.\d{5})", found.source)
    words = venue[0] if venue else "arXiv"
    return f"[{words}][{number[1]}]" if number else words


def numbers(found: Iterable[Description]) -> set[str]:
    """The arXiv numbers that `source` links to."""
    return {number[1] for one in found if (number := re.search(r"\]\[([\d.]+)\]", source(one)))}


def signals() -> list[str]:
    """What signals mean."""
    return [
        "| signal | is |",
        "|---|---|",
        *(f"| {signal} | {text} |" for signal, text in meanings().items()),
    ]


def matrix() -> list[str]:
    """Methods times families: "yes", or a footnote with the reason."""
    notes: dict[str, str] = {}
    columns = families()
    answers = {
        method.name: {
            name: mark(notes, why) if (why := reason(method, family)) else "yes"
            for name, family in columns.items()
        }
        for method in cases()
    }
    out: list[str] = []
    for names in chunks(list(columns)):
        out += [f"| method | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
        for method, row in answers.items():
            out.append(f"| [{method}] | {' | '.join(row[name] for name in names)} |")
        out.append("")
    for text, label in notes.items():
        first, *more = wrapped(f"{label}: {text}", "    ")
        out += [first, *more]
    return out


def mark(notes: dict[str, str], why: str) -> str:
    """The footnote of a reason, a new one if it is new."""
    return notes.setdefault(why, f"[^{len(notes) + 1}]")


def chunks(names: Sequence[str]) -> list[list[str]]:
    """Names of columns, as many together as a line holds."""
    out: list[list[str]] = [[]]
    for name in names:
        if len("| method |" + "".join(f" {n} |" for n in [*out[-1], name])) > WIDTH:
            out.append([])
        out[-1].append(name)
    return out


def cell(text: str) -> str:
    """Text that may stand in a table."""
    return single(text).replace("|", "\\|")


def between(text: str, marker: str, lines: Sequence[str]) -> str:
    """A page with what stands between two markers written anew."""
    begin, end = f"<!-- {marker}: written by docs/build.py -->", f"<!-- {marker}: end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"{INDEX.name} lacks the markers {begin} and {end}")
    before, after = text.split(begin)[0], text.split(end)[1]
    return "\n".join([before + begin, "", *lines, "", end]) + after


# -- files


def pages() -> dict[Path, str]:
    """Every written file and its text."""
    found = [describe(case.name) for case in cases()]
    out = {PAGES / f"{one.name}.md": page(one) for one in found}
    text = INDEX.read_text(encoding="utf-8")
    for marker, lines in (("index", index(found)), ("signals", signals()), ("matrix", matrix())):
        text = between(text, marker, lines)
    return out | {INDEX: text}


def stale() -> list[str]:
    """What is committed but not what would be written: one line each."""
    wanted = pages()
    out = [
        f"{path.relative_to(ROOT)} is out of date"
        for path, text in wanted.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    left = sorted(set(PAGES.glob("*.md")) - set(wanted))
    return out + [f"{path.relative_to(ROOT)} tells of no method" for path in left]


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail if something is out of date"
    )
    if parser.parse_args(argv).check:
        lines = stale()
        print("\n".join([*lines, "run: python docs/build.py"] if lines else ["up to date"]))
        return int(bool(lines))
    wanted = pages()
    PAGES.mkdir(exist_ok=True)
    for path in set(PAGES.glob("*.md")) - set(wanted):
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    print(f"{len(wanted)} files written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
