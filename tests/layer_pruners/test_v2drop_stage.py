"""V2Drop's stage: the tokens that the layer before changed most."""

import pytest
import torch
from layer_batches import batch, picks

from prune2drive.errors import PruneError
from prune2drive.layer_pruners.v2drop import V2DropStage
from prune2drive.tokens import Signal


def sample(n, seed, dim=12):
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(n, dim, generator=generator)
    return before + 0.4 * torch.randn(n, dim, generator=generator), before


def tokens(*samples):
    return batch([now for now, _ in samples], previous=[before for _, before in samples])


def change(now, before, metric):
    now, before = now.tolist(), before.tolist()
    out = []
    for a, b in zip(now, before, strict=True):
        if metric == "cosine":
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            lengths = sum(x * x for x in a) ** 0.5 * sum(y * y for y in b) ** 0.5
            out.append(1 - dot / lengths)
        else:
            power = 1 if metric == "l1" else 2
            out.append(sum(abs(x - y) ** power for x, y in zip(a, b, strict=True)) ** (1 / power))
    return out


@pytest.mark.parametrize("metric", ["l2", "l1", "cosine"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_description(metric, seed):
    now, before = sample(30, seed)
    scores = change(now, before, metric)
    want = sorted(range(30), key=lambda i: -scores[i])
    for k in (1, 13, 30):
        assert picks(V2DropStage(metric=metric).select(tokens((now, before)), [k])) == want[:k]


def test_rows_are_independent_and_padding_stays_out():
    rows, counts = [sample(20, 1), sample(9, 2), sample(33, 3)], [11, 9, 0]
    together = V2DropStage().select(tokens(*rows), counts)
    assert together.indices.shape == (3, 11)
    assert together.features is None
    assert together.sizes is None
    for row in range(2):
        assert picks(together, row) == picks(V2DropStage().select(tokens(rows[row]), [counts[row]]))


@pytest.mark.parametrize("metric", ["l2", "l1", "cosine"])
def test_ties_go_to_the_lowest_index(metric):
    now, before = torch.full((12, 8), 2.0), torch.ones(12, 8)
    now[5, 0] = before[5, 0] = 9.0
    want = [5, 0, 1, 2] if metric == "cosine" else [0, 1, 2, 3]
    assert picks(V2DropStage(metric=metric).select(tokens((now, before)), [4])) == want


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    now, before = (x.to(dtype) for x in sample(24, 8))
    scores = change(now, before, "l2")
    got = picks(V2DropStage().select(tokens((now, before)), [24]))
    assert [scores[i] for i in got] == pytest.approx(sorted(scores, reverse=True), rel=1e-5)


def test_fields():
    assert V2DropStage() == V2DropStage(layer=3, metric="l2", scope="sample")
    assert V2DropStage.needs == {Signal.PREVIOUS}
    for fields, message in [
        ({"layer": 0}, "v2drop-stage: layer=0"),
        ({"metric": "l3"}, "v2drop-stage: unknown metric='l3'. Did you mean"),
        ({"scope": "batch"}, "v2drop-stage: scope='batch'"),
    ]:
        with pytest.raises(PruneError, match=message):
            V2DropStage(**fields)
