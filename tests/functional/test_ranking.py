"""Highest scores by row."""

import torch

from prune2drive.functional import ranking


def test_top_is_stable_exact_and_masked():
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0, 9.0], [5.0, 5.0, 5.0, 5.0, 5.0]])
    mask = torch.tensor([[True, True, True, True, False], [True] * 5])
    assert ranking.top(scores, [3, 2], mask).tolist() == [[1, 2, 3], [0, 1, -1]]
    assert ranking.top(scores, [0, 0]).shape == (2, 0)


def test_helpers_keep_padding_at_the_end():
    picks = torch.tensor([[4, 0, 2], [3, 1, -1]])
    assert ranking.ascending(picks).tolist() == [[0, 2, 4], [1, 3, -1]]
    keep = ranking.members(picks, 5)
    assert keep.int().tolist() == [[1, 0, 1, 0, 1], [0, 1, 0, 1, 0]]
    assert ranking.places(keep, [3, 2]).tolist() == [[0, 2, 4], [1, 3, -1]]
    assert ranking.slots([2, 0], picks.device, 3).tolist() == [[True, True, False], [False] * 3]
