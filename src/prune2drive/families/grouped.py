"""Families whose every tile is a run of placeholders of its own: runs grouped into pictures."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Family, Prompt

Run = tuple[int, int]
"""First column of a tile's placeholders, and one past the last."""


class GroupedFamily(Family):
    """A picture is several runs; by default the last of them shows the whole picture."""

    def groups(self, prompt: Prompt, row: int) -> list[list[Run]]:
        """Runs of a sample, grouped by picture."""
        return last_tile_groups(prompt, row)

    def group_at(self, prompt: Prompt, row: int, start: int) -> Sequence[Run]:
        """The picture whose first token is the sample's visual token ``start``."""
        before = 0
        for group in self.groups(prompt, row):
            if before == start:
                return group
            before += group_length(group)
        raise IndexError(start)

    def image_lengths(self, prompt: Prompt) -> list[list[int]]:
        rows = range(len(prompt.ids))
        return [[group_length(group) for group in self.groups(prompt, row)] for row in rows]


def group_length(group: Sequence[Run]) -> int:
    """Visual tokens of a picture."""
    return sum(end - start for start, end in group)


def last_tile_groups(prompt: Prompt, row: int) -> list[list[Run]]:
    """Runs of a sample grouped by picture, where pictures end with a global tile.

    The token before a picture's global tile (``<global-img>``, ``TILE_GLOBAL``) is nowhere in the
    model's config, but a sample's very last run is always a global tile, so that token names itself.
    """
    runs = prompt.runs(row)
    if not runs:
        return []
    ids = prompt.ids[row]
    marker = ids[runs[-1][0] - 1]
    groups: list[list[Run]] = [[]]
    for run in runs:
        groups[-1].append(run)
        if ids[run[0] - 1] == marker:
            groups.append([])
    return groups[:-1]
