"""PACT: importance, clusters of dense keys, means of their members, and exactly as many as asked."""

import math

import pytest
import torch
from layer_batches import batch, picks

from prune2drive.errors import PruneError
from prune2drive.layer_pruners.pact import PACT, importance
from prune2drive.tokens import Signal


def sample(n, seed, dim=16, heads=4, width=6):
    """Keys around a few directions, so that clusters of all sizes exist."""
    generator = torch.Generator().manual_seed(seed)
    middles = torch.randn(5, 12, generator=generator)
    near = middles[torch.randint(5, (n,), generator=generator)]
    return {
        "features": torch.randn(n, dim, generator=generator),
        "own_queries": torch.randn(n, heads, width, generator=generator) + 0.3,
        "own_keys": torch.randn(n, heads, width, generator=generator),
        "own_rotated_keys": near + 0.5 * torch.randn(n, 12, generator=generator),
    }


def tokens(*samples):
    return batch(**{name: [s[name] for s in samples] for name in samples[0]})


def euti(s):
    """The description, in plain loops on float64."""
    queries, keys, hidden = (s[name].double() for name in ("own_queries", "own_keys", "features"))
    n, heads, width = keys.shape
    total = [0.0] * n
    for h in range(heads):
        query = sum(queries[i, h] for i in range(n)) / n
        raw = [math.exp(float(query @ keys[i, h]) / math.sqrt(width)) for i in range(n)]
        for i in range(n):
            total[i] += raw[i] / sum(raw) / heads
    return [total[i] * float(hidden[i].norm()) for i in range(n)]


def distances(s):
    keys = s["own_rotated_keys"].double()
    keys = keys / keys.norm(dim=-1, keepdim=True)
    return (1 - keys @ keys.T).tolist()


def in_rounds(candidates, rho, d, cutoff):
    """The description's rounds: nearest denser token, centres, assignment, and again with what is left."""
    left, centres = list(candidates), []
    while left:
        new = []
        for i in left:
            delta = min((d[i][j] for j in left if rho[j] > rho[i]), default=math.inf)
            if delta > cutoff:
                new.append(i)
        centres += new
        left = [i for i in left if i not in new and all(d[i][c] > cutoff for c in new)]
    return sorted(centres, key=lambda i: -rho[i])


def published(s, cutoff, keep=0.55, k=None):
    """Kept tokens with the members merged into each; the count that comes out, or ``k``."""
    weight, d = euti(s), distances(s)
    n = len(weight)
    ranked = sorted(range(n), key=lambda i: -weight[i])
    candidates = ranked[: max(k or 0, int(keep * n))]
    rho = {i: sum(math.exp(-((d[i][j] / 2) ** 2)) for j in candidates) for i in candidates}
    if cutoff is None:
        low, high, best = 0.0, 2.0, (0, 2.0)
        for _ in range(16):
            middle = (low + high) / 2
            number = len(in_rounds(candidates, rho, d, middle))
            low, high = (middle, high) if number > k else (low, middle)
            if number <= k:
                best = max(best, (number, middle), key=lambda pair: pair[0])
        cutoff = best[1]
    centres = in_rounds(candidates, rho, d, cutoff)[:k]
    single = [i for i in ranked if i in candidates and i not in centres][: (k or len(centres)) - len(centres)]
    members = {i: [i] for i in centres + single}
    for i in range(n):
        if i not in members:
            nearest = min(centres, key=lambda c: d[i][c])
            if d[i][nearest] <= 1.5 * cutoff:
                members[nearest].append(i)
    return members


def agrees(selection, s, members):
    kept = picks(selection)
    assert kept == list(members)
    for place, i in enumerate(kept):
        want = sum(s["features"][j].double() for j in members[i]) / len(members[i])
        assert torch.allclose(selection.features[0, place].double(), want, atol=1e-5)
        assert float(selection.sizes[0, place]) == len(members[i])


