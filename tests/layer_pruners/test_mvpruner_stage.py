"""MVPruner's second stage: cameras the instruction looks at keep more, and exactly the total stays."""

import math

import pytest
import torch
from layer_batches import batch, picks

from prune2drive.errors import PruneError
from prune2drive.layer_pruners.mvpruner import MVPrunerStage, share_out
from prune2drive.tokens import Signal

HEADS = 3


def looks(lengths, words, seed, boost=None):
    """Attention to each view; ``boost`` multiplies a view's."""
    generator = torch.Generator().manual_seed(seed)
    boost = boost or [1] * len(lengths)
    return [
        torch.rand(n, HEADS, words, generator=generator) * b / 50 for n, b in zip(lengths, boost, strict=True)
    ]


def tokens(views, samples, words):
    """``words`` of each sample; attention is padded to the longest."""
    longest = max(words)
    attention = [torch.nn.functional.pad(a, (0, longest - a.shape[-1])) for a in views]
    features = [torch.ones(len(a), 4) for a in views]
    return batch(features, samples, [torch.ones(w, 4) for w in words], attention=attention)


def published(views, total):
    """Ratios of the description and the counts that they give before rounding, and each view's ranking."""
    mean = [
        [sum(float(a[i, h, t]) for h in range(HEADS) for t in range(a.shape[2])) for i in range(len(a))]
        for a in views
    ]
    mean = [[x / HEADS / a.shape[2] for x in row] for row, a in zip(mean, views, strict=True)]
    importance = [sum(row) / len(row) for row in mean]
    top, low = max(importance), min(importance)
    raw = [math.exp((m - top) / (top - low + 1e-5)) for m in importance]
    lengths = [len(row) for row in mean]
    ratios = [1 + r / sum(raw) - n / sum(lengths) for r, n in zip(raw, lengths, strict=True)]
    scale = total / sum(r * n for r, n in zip(ratios, lengths, strict=True))
    quotas = [scale * r * n for r, n in zip(ratios, lengths, strict=True)]
    return quotas, [sorted(range(len(row)), key=lambda i: -row[i]) for row in mean]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("total", [6, 20, 33])
def test_equals_the_description(seed, total):
    lengths = [20, 14, 26]
    views = looks(lengths, 5, seed, boost=[1, 3, 2])
    selection = MVPrunerStage().select(tokens(views, [0, 0, 0], [5]), [total - 2, 1, 1])
    quotas, order = published(views, total)
    assert sum(selection.counts) == total
    floors = [math.floor(q) for q in quotas]
    rest = sorted(range(3), key=lambda v: floors[v] - quotas[v])[: total - sum(floors)]
    assert list(selection.counts) == [floors[v] + (v in rest) for v in range(3)]
    for v in range(3):
        assert picks(selection, v) == order[v][: selection.counts[v]]


def test_equal_views_keep_the_strength_on_average():
    """With views of one length the published ratios already sum to the total: s needs no correction."""
    views = looks([40] * 4, 5, 0, boost=[1, 2, 3, 4])
    quotas, _ = published(views, 32)
    assert sum(quotas) / 160 == pytest.approx(0.2)
    counts = MVPrunerStage().select(tokens(views, [0] * 4, [5]), [8] * 4).counts
    assert sum(counts) == 32
    assert list(counts) == sorted(counts)
    assert counts[3] > counts[0]


def test_samples_are_independent_and_padding_stays_out():
    first, second = looks([20, 9], 4, 1, boost=[1, 5]), looks([3, 30, 12], 7, 2)
    together = MVPrunerStage().select(tokens(first + second, [0, 0, 1, 1, 1], [4, 7]), [5, 5, 3, 3, 3])
    alone = [
        MVPrunerStage().select(tokens(first, [0, 0], [4]), [5, 5]),
        MVPrunerStage().select(tokens(second, [0, 0, 0], [7]), [3, 3, 3]),
    ]
    assert list(together.counts) == [*alone[0].counts, *alone[1].counts]
    assert together.indices.shape == (5, max(together.counts))
    for row in range(5):
        part, at = (alone[0], row) if row < 2 else (alone[1], row - 2)
        assert picks(together, row) == picks(part, at)


def test_all_tokens_and_one_each():
    views = looks([5, 8, 2], 3, 0)
    for counts in ([5, 8, 2], [1, 1, 1]):
        selection = MVPrunerStage().select(tokens(views, [0, 0, 0], [3]), counts)
        assert list(selection.counts) == counts


def test_no_instruction_shares_out_by_length():
    views = looks([10, 20], 4, 0)
    selection = MVPrunerStage().select(tokens([a * 0 for a in views], [0, 0], [0]), [9, 6])
    assert sum(selection.counts) == 15
    for row in range(2):
        assert picks(selection, row) == list(range(selection.counts[row]))


def test_shares():
    assert share_out(0, [5, 5], [1.0, 2.0]) == [0, 0]
    assert share_out(4, [0, 4, 4], [0.0, 1.0, 1.0]) == [0, 2, 2]
    # A short view cannot take what its attention would give it; the others do.
    assert share_out(60, [2, 30, 30], [0.9, 0.1, 0.1]) == [2, 29, 29]
    # Fewer tokens than views: those looked at most.
    assert share_out(2, [10, 10, 10], [0.1, 0.3, 0.2]) == [0, 1, 1]
    assert share_out(1, [10, 10, 10], [0.2, 0.2, 0.2]) == [1, 0, 0]


@pytest.mark.parametrize("lengths", [[1, 1, 1], [1, 50, 7], [0, 3, 0], [12], [0, 0]])
def test_any_total_is_met_within_bounds(lengths):
    generator = torch.Generator().manual_seed(0)
    for total in range(sum(lengths) + 1):
        means = torch.rand(len(lengths), generator=generator).tolist()
        counts = share_out(total, lengths, means)
        assert sum(counts) == total
        assert all(0 <= k <= n for k, n in zip(counts, lengths, strict=True))
        if total >= sum(n > 0 for n in lengths):
            assert all(k >= 1 for k, n in zip(counts, lengths, strict=True) if n)


def test_fields():
    assert MVPrunerStage() == MVPrunerStage(layer=16)
    assert MVPrunerStage.needs == {Signal.ATTENTION}
    assert MVPrunerStage.allocates
    assert MVPrunerStage().scope == "view"
    with pytest.raises(PruneError, match="mvpruner-stage: layer=0"):
        MVPrunerStage(layer=0)
