"""Density peak clustering: rounds equal the pass in order of density, and the cut-off that meets a number."""

import math

import pytest
import torch

from prune2drive.functional import dbdpc


def points(n, seed, clusters=6):
    """Directions around a few centres, so that clusters of all sizes exist."""
    generator = torch.Generator().manual_seed(seed)
    middles = torch.randn(clusters, 12, generator=generator)
    which = torch.randint(clusters, (n,), generator=generator)
    return middles[which] + 0.5 * torch.randn(n, 12, generator=generator)


def by_density(x):
    distance = dbdpc.cosine_distances(x, x)
    order = dbdpc.density(distance).sort(descending=True, stable=True).indices
    return distance[order][:, order]


def one_pass(distance, cutoff):
    """Down the order of density: a token near no centre yet becomes one."""
    found = []
    for i in range(len(distance)):
        if all(float(distance[i][c]) > cutoff for c in found):
            found.append(i)
    return found


def chosen(mask):
    return mask.nonzero().flatten().tolist()


@pytest.mark.parametrize("seed", range(4))
def test_distance_and_density_are_the_published_ones(seed):
    x = points(25, seed)
    distance = dbdpc.cosine_distances(x, x)
    rho = dbdpc.density(distance)
    for i in range(25):
        row = [1 - float(torch.cosine_similarity(x[i].double(), x[j].double(), dim=0)) for j in range(25)]
        assert distance[i].tolist() == pytest.approx(row, abs=2e-6)
        assert float(rho[i]) == pytest.approx(sum(math.exp(-((d / 2) ** 2)) for d in row), rel=1e-5)


@pytest.mark.parametrize("cutoff", [0.0, 0.02, 0.1, 0.21, 0.5, 1.0, 2.0])
def test_rounds_equal_the_pass(cutoff):
    for seed in range(5):
        distance = by_density(points(60, seed))
        assert chosen(dbdpc.centres(distance, cutoff)) == one_pass(distance, cutoff)


def test_a_long_chain_takes_many_rounds():
    n = 41
    distance = (torch.arange(n)[:, None] - torch.arange(n)).abs() * 0.04
    assert chosen(dbdpc.centres(distance, 0.05)) == list(range(0, n, 2))


def test_the_cut_off_for_a_number():
    for seed in range(4):
        distance = by_density(points(50, seed))
        for k in (1, 2, 5, 17, 30, 49, 50):
            found, cutoff = dbdpc.at_most(distance, k)
            assert chosen(found) == one_pass(distance, cutoff)
            assert int(found.sum()) <= k
            if k > 2:
                # A slightly smaller cut-off makes too many.
                assert int(found.sum()) == k or len(one_pass(distance, cutoff - 4 / 2**dbdpc.STEPS)) > k


def test_copies_are_one_centre():
    x = points(10, 0)
    twice = torch.cat([x, x])
    distance = dbdpc.cosine_distances(twice, twice)
    assert (distance.diagonal(10) == 0).all()
    assert int(dbdpc.centres(by_density(twice), 0.0).sum()) == 10


def test_zero_vectors_are_far_from_everything():
    x = torch.cat([torch.zeros(1, 12), points(3, 0)])
    assert (dbdpc.cosine_distances(x, x)[0] == 1).all()


@pytest.mark.parametrize("seed", range(6))
def test_in_turn_is_the_rounds(seed):
    """The host's pass finds what the rounds find, and gives up exactly where there are more."""
    points = torch.randn(60, 5, generator=torch.Generator().manual_seed(seed))
    distance = dbdpc.cosine_distances(points, points)
    order = dbdpc.density(distance).sort(descending=True, stable=True).indices
    distance = distance[order][:, order]
    host = distance.mT.contiguous().numpy()
    for cutoff in (0.0, 0.05, 0.2, 0.5, 0.9, 1.5, 2.0):
        rounds = dbdpc.centres(distance, cutoff)
        number = int(rounds.sum())
        turn = dbdpc._in_turn(host, cutoff, number)
        assert turn is not None and torch.equal(turn, rounds)
        if number > 1:
            assert dbdpc._in_turn(host, cutoff, number - 1) is None
