"""DivPrune: farthest points of all pictures together, against loops."""

import math

import pytest
import torch

from prune2drive.errors import PruneError
from prune2drive.selectors.divprune import DivPrune
from prune2drive.selectors.tfps import TFPS
from prune2drive.tokens import View, VisualTokens


def view(n, name="sample"):
    zeros = torch.zeros(n, dtype=torch.long)
    return View(name, torch.arange(n), torch.zeros(n, 4), zeros, zeros)


def batch(rows):
    padded = torch.zeros(len(rows), max(map(len, rows)), rows[0].shape[-1], dtype=rows[0].dtype)
    for at, row in enumerate(rows):
        padded[at, : len(row)] = row
    return VisualTokens(padded, [view(len(row)) for row in rows], list(range(len(rows))))


def features(lengths, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 12, generator=generator).to(dtype) for n in lengths]


def kept(selection, row):
    return selection.indices[row, : selection.counts[row]].tolist()


def published(x, k):
    """First the token with the largest second-smallest distance (its own is the smallest), then max-min."""
    x = x.double().tolist()
    norms = [math.sqrt(sum(a * a for a in row)) for row in x]
    d = [
        [
            1 - sum(a * b for a, b in zip(p, q, strict=True)) / (norms[i] * norms[j]) if i != j else 0.0
            for j, q in enumerate(x)
        ]
        for i, p in enumerate(x)
    ]
    chosen = [max(range(len(x)), key=lambda i: sorted(d[i])[1])]
    while len(chosen) < k:
        left = [i for i in range(len(x)) if i not in chosen]
        chosen.append(max(left, key=lambda i: min(d[i][s] for s in chosen)))
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_picks_are_the_published_ones(seed):
    (x,) = features([15 + 5 * seed], seed)
    for k in (1, 6, len(x)):
        assert kept(DivPrune().select(batch([x]), [k]), 0) == published(x, k)


def test_unequal_rows_padding_and_empty_rows():
    rows = features([20, 3, 0, 11])
    selection = DivPrune().select(batch(rows), [4, 3, 0, 11])
    assert selection.indices.shape == (4, 11)
    assert selection.indices.dtype == torch.int64
    assert list(selection.counts) == [4, 3, 0, 11]
    for at in (0, 1, 3):
        k = selection.counts[at]
        assert kept(selection, at) == published(rows[at], k)
        assert (selection.indices[at, k:] == -1).all()
    assert (selection.indices[2] == -1).all()
    nothing = DivPrune().select(batch(features([4, 0])), [0, 0])
    assert nothing.indices.shape == (2, 0)


def test_like_tokens_of_two_cameras_count_once_in_the_pool():
    one, two = features([6, 6])
    two[2] = one[4]
    pooled = kept(DivPrune().select(batch([torch.cat([one, two])]), [11]), 0)
    assert len({4, 8} & set(pooled)) == 1
    tokens = batch([one, two])
    got, want = DivPrune(scope="view").select(tokens, [3, 5]), TFPS().select(tokens, [3, 5])
    assert torch.equal(got.indices, want.indices)


def test_fewer_are_a_prefix_and_ties_go_to_the_lowest_index():
    (x,) = features([30])
    whole = kept(DivPrune().select(batch([x]), [30]), 0)
    assert kept(DivPrune().select(batch([x]), [9]), 0) == whole[:9]
    assert DivPrune.nested
    assert kept(DivPrune().select(batch([torch.eye(5)]), [5]), 0) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_float32(dtype):
    (x,) = features([25], dtype=dtype)
    assert kept(DivPrune().select(batch([x]), [10]), 0) == published(x, 10)


def test_bad_input():
    assert DivPrune().scope == "sample"
    assert DivPrune.needs == frozenset()
    with pytest.raises(PruneError, match="scope 'image' is unknown; use 'sample' or 'view'"):
        DivPrune(scope="image")
    with pytest.raises(PruneError, match="got 1 counts for 2 rows"):
        DivPrune().select(batch(features([3, 3])), [1])
    with pytest.raises(PruneError, match="row 1: asked for 4 of 3"):
        DivPrune().select(batch(features([5, 3])), [1, 4])
