"""ApET's second stage: basis, reconstruction errors, merging, on hidden states."""

import pytest
import torch
from layer_batches import batch, picks

from prune2drive.errors import PruneError
from prune2drive.layer_pruners.apet import ApETStage


def hidden(n, seed, dim=24):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator)


def by_hand(x, k, size, ridge=1e-5):
    """The rule in float64: which tokens stay, and the rows they become. In the released code the tokens that
    the basis is written over are lost, and the basis is merged as well as kept."""
    x = x.double()
    n = len(x)
    squares = [[float((x[i] - x[j]).square().sum()) for j in range(n)] for i in range(n)]
    isolation = [min(squares[i][j] for j in range(n) if j != i) for i in range(n)]
    basis = [max(range(n), key=lambda i: isolation[i])]
    while len(basis) < size:
        rest = [i for i in range(n) if i not in basis]
        basis.append(max(rest, key=lambda i: min(squares[i][j] for j in basis)))
    rows = x[basis]
    gram = rows @ rows.T + ridge * torch.eye(size, dtype=torch.float64)
    errors = []
    for i in range(n):
        weights = torch.linalg.solve(gram, rows @ x[i])
        errors.append(float((x[i] - weights @ rows).norm()))
    others = sorted((i for i in range(n) if i not in basis), key=lambda i: -errors[i])[: max(k - size, 0)]
    out = {i: [i] for i in [*basis[:k], *others]}
    for i in range(n):
        if i not in out and others:
            owner = max(others, key=lambda j: float(torch.cosine_similarity(x[i], x[j], dim=0)))
            out[owner].append(i)
    return {i: sum(x[j] for j in members) / len(members) for i, members in out.items()}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 6, 7, 15, 30])
def test_equals_the_rule(seed, k):
    x = hidden(30, seed)
    selection = ApETStage(basis=6).select(batch([x]), [k])
    want = by_hand(x, k, 6)
    kept = picks(selection)
    assert sorted(kept) == sorted(want)
    for place, i in enumerate(kept):
        assert torch.allclose(selection.features[0, place].double(), want[i], atol=1e-5)
    assert selection.sizes is not None and float(selection.sizes.sum()) == (len(x) if k > 6 else k)


def test_rows_are_independent_and_padding_stays_out():
    rows, counts = [hidden(20, 1), hidden(9, 2), hidden(33, 3)], [14, 9, 0]
    together = ApETStage(basis=4).select(batch(rows), counts)
    assert together.indices.shape == (3, 14)
    for row in range(2):
        alone, k = ApETStage(basis=4).select(batch(rows[row : row + 1]), [counts[row]]), counts[row]
        assert picks(together, row) == picks(alone)
        assert torch.allclose(together.features[row, :k], alone.features[0], atol=1e-6)


def test_all_tokens_stay_as_they_are():
    x = hidden(17, 4)
    selection = ApETStage().select(batch([x]), [17])
    assert torch.equal(selection.features[0], x[selection.indices[0]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    selection = ApETStage().select(batch([hidden(30, 5).to(dtype)]), [14])
    assert len(picks(selection)) == 14
    assert selection.features.dtype == dtype


def test_fields():
    assert ApETStage() == ApETStage(layer=16, basis=10, start="isolated", ridge=1e-5)
    assert not ApETStage.needs
    assert ApETStage().scope == "view"
    for fields, message in [
        ({"layer": 0}, "apet-stage: layer=0"),
        ({"basis": 0}, "apet-stage: basis=0; give an integer from 1"),
        ({"start": "centre"}, "apet-stage: unknown start='centre'. Did you mean 'center'"),
        ({"start": -1}, "apet-stage: start=-1; give an integer from 0"),
        ({"ridge": 0}, "apet-stage: ridge=0; give a number above 0"),
    ]:
        with pytest.raises(PruneError, match=message):
            ApETStage(**fields)
