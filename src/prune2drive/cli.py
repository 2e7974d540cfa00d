"""The command line: ``prune2drive demo | run | evaluate | compare | search | profile | methods``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module, metadata

COMMANDS = {
    "demo": ("prune2drive.commands.demo", "try it without data or downloads"),
    "run": ("prune2drive.commands.run", "ask a model about your pictures"),
    "evaluate": ("prune2drive.commands.evaluate", "score methods against controls on a benchmark"),
    "compare": ("prune2drive.commands.compare", "compare all methods at equal budgets"),
    "search": ("prune2drive.commands.search", "find each camera's retention rate"),
    "profile": ("prune2drive.profiling.command", "measure time, memory and FLOPs, unpruned and pruned"),
    "methods": ("prune2drive.commands.methods", "list pruning methods"),
}
"""Name -> module with ``add_parser(subparsers)`` and ``run(args)``, line of help."""


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Return the parser. Only ``command`` gets its options: the other modules are not imported."""
    parser = argparse.ArgumentParser(
        prog="prune2drive", description="Visual token pruning for multi-camera vision-language models."
    )
    parser.add_argument(
        "--version", action="version", version=f"prune2drive {metadata.version('prune2drive')}"
    )
    subparsers = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, (module, line) in COMMANDS.items():
        if name == command:
            import_module(module).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=line)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 wrong use or input, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else list(argv)
    command = next((word for word in argv if not word.startswith("-")), None)
    args = build_parser(command).parse_args(argv)
    from .errors import PruneError

    try:
        return int(import_module(COMMANDS[args.command][0]).run(args) or 0)
    except PruneError as error:
        _complain(str(error))
        return 2
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130


def _complain(message: str) -> None:
    """One line on standard error, red on a terminal."""
    from rich.console import Console
    from rich.text import Text

    line = " ".join(message.split())
    # soft_wrap keeps it one line, so that it can be searched for and piped.
    Console(stderr=True).print(Text(f"error: {line}", style="red"), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
