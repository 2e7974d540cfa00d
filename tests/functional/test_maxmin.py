"""Weighted and penalised farthest points: plain `fps` without them, loops with them."""

import math

import pytest
import torch

from prune2drive.functional import distances, fps
from prune2drive.functional.maxmin import max_min


def points(n, seed, dim=10):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def measured(x):
    return distances.measure(x, "cosine", isolated=True)


def by_loops(x, k, weight, penalty):
    x = x.double().tolist()
    n = len(x)

    def d(i, j):
        dot = sum(a * b for a, b in zip(x[i], x[j], strict=True))
        return 1 - dot / math.sqrt(sum(a * a for a in x[i]) * sum(b * b for b in x[j]))

    chosen = []
    for _ in range(k):
        scores = {}
        for i in range(n):
            if i not in chosen:
                near = min(d(i, j) for j in (chosen or range(n)) if j != i)
                scores[i] = weight[i] * near - penalty[i]
        chosen.append(max(scores, key=scores.get))
    return chosen


@pytest.mark.parametrize("seed", range(4))
def test_without_a_say_it_is_farthest_point_sampling(seed):
    x = torch.stack([points(25, seed), points(25, seed + 50)])
    assert torch.equal(max_min(measured(x), [25, 9]), fps(x, [25, 9]))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budget", [distances.MATRIX_BYTES, 1], ids=["matrix", "rows"])
def test_picks_are_those_of_the_loops(monkeypatch, budget, seed):
    monkeypatch.setattr(distances, "MATRIX_BYTES", budget)
    n = 12 + 4 * seed
    generator = torch.Generator().manual_seed(100 + seed)
    x, weight, penalty = (
        points(n, seed),
        torch.rand(n, generator=generator),
        torch.rand(n, generator=generator),
    )
    got = max_min(measured(x[None]), n, weight=weight[None], penalty=penalty[None])[0].tolist()
    assert got == by_loops(x, n, weight.tolist(), penalty.tolist())


@pytest.mark.parametrize("budget", [distances.MATRIX_BYTES, 1], ids=["matrix", "rows"])
def test_masked_tokens_are_never_picked_and_distances_serve_again(monkeypatch, budget):
    monkeypatch.setattr(distances, "MATRIX_BYTES", budget)
    x = points(20, 1)
    inner = [i for i in range(20) if i % 3]
    mask = torch.zeros(1, 20, dtype=torch.bool)
    mask[0, inner] = True
    rows = measured(x[None])
    want = [inner[i] for i in max_min(measured(x[inner][None]), 8)[0]]
    assert max_min(rows, 8, mask=mask)[0].tolist() == want
    assert max_min(rows, 8, mask=mask)[0].tolist() == want
    assert max_min(measured(x[None]), 20, mask=mask)[0, len(inner) :].tolist() == [-1] * (20 - len(inner))


def test_a_lone_candidate_and_none():
    rows = measured(points(4, 0)[None].expand(3, 4, 10).contiguous())
    mask = torch.tensor([[False, True, False, False], [False] * 4, [True] * 4])
    weight = torch.zeros(3, 4)
    order = max_min(rows, [1, 0, 4], weight=weight, mask=mask)
    assert order.tolist() == [[1, -1, -1, -1], [-1] * 4, [0, 1, 2, 3]]


def test_ties_go_to_the_lowest_index():
    x = torch.eye(6)[None]
    assert max_min(measured(x), 6)[0].tolist() == [0, 1, 2, 3, 4, 5]
    penalty = torch.tensor([[0.5, 0.0, 0.5, 0.0, 0.25, 0.5]])
    assert max_min(measured(x), 6, penalty=penalty)[0].tolist() == [1, 3, 4, 0, 2, 5]
