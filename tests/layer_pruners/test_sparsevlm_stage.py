"""SparseVLM's stages against their formulas in plain Python: raters, scores, recycling, rotary division."""

import math

import pytest
import torch
from attention_batches import batch, best, check_contract, kept, row, text

from prune2drive.errors import PruneError
from prune2drive.layer_pruners.sparsevlm import SparseVLM2Stage, SparseVLMStage, split
from prune2drive.tokens import Signal


def reference_raters(visual, words):
    """Text tokens above the mean of the visual tokens' softmax over the text."""
    visual, words = visual.double().tolist(), words.double().tolist()
    mean = [0.0] * len(words)
    for x in visual:
        logits = [sum(a * b for a, b in zip(x, w, strict=True)) for w in words]
        powers = [math.exp(v - max(logits)) for v in logits]
        for t, power in enumerate(powers):
            mean[t] += power / sum(powers) / len(visual)
    return [t for t, m in enumerate(mean) if m > sum(mean) / len(mean)]


def reference_scores(attention, rated):
    return [
        sum(head[t] for head in token for t in rated) / (len(token) * len(rated))
        for token in attention.double().tolist()
    ]


def reference_clusters(points, number, neighbours=None):
    """Density peaks: member lists, and densities, each made by as many points as there are clusters."""
    n, width = len(points), len(points[0])
    d = [[math.dist(a, b) / math.sqrt(width) for b in points] for a in points]
    density = []
    for i in range(n):
        near = sorted(d[i])[: neighbours or number]  # the first is the distance to itself
        density.append(math.exp(-sum(x * x for x in near) / len(near)))
    score = []
    for i in range(n):
        # Of two points of equal density, the first is the denser.
        denser = [d[i][j] for j in range(n) if (density[j], -j) > (density[i], -i)]
        score.append(density[i] * (min(denser) if denser else max(d[i])))
    centres = best(score, number)
    members = {c: [] for c in centres}
    for i in range(n):
        members[i if i in centres else min(centres, key=lambda c: d[i][c])].append(i)
    return list(members.values()), density


def reference_v1(one, words, count, neighbours=None):
    """Kept tokens in order of score, then {place of a cluster: its mean}."""
    scores = reference_scores(one["attention"], reference_raters(one["input"], words))
    n = len(scores)
    order = best(scores, n)
    for keep in range(count, 0, -1):  # the most that leave room for their clusters
        dropped = n - keep
        number = int(0.3 * dropped) + 1 if dropped else 0
        clusters = number // 10 + 1 if dropped else 0
        if keep + clusters == count:
            break
    again = sorted(order[keep : keep + number])
    points = one["features"].double()[again].tolist()
    merged = {}
    if clusters:
        groups, density = reference_clusters(points, clusters, neighbours)
        for group in groups:
            place = max(group, key=lambda i: (density[i], -i))
            merged[again[place]] = [sum(points[i][c] for i in group) / len(group) for c in range(10)]
    return order[:keep], merged


def reference_v2(one, words, share=14 / 32, floor=0.5):
    """Scores: probabilities over logits, from the heads in which the raters' sum of those is highest."""
    rated = reference_raters(one["input"], words)
    attention, rope = one["attention"].double().tolist(), one["rope"].double().tolist()
    number = len(attention[0])
    freed = [
        [[head[t] / max(alone[t], floor) for t in rated] for head in token]
        for token, alone in zip(attention, rope, strict=True)
    ]
    mass = [sum(sum(token[h]) for token in freed) for h in range(number)]
    heads = best(mass, int(share * number + 0.5))
    return [sum(sum(token[h]) for h in heads) / (len(heads) * len(rated)) for token in freed]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("neighbours", [None, 1, 5])
@pytest.mark.parametrize(("n", "count"), [(90, 8), (90, 30), (90, 50), (90, 75), (180, 9)])  # 1 to 6 clusters
def test_first_version_keeps_rates_and_recycles(seed, n, count, neighbours):
    one, words = row(seed, n, 8), text(seed, 8)
    got = SparseVLMStage(neighbours=neighbours).select(batch([one], [words]), [count])
    keep, merged = reference_v1(one, words, count, neighbours)
    assert kept(got)[: len(keep)] == keep
    assert sorted(kept(got)[len(keep) :]) == sorted(merged)
    for index, features in zip(kept(got), got.features[0], strict=True):
        want = torch.tensor(merged[index]) if index in merged else one["features"][index]
        assert torch.allclose(features, want, atol=1e-5)
    assert got.sizes is not None and (got.sizes[0, : len(keep)] == 1).all()
    _, pool, _ = split(n, count, 0.3)
    assert float(got.sizes.sum()) == len(keep) + (pool if merged else 0)


