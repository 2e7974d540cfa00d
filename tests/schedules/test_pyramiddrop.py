"""PyramidDrop's layers and shares."""

from itertools import pairwise

import pytest

from prune2drive.errors import PruneError
from prune2drive.layer_pruners.attention_rank import AttentionRank
from prune2drive.schedules.pyramiddrop import PyramidDrop


def test_stages_of_the_paper():
    assert PyramidDrop().stages(32) == [AttentionRank(n, rows="last", scope="sample") for n in (8, 16, 24)]
    assert [s.layer for s in PyramidDrop().stages(28)] == [7, 14, 21]
    assert [s.layer for s in PyramidDrop().stages(4)] == [1, 2, 3]
    assert PyramidDrop().shares(0.5) == (0.5, 0.25, 0.125)
    # (8 * 576 + 8 * 288 + 8 * 144 + 8 * 72) / 32 = 270, the reference's layer average.
    assert (8 + 8 * sum(PyramidDrop().shares(0.5))) / 32 * 576 == 270


def test_layers_of_the_user():
    own = PyramidDrop(layers=(1, 5), scope="view")
    assert own.stages(8) == [AttentionRank(1, scope="view"), AttentionRank(5, scope="view")]
    assert own.shares(0.3) == pytest.approx((0.3, 0.09))
    with pytest.raises(PruneError, match=r"pyramiddrop: layers=\(1, 5\).*5 layers, 0 to 4"):
        own.stages(5)


def test_strength_reaches_from_nothing_to_all():
    shares = [PyramidDrop().shares(step / 50) for step in range(51)]
    assert shares[0] == (0, 0, 0) and shares[-1] == (1, 1, 1)
    for low, high in pairwise(shares):
        assert all(a <= b for a, b in zip(low, high, strict=True))
        assert high[0] >= high[1] >= high[2]


@pytest.mark.parametrize("layers", [(), (0, 2), (2, 2), (5, 3), [1, 2], (1.0, 2), (True, 2)])
def test_bad_layers(layers):
    with pytest.raises(PruneError, match=r"pyramiddrop: layers=.*ascending layers from 1"):
        PyramidDrop(layers=layers)


def test_other_bad_input():
    with pytest.raises(PruneError, match="scope='x'"):
        PyramidDrop(scope="x")
    with pytest.raises(PruneError, match=r"pyramiddrop: strength 1.5 is outside 0 to 1"):
        PyramidDrop().shares(1.5)
    with pytest.raises(PruneError, match="do not fit a language model of 3 layers"):
        PyramidDrop().stages(3)
