"""`prune2drive methods`: the names that ``method=`` takes."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    subparsers.add_parser("methods", help="list pruning methods", description="List all pruning methods.")


def run(args: argparse.Namespace) -> int:
    """Print name, stage and first line of documentation of every method; returns the exit code."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..errors import PruneError
    from ..registry import list_methods, resolve_method
    from ..selectors.base import Selector

    table = Table("Method", "Chooses", "What it does", box=box.SIMPLE_HEAD)
    for name in list_methods():
        try:
            method = resolve_method(name)
        except PruneError as error:  # a broken third-party method must not hide the others
            table.add_row(name, "[red]cannot be loaded[/red]", escape(str(error)))
            continue
        where = "before the LM" if isinstance(method, Selector) else "inside the LM"
        lines = (type(method).__doc__ or "").strip().splitlines()
        # Backticks mark code in documentation; on a terminal they are noise.
        table.add_row(name, where, escape(lines[0].replace("`", "")) if lines else "")
    Console().print(table)
    return 0
