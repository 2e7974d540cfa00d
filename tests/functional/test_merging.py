"""Folding tokens into kept ones."""

import pytest
import torch

from prune2drive.functional.merging import merge, nearest, sizes


def test_three_ways_to_fold():
    features = torch.tensor([[[1.0, 0.0], [3.0, 2.0], [5.0, 4.0], [7.0, 7.0]]])
    kept, owner = torch.tensor([[0, 3, -1]]), torch.tensor([[-1, 0, 0, -1]])
    untouched, pad = [7.0, 7.0], [0.0, 0.0]
    assert merge(features, kept, owner, "sum")[0].tolist() == [[9.0, 6.0], untouched, pad]
    assert merge(features, kept, owner, "mean")[0].tolist() == [[3.0, 2.0], untouched, pad]
    assert merge(features, kept, owner, "add-mean")[0].tolist() == [[5.0, 3.0], untouched, pad]


def test_sums_are_made_in_float32():
    features = torch.ones(1, 4001, 2, dtype=torch.bfloat16)
    owner = torch.zeros(1, 4001, dtype=torch.int64)
    owner[0, 0] = -1
    out = merge(features, torch.tensor([[0]]), owner, "sum")
    assert out.dtype == torch.bfloat16
    assert out[0, 0, 0] == torch.tensor(4001.0).bfloat16()


def test_unknown_mode():
    with pytest.raises(ValueError, match="unknown mode 'max'"):
        merge(torch.zeros(1, 1, 1), torch.zeros(1, 1, dtype=torch.int64), -torch.ones(1, 1).long(), "max")


def test_nearest_is_by_angle_with_ties_to_the_first():
    features = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [9.0, 1.0], [1.0, 1.0], [0.0, 0.0]]])
    kept = torch.tensor([[0, 1, -1]])
    assert nearest(features, kept).tolist() == [[0, 1, 0, 0, 0]]
    only = torch.tensor([[False, True, True]])
    assert nearest(features, kept, only).tolist() == [[1] * 5]
    assert nearest(features, kept, torch.zeros(1, 3, dtype=torch.bool)).tolist() == [[-1] * 5]
    assert nearest(features, kept[:, :0]).tolist() == [[-1] * 5]


def test_sizes_count_members_by_hand():
    kept = torch.tensor([[4, 1, -1], [0, 2, 3]])
    owner = torch.tensor([[1, -1, 0, 1, -1], [-1, 0, -1, -1, 0]])
    assert sizes(kept, owner).tolist() == [[2.0, 3.0, 1.0], [3.0, 1.0, 1.0]]
