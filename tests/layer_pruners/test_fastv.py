"""FastV against its formula in plain Python, and what every method must do."""

import pytest
import torch
from attention_batches import batch, best, check_contract, kept, row, text

from prune2drive.errors import PruneError
from prune2drive.layer_pruners.fastv import FastV
from prune2drive.tokens import Signal


@pytest.mark.parametrize("seed", range(5))
def test_keeps_what_the_last_token_attends_to(seed):
    one = row(seed, 30, 6)
    scores = [sum(heads) / len(heads) for heads in one["last_attention"].double().tolist()]
    for count in (1, 11, 30):
        assert kept(FastV().select(batch([one], [text(seed, 6)]), [count])) == best(scores, count)


def test_contract():
    check_contract(FastV())


def test_ties_go_to_the_lowest_index():
    one = row(0, 12, 4)
    one["last_attention"] = torch.full((12, 6), 0.25)
    one["last_attention"][7] = 0.5
    assert kept(FastV().select(batch([one], [text(0, 4)], extra=3), [4])) == [7, 0, 1, 2]


def test_views_of_a_sample_may_be_ranked_alone():
    rows = [row(seed, 10, 5) for seed in range(2)]
    got = FastV(scope="view").select(batch(rows, [text(0, 5)], samples=[0, 0]), [3, 4])
    assert [len(kept(got, v)) for v in range(2)] == [3, 4]


def test_fields():
    assert FastV() == FastV(layer=2, scope="sample")
    assert FastV.name == "fastv"
    assert FastV.needs == {Signal.LAST_ATTENTION}
    for layer in (0, -1, True, 1.5):
        with pytest.raises(PruneError, match=r"fastv: layer=.*layer 1 or later"):
            FastV(layer=layer)
    with pytest.raises(PruneError, match="fastv: scope='image'; use 'sample'"):
        FastV(scope="image")
