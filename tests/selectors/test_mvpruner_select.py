"""MVPruner's first stage against its published rule, written out in loops."""

import math

import pytest
import torch

from prune2drive.errors import PruneError
from prune2drive.functional import fps
from prune2drive.selectors.mvpruner import MVPrunerSelect
from signal_batch import batch, kept, row


def distance(a, b):
    return 1 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def variety(x):
    n = len(x)
    return sum(min(distance(x[i], x[j]) for j in range(n) if j != i) for i in range(n)) / n


def softmax_of(spread):
    high, low = max(spread), min(spread)
    terms = [math.exp((d - high) / (high - low + 1e-5)) for d in spread]
    return [t / sum(terms) for t in terms]


def picks_of(x, words, k):
    relevance = [sum(float(token @ word) for word in words) / len(words) for token in x]
    chosen = [max(range(len(x)), key=lambda i: relevance[i])]
    while len(chosen) < k:
        free = [i for i in range(len(x)) if i not in chosen]
        chosen.append(max(free, key=lambda i: relevance[i] * min(distance(x[i], x[j]) for j in chosen)))
    return chosen


def words(seed, number=4, dim=8):
    return torch.randn(1, number, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("total", [12, 31, 60])
def test_equals_the_published_rule(seed, total):
    views = [row(n, seed + 10 * n) for n in (24, 31, 40, 18)]
    for scale, one in enumerate(views):
        one["features"] += scale  # cameras of different variety
    text = words(seed)
    asked = [total // 4 + (number < total % 4) for number in range(4)]
    selection = MVPrunerSelect().select(batch(views, text=text), asked)
    assert sum(selection.counts) == total
    # ratio_v = s V softmax(d')_v for the s that meets the total, where no bound is hit
    features = [one["features"].double() for one in views]
    shares = softmax_of([variety(x) for x in features])
    portions = [len(x) * share for x, share in zip(features, shares, strict=True)]
    quotas = [total * portion / sum(portions) for portion in portions]
    if all(1 <= quota <= len(x) for quota, x in zip(quotas, features, strict=True)):
        assert all(abs(k - quota) < 1 for k, quota in zip(selection.counts, quotas, strict=True))
    for number, x in enumerate(features):
        want = picks_of(x, text[0].double(), selection.counts[number])
        assert kept(selection, number) == want


def test_the_varied_camera_keeps_more_than_the_dull_one():
    varied, dull = row(30, 1), row(30, 2)
    dull["features"] = dull["features"] * 0.01 + 5
    counts = MVPrunerSelect().select(batch([dull, varied], text=words(0)), [10, 10]).counts
    assert sum(counts) == 20
    assert counts[1] > counts[0]
    # softmax of 0 against -1 is the most that two cameras can differ by
    assert counts == [5, 15]


def test_a_full_camera_hands_its_tokens_on():
    small, dull = row(4, 1), row(40, 2)
    dull["features"] = dull["features"] * 0.01 + 5
    counts = MVPrunerSelect().select(batch([small, dull], text=words(0)), [4, 36]).counts
    assert counts == [4, 36]
    assert MVPrunerSelect().select(batch([small, dull], text=words(0)), [1, 1]).counts == [1, 1]


def test_without_text_it_is_farthest_point_sampling():
    views = [row(20, 1), row(26, 2)]
    for text, mask in (
        (torch.zeros(1, 0, 8), torch.zeros(1, 0, dtype=torch.bool)),
        (torch.randn(1, 3, 8), torch.zeros(1, 3, dtype=torch.bool)),
    ):
        selection = MVPrunerSelect().select(batch(views, text=text, text_mask=mask), [6, 7])
        for number, one in enumerate(views):
            assert kept(selection, number) == fps(one["features"], selection.counts[number]).tolist()


def test_hidden_text_is_not_read():
    views, text = [row(20, 1), row(26, 2)], words(3, number=6)
    mask = torch.tensor([[True] * 4 + [False] * 2])
    hidden = MVPrunerSelect().select(batch(views, text=text, text_mask=mask), [6, 7])
    short = MVPrunerSelect().select(batch(views, text=text[:, :4]), [6, 7])
    assert torch.equal(hidden.indices, short.indices)


@pytest.mark.parametrize(("asked", "total"), [([1, 0, 0], 1), ([20, 26, 40], 86)])
def test_totals_that_cannot_be_met_are_refused(asked, total):
    views = [row(20, 1), row(26, 2), row(30, 3)]
    with pytest.raises(
        PruneError, match=f"sample 0 is asked for {total} tokens; give it from 3, one for each"
    ):
        MVPrunerSelect().select(batch(views, text=words(1)), asked)
