"""Errors of a linear basis, and the choice made by them."""

import pytest
import torch

from prune2drive.errors import PruneError
from prune2drive.functional.reconstruction import approximation_errors, reconstruct


def features(n, seed=0, dim=16, rows=1):
    return torch.randn(rows, n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(4))
def test_errors_are_distances_from_the_span(seed):
    x = features(20, seed)
    basis = torch.tensor([[3, 9, 14, -1]])
    s = x[0, [3, 9, 14]].double()
    q = torch.linalg.qr(s.T).Q
    want = (x[0].double() - x[0].double() @ q @ q.T).norm(dim=-1)
    torch.testing.assert_close(approximation_errors(x, basis)[0].double(), want, atol=1e-5, rtol=1e-5)


def test_without_a_basis_errors_are_lengths():
    x = features(5)
    none = torch.zeros(1, 0, dtype=torch.int64)
    torch.testing.assert_close(approximation_errors(x, none), x.norm(dim=-1))


def test_copies_in_the_basis_do_no_harm():
    x = features(20, dim=8) * 300
    x[0, 5] = x[0, 2]
    twice, once = torch.tensor([[2, 5, 7]]), torch.tensor([[2, 7]])
    errors = approximation_errors(x, twice)
    torch.testing.assert_close(errors, approximation_errors(x, once), atol=1e-3, rtol=1e-4)


def test_every_token_is_kept_or_owned():
    x = features(30, rows=2)
    x[1, 21:] = 0
    found = reconstruct(x, [15, 12], [30, 21], basis=4)
    for row, (k, n) in enumerate([(15, 30), (12, 21)]):
        kept = found.kept[row, :k].tolist()
        assert kept == sorted(set(kept))
        assert (found.kept[row, k:] == -1).all()
        held = found.basis_slots[row, :k].tolist()
        assert set(found.basis[row].tolist()) == {t for t, b in zip(kept, held, strict=True) if b}
        for token in range(n):
            slot = found.owner[row, token].item()
            assert (slot == -1) == (token in kept)
            assert slot == -1 or not found.basis_slots[row, slot]
        assert (found.owner[row, n:] == -1).all()
        assert (found.errors[row, n:] == 0).all()
        left = [t for t in range(n) if t not in kept]
        others = [t for t, b in zip(kept, held, strict=True) if not b]
        assert found.errors[row, left].max() <= found.errors[row, others].min()


def test_fewer_tokens_than_the_basis():
    found = reconstruct(features(6), [4], [6], basis=10)
    assert found.basis.shape == (1, 6)
    assert set(found.kept[0].tolist()) == set(found.basis[0, :4].tolist())
    assert found.basis_slots.all()
    assert (found.owner == -1).all()
    assert reconstruct(features(6), [0], [6]).kept.shape == (1, 0)


def test_basis_tokens_are_never_counted_twice():
    # All but the basis and two more are wanted: the basis is among the largest errors only by name.
    found = reconstruct(features(20), [19], [20])
    assert len(set(found.kept[0].tolist())) == 19


def test_start_beyond_a_row():
    with pytest.raises(PruneError, match="row 0: start=6 is out of range for 6 tokens"):
        reconstruct(features(8), [3], [6], start=6)
