"""Counts per row, cutting rows of picks, working in blocks."""

import pytest
import torch

from prune2drive.errors import PruneError
from prune2drive.functional import distances, picks


def test_counts_are_checked_against_lengths():
    assert picks.checked("m", (3, 0), [3, 0]) == [3, 0]
    with pytest.raises(PruneError, match="m: got 1 counts for 2 rows"):
        picks.checked("m", [1], [3, 3])
    with pytest.raises(PruneError, match="m: row 1: asked for 4 of 3 tokens"):
        picks.checked("m", [1, 4], [3, 3])
    with pytest.raises(PruneError, match="row 0: asked for -1 of 3"):
        picks.checked("m", [-1], [3])


def test_cut_marks_what_lies_beyond_a_count():
    order = torch.tensor([[4, 2, 0], [1, 5, 3]])
    assert picks.cut(order, [1, 3]).tolist() == [[4, -1, -1], [1, 5, 3]]


@pytest.mark.parametrize("rows_at_once", [1, 2, 3, 9])
def test_blocks_join_to_one_width(monkeypatch, rows_at_once):
    monkeypatch.setattr(distances, "MATRIX_BYTES", 10 * rows_at_once)
    counts = [1, 0, 3, 2, 1]
    parts = []

    def choose(part):
        own = counts[part]
        parts.append(len(own))
        return picks.cut(torch.arange(max(own)).expand(len(own), -1), own)

    order = picks.in_blocks(choose, counts, 10)
    assert order.tolist() == [[0, -1, -1], [-1, -1, -1], [0, 1, 2], [0, 1, -1], [0, -1, -1]]
    assert max(parts) <= rows_at_once
    assert sum(parts) == 5
