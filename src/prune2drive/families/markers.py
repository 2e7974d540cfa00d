"""Grouping of tile runs into pictures by the marker token in front of a picture's last tile."""

from __future__ import annotations

from .base import Prompt


def last_tile_groups(prompt: Prompt, row: int) -> list[list[tuple[int, int]]]:
    """Runs of a sample grouped by picture, for families whose pictures end with a global tile.

    The token before a picture's global tile (``<global-img>``, ``TILE_GLOBAL``) is nowhere in the
    model's config, but a sample's very last run is always a global tile, so that token names itself.
    """
    runs = prompt.runs(row)
    if not runs:
        return []
    ids = prompt.ids[row]
    marker = ids[runs[-1][0] - 1]
    groups: list[list[tuple[int, int]]] = [[]]
    for run in runs:
        groups[-1].append(run)
        if ids[run[0] - 1] == marker:
            groups.append([])
    return groups[:-1]
