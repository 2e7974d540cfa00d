"""ApET's first stage against its rule, written out in loops."""

import math

import numpy as np
import pytest
import torch

from prune2drive.errors import PruneError
from prune2drive.selectors.apet import ApETSelect
from signal_batch import batch, kept, merged, row


def by_hand(one, k, size, start):
    """Keeps what the released code keeps; merges the tokens written over, which that loses, and no basis."""
    x, h = one["encoder"].double().numpy(), one["features"].double().numpy()
    n = len(x)

    def apart(i, j):
        return float(((x[i] - x[j]) ** 2).sum())

    if start == "isolated":
        start = max(range(n), key=lambda i: min(apart(i, j) for j in range(n) if j != i))
    basis = [start]
    while len(basis) < size:
        free = [i for i in range(n) if i not in basis]
        basis.append(max(free, key=lambda i: min(apart(i, j) for j in basis)))
    s = x[basis]
    weights = np.linalg.solve(s @ s.T + 1e-5 * np.eye(size), s @ x.T)
    error = np.linalg.norm(x - weights.T @ s, axis=1)
    largest = sorted(range(n), key=lambda i: -error[i])[:k]
    assert not set(largest) & set(basis)
    held = largest[: k - size]  # the basis is written over the last slots
    got = {t: [] for t in held}
    for i in range(n):
        if i not in held and i not in basis:
            likeness = {t: x[i] @ x[t] / math.sqrt((x[i] @ x[i]) * (x[t] @ x[t])) for t in held}
            got[max(held, key=likeness.get)].append(i)
    out = {i: h[i] for i in basis}
    for t, members in got.items():
        out[t] = (h[t] + sum(h[i] for i in members)) / (1 + len(members))
    return out


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "k", "size", "dim"), [(40, 20, 10, 16), (33, 11, 10, 20), (24, 9, 4, 8)])
@pytest.mark.parametrize("start", ["isolated", 3])
def test_equals_the_rule(seed, n, k, size, dim, start):
    one = row(n, seed, dim=dim)
    want = by_hand(one, k, size, start)
    selection = ApETSelect(basis=size, start=start).select(batch([one]), [k])
    assert kept(selection, 0) == sorted(want)
    for token, feature in merged(selection, 0).items():
        torch.testing.assert_close(feature.double(), torch.from_numpy(want[token]), atol=1e-5, rtol=1e-5)


def test_a_small_budget_is_the_first_of_the_basis_and_nothing_is_merged():
    one = row(30, 2)
    small = ApETSelect(start=7).select(batch([one]), [3])
    large = ApETSelect(start=7).select(batch([one]), [10])
    assert 7 in kept(small, 0)
    assert set(kept(small, 0)) < set(kept(large, 0))
    for selection in (small, large):
        assert torch.equal(selection.features[0], one["features"][selection.indices[0]])


def test_a_start_beyond_a_view_is_refused():
    with pytest.raises(PruneError, match=r"row 1: start=15 is out of range for 12 tokens"):
        ApETSelect(start=15).select(batch([row(20, 0), row(12, 1)]), [5, 5])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"basis": 0}, "basis=0 is no number of tokens; give an int from 1"),
        ({"basis": 2.5}, "basis=2.5 is no number of tokens"),
        ({"start": "isolate"}, "unknown start='isolate', and no token index. Did you mean 'isolated'"),
        ({"start": "random"}, "unknown start='random'"),
        ({"start": -1}, "start=-1 must be a name or a token index from 0"),
        ({"ridge": 0}, "ridge=0 is no positive number"),
        ({"ridge": float("inf")}, "ridge=inf is no positive number"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(PruneError, match=message):
        ApETSelect(**fields)
