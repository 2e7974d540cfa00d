"""Anchors and shares of contextual tokens."""

import torch

from prune2drive.functional.contextual import gather_context, shares


def test_shares_round_half_up():
    assert shares([192, 128, 64, 1, 0, 3], 10 / 64) == [30, 20, 10, 0, 0, 0]
    assert shares([1, 2, 3], 0.5) == [1, 1, 2]
    assert shares([5], 1.0) == [5]


def test_anchors_are_evenly_spaced_over_the_pool():
    n = 12
    features = torch.eye(n)[None]
    pool = torch.ones(1, n, dtype=torch.bool)
    pool[0, [0, 5]] = False
    dominant = ~pool
    kept, *_ = gather_context(features, features, dominant, pool, [5], [10], [3])
    assert kept.tolist() == [[0, 1, 4, 5, 8]]  # the pool's numbers 0, 3, 6


def test_anchors_follow_an_order_if_there_is_one():
    features = torch.arange(1.0, 9.0)[None, :, None]
    keys = torch.ones(1, 8, 2)
    keys[0, 2] = torch.tensor([1.0, -1.0])
    order = torch.tensor([[6, 0, 2, 5]])
    pool = torch.zeros(1, 8, dtype=torch.bool).index_fill(1, order[0], True)
    dominant = torch.tensor([[False] * 7 + [True]])
    kept, out, sizes = gather_context(features, keys, dominant, pool, [3], [4], [2], order)
    assert sizes.tolist() == [[1.0, 3.0, 1.0]]
    # Ranks 0 and 2 are tokens 6 and 2; 0 and 5 are like 6.
    assert kept.tolist() == [[2, 6, 7]]
    assert out[0].tolist() == [[3.0], [7.0 + 3.5], [8.0]]


def test_ties_go_to_the_anchor_that_is_first_in_the_order():
    features = torch.arange(1.0, 6.0)[None, :, None]
    keys, none = torch.ones(1, 5, 2), torch.zeros(1, 5, dtype=torch.bool)
    order = torch.tensor([[3, 4, 0, 1]])
    pool = torch.tensor([[True, True, False, True, True]])
    kept, out, sizes = gather_context(features, keys, none, pool, [2], [4], [2], order)
    assert sizes.tolist() == [[1.0, 3.0]]
    assert kept.tolist() == [[0, 3]]
    assert out[0].tolist() == [[1.0], [4.0 + 3.5]]
    kept, out, sizes = gather_context(features, keys, none, pool, [2], [4], [2])
    assert kept.tolist() == [[0, 3]] and sizes.tolist() == [[3.0, 1.0]]
    assert out[0].tolist() == [[1.0 + 3.5], [4.0]]


def test_rows_without_anchors_or_pool():
    features = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    pool = torch.tensor([[False, True, True, True, True, False], [True] * 2 + [False] * 4, [False] * 6])
    dominant = torch.tensor([[True] + [False] * 5, [False] * 2 + [True] * 4, [True] * 6])
    order = torch.tensor([[4, 3, 2, 1], [1, 0, -1, -1], [-1] * 4])
    counts = [3, 4, 6]
    kept, out, sizes = gather_context(features, features, dominant, pool, counts, [4, 2, 0], [2, 0, 0], order)
    assert float(sizes[0].sum()) == 3 + 2 + 3 and (sizes[1:] == 1).all()  # two joined, three rows are padding
    assert kept.tolist() == [[0, 2, 4, -1, -1, -1], [2, 3, 4, 5, -1, -1], [0, 1, 2, 3, 4, 5]]
    assert torch.equal(out[1, :4], features[1, 2:])
    assert torch.equal(out[2], features[2])
    kept, out, _ = gather_context(features, features, dominant, pool & False, [1, 4, 6], [0] * 3, [0] * 3)
    assert kept[0].tolist() == [0, -1, -1, -1, -1, -1]
    assert torch.equal(out[2], features[2])


def test_members_are_averaged_and_strangers_dropped():
    features = torch.tensor([[[1.0], [2.0], [4.0], [8.0], [16.0]]])
    keys = torch.tensor([[[1.0, 0.0], [1.0, 0.05], [1.0, 0.2], [0.0, 1.0], [1.0, 0.0]]])
    pool = torch.tensor([[True, True, True, True, False]])
    none = torch.zeros_like(pool)
    kept, out, sizes = gather_context(features, keys, none, pool, [2], [4], [2])
    assert kept.tolist() == [[0, 2]] and sizes.tolist() == [[2.0, 2.0]]
    # Token 1 is nearer to 0 by angle, 3 to 2; 4 would go to 0, but is not in the pool.
    assert out[0].tolist() == [[3.0], [12.0]]
