"""SCOPE against loops in float64."""

import math

import pytest
import torch

from prune2drive.errors import PruneError
from prune2drive.functional import distances
from prune2drive.selectors.scope import Scope
from prune2drive.tokens import Signal, Signals, View, VisualTokens


def view(n, name):
    zeros = torch.zeros(n, dtype=torch.long)
    return View(name, torch.arange(n), torch.zeros(n, 4), zeros, zeros)


def random(lengths, seed=0, dtype=torch.float32):
    """Encoder features and saliency of some rows."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 10, generator=generator).to(dtype), torch.rand(n, generator=generator))
        for n in lengths
    ]


def batch(rows):
    width = max(len(x) for x, _ in rows)
    encoder = torch.zeros(len(rows), width, rows[0][0].shape[-1], dtype=rows[0][0].dtype)
    saliency = torch.zeros(len(rows), width)
    for at, (x, a) in enumerate(rows):
        encoder[at, : len(x)], saliency[at, : len(x)] = x, a
    views = [view(len(x), f"V{at}") for at, (x, _) in enumerate(rows)]
    # Nothing of the projected features may matter.
    features = torch.full((len(rows), width, 4), float("nan"))
    return VisualTokens(features, views, [0] * len(rows), Signals(encoder=encoder, saliency=saliency))


def kept(selection, row):
    return selection.indices[row, : selection.counts[row]].tolist()


def published(row, k, alpha=1.0, combined="multi"):
    x, a = row[0].double().tolist(), row[1].double().tolist()
    n = len(x)
    norms = [math.sqrt(sum(v * v for v in p)) for p in x]
    cos = [
        [sum(u * v for u, v in zip(p, q, strict=True)) / (norms[i] * norms[j]) for j, q in enumerate(x)]
        for i, p in enumerate(x)
    ]
    current, chosen = [0.0] * n, []
    for _ in range(k):
        scores = {}
        for j in range(n):
            if j in chosen:
                continue
            gain = sum(max(0.0, cos[i][j] - current[i]) for i in range(n))
            scores[j] = gain * a[j] ** alpha if combined == "multi" else gain + a[j] ** alpha
        pick = max(scores, key=scores.get)
        chosen.append(pick)
        current = [max(current[i], cos[i][pick]) for i in range(n)]
    return chosen


@pytest.mark.parametrize("combined", ["multi", "add"])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("seed", range(3))
def test_picks_are_the_published_ones(seed, alpha, combined):
    (row,) = random([14 + 9 * seed], seed)
    for k in (1, 7, len(row[0])):
        got = Scope(alpha=alpha, combined=combined).select(batch([row]), [k])
        assert kept(got, 0) == published(row, k, alpha, combined)


def test_without_saliency_it_is_coverage():
    ((x, a),) = random([30], 1)
    want = published((x, torch.ones(30)), 5)
    for method in (Scope(alpha=0), Scope(alpha=0, combined="add")):
        assert kept(method.select(batch([(x, a)]), [5]), 0) == want


def test_unequal_rows_equal_single_rows():
    rows, counts = random([20, 3, 0, 11], 1), [5, 3, 0, 11]
    for method in (Scope(), Scope(combined="add")):
        selection = method.select(batch(rows), counts)
        assert selection.indices.shape == (4, 11)
        assert selection.indices.dtype == torch.int64
        for at, k in enumerate(counts):
            assert (selection.indices[at, k:] == -1).all()
            if k:
                assert kept(selection, at) == kept(method.select(batch([rows[at]]), [k]), 0)
                assert kept(selection, at) == published(rows[at], k, combined=method.combined)


def test_blocks_of_rows_change_nothing(monkeypatch):
    tokens = batch(random([20, 9, 15], 3))
    want = Scope().select(tokens, [5, 9, 2]).indices
    monkeypatch.setattr(distances, "MATRIX_BYTES", 1)
    assert torch.equal(Scope().select(tokens, [5, 9, 2]).indices, want)


def test_the_scale_of_saliency_does_not_matter_to_the_product():
    ((x, a),) = random([25], 4)
    want = kept(Scope().select(batch([(x, a)]), [25]), 0)
    assert kept(Scope().select(batch([(x, 1024 * a)]), [25]), 0) == want


def test_ties_and_tokens_without_saliency():
    one = torch.ones(6)
    assert kept(Scope().select(batch([(torch.eye(6), one)]), [6]), 0) == [0, 1, 2, 3, 4, 5]
    one[:4] = 0
    assert kept(Scope().select(batch([(torch.eye(6), one)]), [6]), 0) == [4, 5, 0, 1, 2, 3]
    assert kept(Scope().select(batch([(torch.eye(6), torch.zeros(6))]), [3]), 0) == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_float32(dtype):
    (row,) = random([25], 5, dtype)
    assert kept(Scope().select(batch([row]), [10]), 0) == published(row, 10)


def test_fields_and_bad_input():
    assert Scope() == Scope(alpha=1.0, combined="multi", scope="view")
    assert Scope.name == "scope"
    assert Scope.needs == {Signal.ENCODER, Signal.SALIENCY}
    for fields, message in [
        ({"alpha": -1}, "alpha -1 is no exponent"),
        ({"alpha": float("inf")}, "alpha inf"),
        ({"alpha": "1"}, "alpha '1'"),
        ({"combined": "mult"}, "unknown combined 'mult'. Did you mean 'multi'"),
        ({"scope": "image"}, "scope 'image' is unknown; use 'view' or 'sample'"),
    ]:
        with pytest.raises(PruneError, match=message):
            Scope(**fields)
    tokens = batch(random([5, 3]))
    with pytest.raises(PruneError, match="row 1: asked for 4 of 3"):
        Scope().select(tokens, [1, 4])
    bare = VisualTokens(
        tokens.features, tokens.views, tokens.samples, Signals(encoder=tokens.signals.encoder)
    )
    with pytest.raises(PruneError, match=r"signals.saliency is missing"):
        Scope().select(bare, [1, 1])
