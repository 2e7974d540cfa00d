"""Errors that name the thing, the value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PruneError(ValueError):
    """Bad input at the border of the library. The message says what, where, and what to do."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'? Known: a, b, c." for an unknown ``name``."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Known: {', '.join(options) if options else 'none'}."


def first_line(error: BaseException, most: int = 300) -> str:
    """Type and first line of an error's message, at most ``most`` characters: what a record says of it."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:most]
