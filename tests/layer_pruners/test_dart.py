"""DART: pivots by key size, each takes the tokens least similar to it."""

import pytest
import torch
from layer_batches import batch, picks

from prune2drive.errors import PruneError
from prune2drive.layer_pruners.dart import DART
from prune2drive.tokens import Signal


def norm(x):
    """A root-mean-square norm with weights, as language models end in."""
    weight = torch.linspace(0.5, 2.0, x.shape[-1], dtype=x.dtype)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


def sample(n, words, seed, dim=16):
    generator = torch.Generator().manual_seed(seed)
    return {
        "features": torch.randn(n, dim, generator=generator) + 0.5,
        "keys": torch.randn(n, 8, generator=generator),
        "text": torch.randn(words, dim, generator=generator),
        "text_keys": torch.randn(words, 8, generator=generator),
    }


def tokens(*samples, norm=norm):
    return batch(**{name: [s[name] for s in samples] for name in samples[0]}, norm=norm)


def published(s, k, n_visual=4, n_text=4):
    """The description, in plain loops on float64."""
    size = [sum(abs(float(c)) for c in row) for row in s["keys"]]
    text_size = [sum(abs(float(c)) for c in row) for row in s["text_keys"]]
    seen = sorted(range(len(size)), key=lambda i: -size[i])[:n_visual]
    said = sorted(range(len(text_size)), key=lambda i: -text_size[i])[:n_text]
    if k <= len(seen):
        return seen[:k]
    x, t = norm(s["features"].double()), norm(s["text"].double())
    pivots = [x[i] for i in seen] + [t[i] for i in said]
    asked = [(k - len(seen)) // len(pivots)] * len(pivots)
    for first in range((k - len(seen)) % len(pivots)):
        asked[first] += 1
    pool, kept = [i for i in range(len(size)) if i not in seen], list(seen)
    for pivot, m in zip(pivots, asked, strict=True):
        ranked = sorted(pool, key=lambda i: float(torch.dot(x[i], pivot) / x[i].norm() / pivot.norm()))
        kept += ranked[:m]
        pool = ranked[m:]
    return kept


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 3, 4, 5, 12, 20, 31, 36])
def test_equals_the_description(seed, k):
    s = sample(36, 9, seed)
    assert picks(DART().select(tokens(s), [k])) == published(s, k)


def test_short_instructions_give_fewer_pivots():
    for words in (0, 1, 3):
        s = sample(30, words, 5)
        assert picks(DART().select(tokens(s), [14])) == published(s, 14)


def test_pivot_numbers_are_fields():
    s = sample(30, 6, 6)
    assert picks(DART(visual_pivots=2, text_pivots=1).select(tokens(s), [14])) == published(s, 14, 2, 1)
    blind = picks(DART(text_pivots=0).select(tokens(s), [14]))
    assert blind == published(s, 14, 4, 0)
    other = {**s, "text": -s["text"], "text_keys": s["text_keys"].flip(0)}
    assert picks(DART(text_pivots=0).select(tokens(other), [14])) == blind
    assert picks(DART().select(tokens(other), [14])) != picks(DART().select(tokens(s), [14]))


def test_the_final_norm_is_applied():
    s = sample(30, 6, 7)
    assert picks(DART().select(tokens(s), [14])) != picks(DART().select(tokens(s, norm=None), [14]))


def test_rows_are_independent_and_padding_stays_out():
    rows = [sample(20, 7, 1), sample(9, 2, 2), sample(33, 5, 3)]
    counts = [11, 9, 0]
    together = DART().select(tokens(*rows), counts)
    assert together.indices.shape == (3, 11)
    assert list(together.counts) == counts
    for row in range(2):
        alone = DART().select(tokens(rows[row]), [counts[row]])
        assert picks(together, row) == picks(alone)
    assert sorted(picks(together, 1)) == list(range(9))


def test_views_share_their_samples_text():
    s, other = sample(20, 7, 1), sample(20, 7, 2)
    both = batch(
        [s["features"], other["features"]],
        samples=[0, 0],
        text=[s["text"]],
        text_keys=[s["text_keys"]],
        keys=[s["keys"], other["keys"]],
        norm=norm,
    )
    mixed = {**other, "text": s["text"], "text_keys": s["text_keys"]}
    assert picks(DART(scope="view").select(both, [8, 8]), 1) == published(mixed, 8)


def test_ties_go_to_the_lowest_index():
    s = sample(20, 5, 4)
    copies = {**s, "features": torch.ones(20, 16), "keys": torch.ones(20, 8)}
    assert picks(DART().select(tokens(copies), [12])) == list(range(12))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    s = {name: value.to(dtype) for name, value in sample(24, 6, 8).items()}
    assert len(picks(DART().select(tokens(s), [13]))) == 13


def test_fields():
    assert DART() == DART(layer=2, visual_pivots=4, text_pivots=4, scope="sample")
    assert DART.needs == {Signal.KEYS, Signal.TEXT}
    for fields, message in [
        ({"layer": 0}, "dart: layer=0"),
        ({"visual_pivots": 0}, "dart: visual_pivots=0; give an integer from 1"),
        ({"text_pivots": -1}, "dart: text_pivots=-1; give an integer from 0"),
        ({"text_pivots": 1.5}, "dart: text_pivots=1.5"),
        ({"scope": "batch"}, "dart: scope='batch'"),
    ]:
        with pytest.raises(PruneError, match=message):
            DART(**fields)
