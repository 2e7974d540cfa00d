"""DUET's stages and shares."""

from itertools import pairwise

import pytest

from prune2drive.errors import PruneError
from prune2drive.layer_pruners.attention_rank import AttentionRank
from prune2drive.schedules.duet import Duet, DuetTFPS
from prune2drive.selectors.duet import DuetSelect


def average(shares):
    return (16 * shares[0] + 8 * shares[1] + 8 * shares[2]) / 32


@pytest.mark.parametrize(("kind", "cluster"), [(Duet, "keys"), (DuetTFPS, "tfps")])
def test_stages(kind, cluster):
    first, *ranks = kind().stages(32)
    assert first == DuetSelect(cluster=cluster)
    assert ranks == [AttentionRank(16, rows="text"), AttentionRank(24, rows="text")]
    assert [s.layer for s in kind(scope="view").stages(28)[1:]] == [14, 21]
    assert kind(layers=(2, 3), scope="view").stages(4)[2] == AttentionRank(3, rows="text", scope="view")


def test_paper_shares():
    # 300 + 7 tokens, half of them from layer 16, none from layer 24: 191.9 on average.
    shares = Duet().shares(191.875 / 576)
    assert [s * 576 for s in shares] == pytest.approx([307, 153.5, 0])
    # The ratios for Qwen2.5-VL.
    v, half, quarter = Duet(ratios=(0.5, 0.25)).shares(0.2)
    assert (half / v, quarter / v) == pytest.approx((0.5, 0.25))


@pytest.mark.parametrize("ratios", [(0.5, 0.0), (0.5, 0.25), (1.0, 1.0), (0.0, 0.0)])
def test_strength_is_the_average_and_reaches_from_nothing_to_all(ratios):
    shares = [Duet(ratios=ratios).shares(step / 500) for step in range(501)]
    assert shares[0] == (0, 0, 0) and shares[-1] == (1, 1, 1)
    for step, row in enumerate(shares):
        assert average(row) == pytest.approx(step / 500)
        assert row[0] >= row[1] >= row[2]
    for low, high in pairwise(shares):
        assert all(a <= b for a, b in zip(low, high, strict=True))


def test_bad_input():
    for ratios in ((0.5,), (0.2, 0.5), (1.5, 0.5), (0.5, -0.1), [0.5, 0.0], 0.5):
        with pytest.raises(PruneError, match=r"duet: ratios=.*from 1 down to 0"):
            Duet(ratios=ratios)
    with pytest.raises(PruneError, match=r"duet-tfps: layers=.*are 3 layers; give 2"):
        DuetTFPS(layers=(1, 2, 3))
    with pytest.raises(PruneError, match="scope='x'"):
        Duet(scope="x")
    with pytest.raises(PruneError, match="strength 2 is outside"):
        Duet().shares(2)
