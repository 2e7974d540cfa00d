"""Greedy determinantal point process: against determinants, and where determinants end."""

import pytest
import torch

from prune2drive.functional import dpp as module
from prune2drive.functional.dpp import dpp


def kernel(n, dim, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.randn(n, dim, generator=generator) + shift, dim=-1)
    x = x * (0.2 + torch.rand(n, 1, generator=generator))
    return x @ x.T


def by_determinants(matrix, k):
    """The token that makes the determinant of the block largest, computed anew each time."""
    wide, chosen = matrix.double(), []
    for _ in range(k):
        best, most = -1, -1.0
        for i in range(len(wide)):
            if i in chosen:
                continue
            block = torch.tensor([*chosen, i])
            value = torch.linalg.det(wide[block][:, block]).item()
            if value > most * (1 + 1e-9):
                best, most = i, value
        chosen.append(best)
    return chosen


@pytest.mark.parametrize("seed", range(12))
def test_picks_maximise_the_determinant(seed):
    n = 4 + seed % 7
    matrix = kernel(n, 12, seed, shift=float(seed % 3))
    assert dpp(matrix[None], n)[0].tolist() == by_determinants(matrix, n)


@pytest.mark.parametrize("seed", range(4))
def test_a_batch_of_unequal_rows_equals_single_rows(seed):
    matrices = [kernel(n, 24, seed + 10 * n) for n in (20, 7, 13)]
    padded, mask = torch.zeros(3, 20, 20), torch.zeros(3, 20, dtype=torch.bool)
    for row, matrix in enumerate(matrices):
        padded[row, : len(matrix), : len(matrix)] = matrix
        mask[row, : len(matrix)] = True
    order = dpp(padded, [6, 7, 4], mask=mask)
    assert order.shape == (3, 7)
    for row, (matrix, k) in enumerate(zip(matrices, [6, 7, 4], strict=True)):
        assert order[row].tolist() == dpp(matrix[None], k)[0].tolist() + [-1] * (7 - k)


def test_fewer_picks_are_a_prefix():
    matrix = kernel(30, 40, 3)[None]
    whole = dpp(matrix, 30)[0].tolist()
    assert sorted(whole) == list(range(30))
    for k in (1, 5, 17):
        assert dpp(matrix, k)[0].tolist() == whole[:k]
    assert dpp(matrix, 0).shape == (1, 0)


def test_ties_go_to_the_lowest_index():
    assert dpp(torch.eye(6)[None], 6)[0].tolist() == [0, 1, 2, 3, 4, 5]
    # 1 and 3 are the same token: whichever comes second explains nothing more.
    same = torch.diag(torch.tensor([1.0, 4.0, 2.0, 4.0]))
    same[1, 3] = same[3, 1] = 4.0
    assert dpp(same[None], 4)[0].tolist() == [1, 2, 0, 3]


@pytest.mark.parametrize("seed", range(8))
def test_beyond_the_rank_the_largest_entries_follow(seed):
    dim, n = 8, 24
    matrix = kernel(n, dim, seed)
    order = dpp(matrix[None], n)[0].tolist()
    assert order[:dim] == by_determinants(matrix, dim)
    rest = sorted(set(range(n)) - set(order[:dim]), key=lambda i: (-matrix[i, i].item(), i))
    assert order[dim:] == rest


def test_empty_entries_come_last_and_give_no_nan():
    matrix = kernel(6, 9, 0)
    matrix[2] = matrix[:, 2] = 0
    order = dpp(matrix[None], 6)[0].tolist()
    assert order[-1] == 2
    assert sorted(order) == list(range(6))


def test_without_candidates_there_is_no_pick():
    mask = torch.tensor([[True, False, True], [False, False, False]])
    assert dpp(torch.eye(3).expand(2, 3, 3), 3, mask=mask).tolist() == [[0, 2, -1], [-1, -1, -1]]


def test_scale_of_the_kernel_does_not_matter():
    matrix = kernel(20, 30, 5)[None]
    want = dpp(matrix, 20).tolist()
    for factor in (2.0**-40, 2.0**40):
        assert dpp(matrix * factor, 20).tolist() == want
    assert 0 < module.EXHAUSTED < 1e-3
