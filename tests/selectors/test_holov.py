"""HoloV against its published rule, written out in loops."""

import math

import pytest
import torch

from prune2drive.errors import PruneError
from prune2drive.selectors.holov import HoloV
from signal_batch import batch, kept, row


def cosine(a, b):
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def mean(values):
    return sum(values) / len(values)


def weigh(one, chunk):
    """The published score, variances and all, averaged over a chunk of at least three tokens."""
    x = one["features"].double()
    attention = [1e3 * one["saliency"][i].item() for i in chunk]
    variance = []
    for i in chunk:
        likeness = [cosine(x[i], x[j]) for j in chunk if j != i]
        middle = mean(likeness)
        variance.append(mean([(c - middle) ** 2 for c in likeness]))
    balance = mean([abs(a) for a in attention]) / (mean([abs(v) for v in variance]) + 1e-6)
    return mean([a + 0.09 * v * balance for a, v in zip(attention, variance, strict=True)])


def cut(n, parts):
    """The sequence in so many parts, what is left over spread over the first."""
    chunks, begin = [], 0
    for c in range(parts):
        size = n // parts + (1 if c < n % parts else 0)
        chunks.append(list(range(begin, begin + size)))
        begin += size
    assert begin == n
    return chunks


def published(one, k, parts, weigh=weigh):
    """The picks, with what overflows the first quotas shared out again, and whether anything did."""
    saliency = one["saliency"].tolist()
    chunks = cut(len(saliency), parts)
    weight = [weigh(one, chunk) if chunk else 0.0 for chunk in chunks]
    quotas, left, first = [0] * parts, k, None
    while left:
        room = [c for c in range(parts) if quotas[c] < len(chunks[c])]
        total = sum(weight[c] for c in room)
        more = {c: math.floor(left * weight[c] / total) for c in room}
        rest = left - sum(more.values())
        for c in sorted(room, key=lambda c: -weight[c])[:rest]:
            more[c] += 1
        first = first or dict(more)
        for c in room:
            quotas[c] = min(quotas[c] + more[c], len(chunks[c]))
        left = k - sum(quotas)
    picks = []
    for chunk, quota in zip(chunks, quotas, strict=True):
        picks += sorted(chunk, key=lambda i: -saliency[i])[:quota]
    overflow = any(first[c] > len(chunks[c]) for c in first)
    return sorted(picks), overflow


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("n", "k", "parts"), [(40, 12, 4), (37, 20, 5), (58, 9, 16), (30, 3, 1), (44, 31, 7)]
)
def test_equals_the_published_rule(seed, n, k, parts):
    one = row(n, seed)
    want, _ = published(one, k, parts)
    assert kept(HoloV(chunks=parts).select(batch([one]), [k]), 0) == want


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "k", "parts"), [(40, 9, 16), (12, 5, 16), (16, 7, 16), (1, 1, 3)])
def test_small_chunks_weigh_by_attention_too(seed, n, k, parts):
    def attention(one, chunk):
        return mean([one["saliency"][i].item() for i in chunk])

    one = row(n, seed)
    want, _ = published(one, k, parts, attention)
    assert kept(HoloV(chunks=parts).select(batch([one]), [k]), 0) == want


def test_the_first_chunks_are_longer():
    # 7 tokens in 3 chunks of equal weight, 0-2, 3-4 and 5-6.
    one = row(7, 0) | {"saliency": torch.tensor([0.125, 0.25, 1.125, 0.25, 0.75, 0.75, 0.25])}
    assert kept(HoloV(chunks=3).select(batch([one]), [3]), 0) == [2, 4, 5]


def test_features_play_no_part():
    one = row(40, 1)
    want = kept(HoloV(chunks=5).select(batch([one]), [17]), 0)
    assert kept(HoloV(chunks=5).select(batch([one | {"features": torch.zeros(40, 8)}]), [17]), 0) == want


def test_what_a_full_chunk_cannot_take_goes_to_others():
    overflows = 0
    for seed in range(10):
        one = row(40, seed)
        one["saliency"] = one["saliency"] ** 6
        want, overflow = published(one, 26, 8)
        overflows += overflow
        assert kept(HoloV(chunks=8).select(batch([one]), [26]), 0) == want
    assert overflows > 3


def test_without_any_attention_chunks_share_alike():
    one = row(32, 0)
    one["saliency"] = torch.zeros(32)
    picks = kept(HoloV(chunks=8).select(batch([one]), [16]), 0)
    assert picks == [4 * c + i for c in range(8) for i in range(2)]


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "16"])
def test_bad_chunks(value):
    with pytest.raises(PruneError, match=r"holov: chunks=.* give an int from 1"):
        HoloV(chunks=value)
