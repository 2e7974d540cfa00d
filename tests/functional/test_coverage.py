"""Greedy facility location against loops."""

import pytest
import torch

from prune2drive.functional.coverage import coverage


def cosines(n, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.randn(n, dim, generator=generator), dim=-1)
    return x @ x.T


def by_loops(similarity, k, weight, bonus):
    s, n = similarity.double().tolist(), len(similarity)
    covered, chosen = [0.0] * n, []
    for _ in range(k):
        scores = {}
        for j in range(n):
            if j not in chosen:
                gain = sum(max(0.0, s[j][i] - covered[i]) for i in range(n))
                scores[j] = gain * weight[j] + bonus[j]
        best = max(scores.values())
        pick = min(j for j, score in scores.items() if score == best)
        chosen.append(pick)
        covered = [max(covered[i], s[pick][i]) for i in range(n)]
    return chosen


@pytest.mark.parametrize("seed", range(6))
def test_picks_are_those_of_the_loops(seed):
    n = 12 + 4 * seed
    generator = torch.Generator().manual_seed(100 + seed)
    similarity = cosines(n, 10, seed)
    weight, bonus = torch.rand(n, generator=generator), torch.rand(n, generator=generator) * 3
    ones, zeros = [1.0] * n, [0.0] * n
    assert coverage(similarity[None], n, weight=weight[None])[0].tolist() == by_loops(
        similarity, n, weight.tolist(), zeros
    )
    assert coverage(similarity[None], n, bonus=bonus[None])[0].tolist() == by_loops(
        similarity, n, ones, bonus.tolist()
    )


@pytest.mark.parametrize("seed", range(6))
def test_without_weights_every_pick_gains_most(seed):
    n = 12 + 4 * seed
    similarity = cosines(n, 10, seed)
    order = coverage(similarity[None], n)[0].tolist()
    assert sorted(order) == list(range(n))
    s, covered, free = similarity.double(), torch.zeros(n, dtype=torch.float64), list(range(n))
    for pick in order:
        gain = [sum(max(0.0, float(s[j, i] - covered[i])) for i in range(n)) for j in free]
        # Tokens that only cover each other gain the same.
        assert gain[free.index(pick)] > max(gain) - 1e-6
        covered = torch.maximum(covered, s[pick])
        free.remove(pick)


def test_rows_cover_and_columns_are_covered():
    # Token 2 covers all and is covered by none but itself.
    similarity = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.9, 0.9, 1.0]])
    assert coverage(similarity[None], 1).tolist() == [[2]]


def test_masked_tokens_are_neither_picked_nor_covered():
    similarity = cosines(16, 10, 0).expand(2, 16, 16).clone()
    mask = torch.ones(2, 16, dtype=torch.bool)
    mask[1, 9:] = False
    mask[1, 3] = False
    inner = [i for i in range(9) if i != 3]
    alone = coverage(similarity[1][inner][:, inner][None], 5)[0]
    order = coverage(similarity, [16, 5], mask=mask)
    assert order[1].tolist() == [inner[i] for i in alone] + [-1] * 11
    assert sorted(order[0].tolist()) == list(range(16))
    assert coverage(similarity, 16, mask=mask)[1, 8:].tolist() == [-1] * 8


def test_ties_go_to_the_lowest_index_and_nothing_is_written():
    similarity = torch.eye(5)[None]
    before = similarity.clone()
    assert coverage(similarity, 5, mask=torch.ones(1, 5, dtype=torch.bool)).tolist() == [[0, 1, 2, 3, 4]]
    assert torch.equal(similarity, before)
    assert coverage(similarity, 0).shape == (1, 0)
