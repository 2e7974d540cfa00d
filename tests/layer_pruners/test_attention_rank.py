"""One stage of PyramidDrop and of DUET against their formulas in plain Python."""

import pytest
import torch
from attention_batches import batch, best, check_contract, kept, row, text

from prune2drive.errors import PruneError
from prune2drive.layer_pruners.attention_rank import AttentionRank
from prune2drive.tokens import Signal


def reference(own_attention, which):
    """Score of each token: mean over heads and over the text tokens ``which``."""
    scores = []
    for token in own_attention.double().tolist():
        total = sum(head[t] for head in token for t in which)
        scores.append(total / (len(token) * len(which)))
    return scores


@pytest.mark.parametrize("seed", range(5))
def test_last_asks_the_last_real_text_token(seed):
    one = row(seed, 26, 7)
    tokens = batch([one, row(9, 20, 11)], [text(seed, 7), text(9, 11)])
    want = best(reference(one["own_attention"], [6]), 9)
    assert kept(AttentionRank().select(tokens, [9, 2])) == want


@pytest.mark.parametrize("seed", range(5))
def test_text_asks_all_real_text_tokens(seed):
    one = row(seed, 26, 7)
    tokens = batch([one, row(9, 20, 11)], [text(seed, 7), text(9, 11)])
    want = best(reference(one["own_attention"], range(7)), 9)
    assert kept(AttentionRank(rows="text").select(tokens, [9, 2])) == want


@pytest.mark.parametrize("rows", ["last", "text"])
def test_contract(rows):
    check_contract(AttentionRank(rows=rows))


def test_views_find_their_samples_text():
    rows = [row(0, 14, 6), row(1, 14, 6), row(2, 14, 3)]
    tokens = batch(rows, [text(0, 6), text(1, 3)], samples=[0, 0, 1])
    got = AttentionRank(scope="view").select(tokens, [4, 4, 4])
    for v, last in enumerate([5, 5, 2]):
        assert kept(got, v) == best(reference(rows[v]["own_attention"], [last]), 4)


def test_ties_go_to_the_lowest_index():
    one = row(0, 12, 4)
    one["own_attention"] = torch.full((12, 6, 4), 0.25)
    one["own_attention"][9] = 0.5
    for rows in ("last", "text"):
        got = AttentionRank(rows=rows).select(batch([one], [text(0, 4)], extra=3), [3])
        assert kept(got) == [9, 0, 1]


def test_fields():
    assert AttentionRank() == AttentionRank(layer=8, rows="last", scope="sample")
    assert AttentionRank.needs == {Signal.OWN_ATTENTION}
    with pytest.raises(PruneError, match="attention-rank: layer=0"):
        AttentionRank(layer=0)
    with pytest.raises(PruneError, match="attention-rank: scope='all'"):
        AttentionRank(scope="all")
    with pytest.raises(PruneError, match=r"unknown rows='lats'. Did you mean 'last'"):
        AttentionRank(rows="lats")
    with pytest.raises(PruneError, match=r"part-of-speech.*use rows='text'"):
        AttentionRank(rows="salient")
