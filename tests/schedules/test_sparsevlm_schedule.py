"""SparseVLM's layers, and shares that pass through the tables of the released code."""

from itertools import pairwise

import pytest

from prune2drive.errors import PruneError
from prune2drive.layer_pruners.sparsevlm import SparseVLM2Stage, SparseVLMStage
from prune2drive.schedules.sparsevlm import SparseVLM, SparseVLM2

# Kept tokens and clusters of recycled ones, worked out by hand from the table and the recycling rule; the
# first stage of 128 would keep 312 by itself.
TOTALS = {192: (309, 204, 113), 128: (309, 117, 39), 96: (249, 55, 27), 64: (82, 32, 18)}
# The first stage of 96 would keep 246 by itself.
TOTALS2 = {192: (300, 200, 118), 128: (238, 108, 60), 96: (238, 54, 28), 64: (66, 34, 20)}


@pytest.mark.parametrize(("method", "totals"), [(SparseVLM(), TOTALS), (SparseVLM2(), TOTALS2)])
def test_shares_pass_through_the_table(method, totals):
    for target, counts in totals.items():
        assert [share * 576 for share in method.shares(target / 576)] == pytest.approx(counts)


def test_the_code_accounts_what_it_passes_on():
    # The record of "192" is exactly 192 tokens; 128 and 64 come close, in either version.
    for totals in (TOTALS, TOTALS2):
        for target, (a, b, c) in totals.items():
            assert (2 * 576 + 4 * a + 9 * b + 17 * c) / 32 == pytest.approx(target, abs=1.5)


@pytest.mark.parametrize("method", [SparseVLM(), SparseVLM2()])
def test_strength_reaches_from_nothing_to_all(method):
    shares = [method.shares(step / 999) for step in range(1000)]
    assert shares[0] == (0, 0, 0) and shares[-1] == (1, 1, 1)
    for low, high in pairwise(shares):
        assert all(a <= b for a, b in zip(low, high, strict=True))
        assert high[0] >= high[1] >= high[2]


def test_stages():
    assert SparseVLM().stages(32) == [SparseVLMStage(n) for n in (3, 7, 16)]
    assert SparseVLM2().stages(32) == [SparseVLM2Stage(n) for n in (3, 7, 16)]
    assert [s.layer for s in SparseVLM().stages(28)] == [3, 6, 14]
    own = SparseVLM(layers=(1, 2, 3), scope="view", recycle=0.1, neighbours=3)
    assert own.stages(4)[1] == SparseVLMStage(2, scope="view", recycle=0.1, neighbours=3)
    assert SparseVLM2(layers=(1, 2, 3), heads=0.5).stages(4)[2] == SparseVLM2Stage(3, heads=0.5)


def test_bad_input():
    for kind in (SparseVLM, SparseVLM2):
        with pytest.raises(PruneError, match="are 2 layers; give 3"):
            kind(layers=(1, 2))
        with pytest.raises(PruneError, match="scope='x'"):
            kind(scope="x")
        with pytest.raises(PruneError, match="strength -1 is outside"):
            kind().shares(-1)
    with pytest.raises(PruneError, match="recycle=2"):
        SparseVLM(recycle=2)
    with pytest.raises(PruneError, match="heads=0"):
        SparseVLM2(heads=0)