@pytest.mark.parametrize("seed", range(6))
def test_second_version_divides_by_rotary_logits(seed):
    one, words = row(seed, 28, 8, heads=7), text(seed, 8)
    assert (one["rope"] <= 0).any()
    scores = reference_v2(one, words)
    for count in (1, 10, 28):
        got = SparseVLM2Stage().select(batch([one], [words]), [count])
        assert kept(got) == best(scores, count)
        assert got.features is None


@pytest.mark.parametrize("seed", range(3))
def test_second_version_with_the_logits_of_rotary_positions(seed):
    """A picture right before the text: all logits are positive, and their scale changes no ranking."""
    one, words = row(seed, 60, 8, heads=7), text(seed, 8)
    angles = [10000 ** (-2 * f / 128) for f in range(64)]
    one["rope"] = torch.tensor(
        [
            [2 / math.sqrt(128) * sum(math.cos((60 + t - v) * a) for a in angles) for t in range(8)]
            for v in range(60)
        ]
    )
    assert (one["rope"] > 4).all()
    scores = reference_v2(one, words, floor=-math.inf)
    assert kept(SparseVLM2Stage().select(batch([one], [words]), [60])) == best(scores, 60)
    double = dict(one, rope=2 * one["rope"])
    assert kept(SparseVLM2Stage().select(batch([double], [words]), [60])) == best(scores, 60)


def test_heads_are_ranked_after_the_division():
    one, words = row(0, 2, 1, heads=2), text(0, 1)
    # Head 0 looks more, but at what is near; head 1, at what is far, is left when nearness is taken out.
    one["attention"] = torch.tensor([[[0.6], [0.05]], [[0.0], [0.4]]])
    one["rope"] = torch.tensor([[10.0], [1.0]])
    assert kept(SparseVLM2Stage(heads=0.5).select(batch([one], [words]), [1])) == [1]


def test_far_tokens_do_not_turn_signs():
    one, words = row(0, 4, 1, heads=1), text(0, 1)
    one["attention"] = torch.tensor([0.1, 0.2, 0.4, 0.3])[:, None, None]
    one["rope"] = torch.tensor([[5.0], [-2.0], [0.0], [1e-6]])
    # The last three count as equally far, and rank by attention.
    assert kept(SparseVLM2Stage().select(batch([one], [words]), [4])) == [2, 3, 1, 0]


@pytest.mark.parametrize(
    "method", [SparseVLMStage(), SparseVLMStage(recycle=0), SparseVLM2Stage(), SparseVLM2Stage(heads=0.01)]
)
def test_contract(method):
    check_contract(method)


def test_everything_kept_is_left_alone():
    one = row(3, 24, 6)
    got = SparseVLMStage().select(batch([one], [text(3, 6)]), [24])
    assert sorted(kept(got)) == list(range(24))
    assert torch.equal(got.features[0], one["features"][got.indices[0]])


@pytest.mark.parametrize("method", [SparseVLMStage(recycle=0), SparseVLM2Stage()])
def test_ties_go_to_the_lowest_index(method):
    one = row(0, 12, 4)
    one["attention"] = torch.full((12, 6, 4), 0.25)
    one["rope"] = torch.full((12, 4), 4.0)
    one["attention"][7] = 0.5
    assert kept(method.select(batch([one], [text(0, 4)], extra=3), [4])) == [7, 0, 1, 2]


def test_equal_scores_and_copies_recycle_in_order():
    one = row(0, 12, 4)
    one["attention"] = torch.full((12, 6, 4), 0.25)
    one["features"] = torch.ones(12, 10)
    got = SparseVLMStage().select(batch([one], [text(0, 4)]), [4])
    # 3 kept; of 9 dropped tokens 3, 4 and 5 make one cluster, and of copies the first is the densest.
    assert kept(got) == [0, 1, 2, 3]
    assert torch.allclose(got.features[0], torch.ones(4, 10))


def test_paper_counts_come_back_from_its_totals():
    # 576 -> 300 + 9 -> 200 + 4 -> 110 + 3, as in the record of the released code.
    for n, total, keep, clusters in ((576, 309, 300, 9), (309, 204, 200, 4), (204, 113, 110, 3)):
        assert split(n, total, 0.3)[::2] == (keep, clusters)


