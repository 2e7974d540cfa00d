"""`prune2drive methods`: the names that ``method=`` takes, and what there is to know of each."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..describe import Description


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "methods",
        help="list pruning methods",
        description="List all pruning methods, or tell about one: idea, formula, hyper-parameters, source.",
    )
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="the method to tell about (default: list all)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the list, or one method's page; returns the exit code."""
    if args.name is None:
        _list()
    else:
        from ..describe import describe

        _tell(describe(args.name))
    return 0


def _list() -> None:
    from rich.console import Console, Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from ..describe import describe
    from ..errors import PruneError
    from ..registry import list_methods

    names = list_methods()
    longest = max(map(len, names))

    def row(*cells: str, style: str = "") -> Table:
        line = Table.grid(padding=(0, 1), expand=True)
        for width in (longest, 27, 8, 6):
            line.add_column(width=width)
        line.add_column(ratio=1)
        line.add_row(*(Text(cell) for cell in cells), style=style)
        return line

    blocks: list[Any] = [row("Method", "Chooses", "Question", "Merges", "Needs", style="bold"), ""]
    for name in names:
        try:
            found = describe(name)
        except PruneError as error:  # a broken third-party method must not hide the others
            blocks += [row(name, "cannot be loaded", style="red"), Padding(Text(str(error)), (0, 0, 0, 2))]
            continue
        reads, merges = ("yes" if flag else "-" for flag in (found.reads_question, found.merges))
        blocks.append(row(name, found.place, reads, merges, ", ".join(found.signals) or "-", style="bold"))
        blocks.append(Padding(Text(plain(found.summary)), (0, 0, 0, 2)))
    blocks += ["", Text("prune2drive methods NAME tells more of one.", style="dim")]
    Console().print(Group(*blocks))


def _tell(found: Description) -> None:
    from rich.console import Console, Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from ..describe import meanings

    words = meanings()
    signals = ", ".join(words.get(signal, signal.value) for signal in found.signals)
    facts = Table.grid(padding=(0, 2))
    for title, text in (
        ("Chooses", found.chooses),
        ("Among", found.pool),
        ("Reads the question", "yes" if found.reads_question else "no"),
        ("Merges", found.merging),
        ("Signals", signals or "none"),
        ("Needs", found.needs),
        ("Costs", found.costs),
        ("Source", found.source),
        ("Class", found.kind),
    ):
        if text:
            facts.add_row(Text(title, style="bold"), Text(plain(text)))
    blocks: list[Any] = [Text(found.name, style="bold"), Text(plain(found.summary)), ""]
    blocks += [Text(plain(paragraph)) for paragraph in found.idea]
    blocks += ["", facts]
    if found.formula:
        blocks += ["", Text("Formula", style="bold"), Padding(Text(plain(found.formula)), (0, 2))]
    if found.parameters:
        fields = Table.grid(padding=(0, 2))
        for parameter in found.parameters:
            fields.add_row(f"{parameter.name} =", Text(parameter.default), Text(plain(parameter.meaning)))
        blocks += ["", Text("Hyper-parameters", style="bold"), Padding(fields, (0, 2))]
    if found.decisions:
        listed = Table.grid(padding=(0, 1))
        for decision in found.decisions:
            listed.add_row("-", Text(plain(decision)))
        blocks += ["", Text("Decisions", style="bold"), Padding(listed, (0, 2))]
    Console().print(Group(*blocks))


def plain(text: str) -> str:
    """Backticks mark code in documentation; on a terminal they are noise."""
    return text.replace("`", "")
