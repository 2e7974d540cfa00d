"""Density-peak clustering: known clusters, ties, extremes. (Its formula: tests of SparseVLM's stage.)"""

import pytest
import torch

from prune2drive.functional.density_peaks import density_peaks


def blobs(seed, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    middles = torch.randn(3, 12, generator=g) * 10
    truth = torch.arange(3).repeat_interleave(8)[torch.randperm(24, generator=g)]
    return (middles[truth] + torch.randn(24, 12, generator=g)).to(dtype), truth


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(4))
def test_finds_separate_groups(seed, dtype):
    points, truth = blobs(seed, dtype)
    found = density_peaks(points, 3)
    assert found.log_density.dtype == torch.float32
    assert found.centres.tolist() == sorted(found.centres.tolist())
    for cluster, centre in enumerate(found.centres):
        assert ((found.owner == cluster) == (truth == truth[centre])).all()
    for cluster, place in enumerate(found.densest()):
        inside = found.owner == cluster
        assert inside[place] and found.log_density[place] == found.log_density[inside].max()


def test_members_partition():
    points, _ = blobs(0)
    for clusters in (1, 2, 7, 24):
        found = density_peaks(points, clusters)
        assert (found.members().sum(0) == 1).all()
        assert found.members().any(1).all()
        assert len(set(found.centres.tolist())) == clusters


def test_copies_tie_to_the_lowest_index():
    found = density_peaks(torch.ones(6, 8), 2)
    assert found.centres.tolist() == [0, 1]
    assert found.owner.tolist() == [0, 1, 0, 0, 0, 0]
    assert found.densest().tolist() == [0, 1]


def test_one_point():
    found = density_peaks(torch.randn(1, 8), 1)
    assert found.owner.tolist() == [0] and found.densest().tolist() == [0]


def test_densities_of_distant_points_do_not_underflow():
    points = blobs(1)[0].double() * 1e4
    squared = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square() / 12
    # As many points as clusters, of which place 0 is the point itself.
    density = -squared.sort(-1).values[:, :3].mean(-1)
    denser = density[None] > density[:, None]
    delta = squared.masked_fill(~denser, torch.inf).amin(-1)
    delta = torch.where(denser.any(-1), delta, squared.amax(-1))
    assert not density.float().exp().any()
    found = density_peaks(points.float(), 3)
    assert torch.allclose(found.log_density.double(), density, rtol=1e-4)
    assert found.centres.tolist() == sorted((density + delta.log() / 2).topk(3).indices.tolist())


@pytest.mark.parametrize("seed", range(4))
def test_density_is_made_by_as_many_points_as_clusters_itself_counted(seed):
    points = torch.randn(14, 9, generator=torch.Generator().manual_seed(seed))
    rows = points.double().tolist()
    for clusters, neighbours in ((1, None), (2, None), (5, None), (14, None), (3, 1), (3, 6), (3, 99)):
        asked = min(neighbours or clusters, 14)
        want = []
        for a in rows:
            near = sorted(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / 9 for b in rows)[:asked]
            assert near[0] == 0
            want.append(-sum(near) / asked)
        got = density_peaks(points, clusters, neighbours).log_density
        assert got.tolist() == pytest.approx(want, rel=1e-4)


def test_one_cluster_has_no_density_to_tell_points_apart():
    found = density_peaks(blobs(2)[0], 1)
    assert not found.log_density.any()
    assert found.densest().tolist() == [0]