@pytest.mark.parametrize("n", [1, 2, 3, 17, 60, 576])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_split_meets_the_count(n, share):
    for count in range(n + 1):
        keep, pool, clusters = split(n, count, share)
        assert keep + clusters == count
        assert clusters <= pool <= n - keep
        assert keep >= min(count, 1)


def test_later_stages_use_the_raters_of_the_first():
    one, words = row(0, 24, 8), text(0, 8)
    for method in (SparseVLMStage(recycle=0), SparseVLM2Stage()):
        memory = {}
        method.select(batch([one], [words], memory=memory), [20])
        later = row(0, 20, 8)
        got = method.select(batch([later], [words], memory=memory), [6])
        swapped = dict(later, input=torch.randn(20, 10) * 3)
        again = method.select(batch([swapped], [words], memory=memory), [6])
        assert kept(again) == kept(got)
    tokens = batch([later], [words], memory={})
    SparseVLMStage().select(tokens, [6])
    found = tokens.signals.memory["sparsevlm-stage.raters"][0].nonzero().flatten().tolist()
    assert found == reference_raters(later["input"], words)


def test_views_share_the_raters_of_their_sample():
    rows, words = [row(0, 14, 6), row(1, 10, 6)], text(0, 6)
    tokens = batch(rows, [words], samples=[0, 0])
    got = SparseVLM2Stage(scope="view").select(tokens, [4, 3])
    want = reference_raters(torch.cat([r["input"] for r in rows]), words)
    assert tokens.signals.memory["sparsevlm-v2-stage.raters"][0].nonzero().flatten().tolist() == want
    assert [len(kept(got, v)) for v in range(2)] == [4, 3]


def test_a_single_text_token_rates():
    one = row(4, 15, 1)
    want = best(reference_scores(one["attention"], [0]), 5)
    assert kept(SparseVLMStage(recycle=0).select(batch([one], [text(4, 1)]), [5])) == want


def test_heads_that_look_elsewhere_are_not_asked():
    one, words = row(5, 20, 6), text(5, 6)
    noisy = dict(one, attention=one["attention"].clone())
    noisy["attention"][:, 3:] *= 1e-3
    noisy["attention"][:, 3:] = noisy["attention"][:, 3:].flip(0)
    half = SparseVLM2Stage(heads=0.5)
    only = dict(noisy, attention=noisy["attention"][:, :3])
    got = half.select(batch([noisy], [words]), [6])
    assert kept(got) == kept(SparseVLM2Stage(heads=1).select(batch([only], [words]), [6]))


def test_fields():
    assert SparseVLMStage() == SparseVLMStage(layer=3, scope="sample", recycle=0.3, neighbours=None)
    assert SparseVLM2Stage() == SparseVLM2Stage(layer=3, scope="sample", heads=14 / 32)
    assert SparseVLMStage.needs == {Signal.ATTENTION, Signal.INPUT}
    assert SparseVLM2Stage.needs == {Signal.ATTENTION, Signal.INPUT, Signal.ROPE}
    for kind in (SparseVLMStage, SparseVLM2Stage):
        with pytest.raises(PruneError, match="layer=0"):
            kind(layer=0)
        with pytest.raises(PruneError, match="scope='image'"):
            kind(scope="image")
    for recycle in (-0.1, 1.5, True, "all"):
        with pytest.raises(PruneError, match=r"sparsevlm-stage: recycle=.*from 0 up to 1"):
            SparseVLMStage(recycle=recycle)
    with pytest.raises(PruneError, match="neighbours=0; give an integer from 1"):
        SparseVLMStage(neighbours=0)
    for heads in (0, 1.2):
        with pytest.raises(PruneError, match=r"sparsevlm-v2-stage: heads=.*above 0 and up to 1"):
            SparseVLM2Stage(heads=heads)


@pytest.mark.parametrize("method", [SparseVLMStage(recycle=0), SparseVLM2Stage()])
def test_a_prompt_without_text_keeps_the_first_tokens(method):
    rows, texts = [row(0, 20, 6), row(1, 12, 6)], [text(0, 6), text(1, 0)]
    rows[1]["attention"], rows[1]["rope"] = rows[1]["attention"] * 0, rows[1]["rope"] * 0
    got = method.select(batch(rows, texts), [5, 3])
    assert kept(got, 1) == [0, 1, 2]
    assert kept(got) == kept(method.select(batch(rows[:1], texts[:1]), [5]))