@pytest.mark.parametrize("seed", range(4))
def test_importance_is_the_published_one(seed):
    s = sample(20, seed)
    got = importance(s["own_queries"], s["own_keys"], s["features"])
    assert got.tolist() == pytest.approx(euti(s), rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cutoff", [0.05, 0.21, 0.4])
def test_a_fixed_cut_off_equals_the_description(seed, cutoff):
    s = sample(43, seed)  # 23.65 candidates: 23
    members = published(s, cutoff)
    agrees(PACT(cutoff=cutoff).select(tokens(s), [len(members)]), s, members)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 3, 12, 22, 30])
def test_a_fixed_cut_off_with_another_count(seed, k):
    s = sample(40, seed)
    agrees(PACT(cutoff=0.21).select(tokens(s), [k]), s, published(s, 0.21, k=k))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [2, 5, 9, 15])
def test_the_cut_off_is_searched(seed, k):
    s = sample(40, seed)
    agrees(PACT().select(tokens(s), [k]), s, published(s, None, k=k))


def test_more_than_the_candidates_keeps_the_most_important_unmerged():
    s = sample(40, 1)
    for k in (22, 30, 40):
        selection = PACT().select(tokens(s), [k])
        weight = euti(s)
        assert sorted(picks(selection)) == sorted(sorted(range(40), key=lambda i: -weight[i])[:k])
        assert torch.equal(selection.features[0], s["features"][selection.indices[0]])
        assert (selection.sizes == 1).all()


@pytest.mark.parametrize(("n", "candidates"), [(576, 316), (43, 23), (20, 11), (1, 1)])
def test_the_number_of_candidates_is_truncated(n, candidates):
    # All candidates join the one centre; what was pruned is out of its reach.
    selection = PACT(cutoff=2.0, pull=1e-9).select(tokens(sample(n, 5)), [1])
    assert selection.sizes.tolist() == [[candidates]]


def test_every_token_counts_once():
    s = sample(50, 3)
    selection = PACT(keep=1.0).select(tokens(s), [8])
    gathered = PACT(keep=1.0).select(tokens({**s, "features": torch.ones(50, 16)}), [8])
    assert float(selection.sizes.sum()) == 50
    assert torch.allclose(gathered.features, torch.ones(1, 8, 16))


def test_rows_are_independent_and_padding_stays_out():
    rows = [sample(40, 1), sample(9, 2), sample(23, 3)]
    counts = [11, 9, 0]
    together = PACT().select(tokens(*rows), counts)
    assert together.indices.shape == (3, 11)
    assert list(together.counts) == counts
    for row in range(2):
        alone, k = PACT().select(tokens(rows[row]), [counts[row]]), counts[row]
        assert picks(together, row) == picks(alone)
        assert torch.allclose(together.features[row, :k], alone.features[0], atol=1e-6)
        assert torch.equal(together.sizes[row, :k], alone.sizes[0])
    assert sorted(picks(together, 1)) == list(range(9))
    assert (together.sizes >= 1).all()


def test_ties_go_to_the_lowest_index():
    s = {name: value[:1].expand(20, *value.shape[1:]) for name, value in sample(1, 4).items()}
    selection = PACT().select(tokens(s), [6])
    assert picks(selection) == list(range(6))
    # One centre takes all copies that do not stay.
    assert selection.sizes[0].tolist() == [15, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    s = {name: value.to(dtype) for name, value in sample(24, 8).items()}
    selection = PACT().select(tokens(s), [7])
    assert len(picks(selection)) == 7
    assert selection.features.dtype == dtype


def test_fields():
    assert PACT() == PACT(layer=4, keep=0.55, cutoff=None, pull=1.5, scope="sample")
    assert PACT.needs == {Signal.OWN_KEYS}
    for fields, message in [
        ({"layer": 0}, "pact: layer=0"),
        ({"keep": 0}, "pact: keep=0; give a number above 0"),
        ({"keep": 1.5}, "pact: keep=1.5"),
        ({"cutoff": 0.0}, "pact: cutoff=0.0; give a number above 0 up to 2"),
        ({"cutoff": 3}, "pact: cutoff=3"),
        ({"pull": -1}, "pact: pull=-1"),
        ({"scope": "batch"}, "pact: scope='batch'"),
    ]:
        with pytest.raises(PruneError, match=message):
            PACT(**fields)
