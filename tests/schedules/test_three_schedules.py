"""V2Drop, MVPruner and ApET: where their stages go and how they share a layer-averaged budget."""

import itertools
from fractions import Fraction

import pytest

from prune2drive.allocators.average import LayerAveraged, Plan
from prune2drive.errors import PruneError
from prune2drive.layer_pruners.apet import ApETStage
from prune2drive.layer_pruners.base import LayerPruner
from prune2drive.layer_pruners.mvpruner import MVPrunerStage
from prune2drive.layer_pruners.v2drop import V2DropStage
from prune2drive.schedules.apet import ApET
from prune2drive.schedules.mvpruner import MVPruner
from prune2drive.schedules.v2drop import V2Drop
from prune2drive.selectors.apet import ApETSelect
from prune2drive.selectors.mvpruner import MVPrunerSelect

ALL = [V2Drop(), MVPruner(), ApET()]


def starts(schedule, depth):
    return tuple(s.layer if isinstance(s, LayerPruner) else 0 for s in schedule.stages(depth))


def plan(schedule, depth=32, **asked):
    return Plan(LayerAveraged(**asked), starts(schedule, depth), depth, schedule.shares, schedule.name)


def test_stages():
    assert V2Drop().stages(32) == [V2DropStage(3), V2DropStage(17), V2DropStage(22)]
    assert MVPruner().stages(32) == [MVPrunerSelect(), MVPrunerStage(16)]
    assert ApET().stages(32) == [ApETSelect(), ApETStage(16)]
    assert V2Drop(metric="l1", scope="view").stages(32)[1] == V2DropStage(17, "l1", "view")


def test_layers_scale_with_depth():
    assert starts(V2Drop(), 28) == (3, 15, 19)
    assert starts(ApET(), 28) == (0, 14)
    assert starts(MVPruner(), 24) == (0, 12)
    assert starts(V2Drop(), 4) == (1, 2, 3)
    assert starts(V2Drop(layers=(1, 4, 9)), 12) == (1, 4, 9)
    assert starts(ApET(layers=(5,)), 12) == (0, 5)
    assert starts(MVPruner(layers=(5,)), 12) == (0, 5)


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: s.name)
def test_shares_grow_with_strength_and_shrink_with_depth(schedule):
    before = [0.0] * len(schedule.stages(32))
    assert max(schedule.shares(0.0)) == 0
    for step in range(1, 1001):
        shares = schedule.shares(step / 1000)
        assert len(shares) == len(before)
        assert all(a <= b <= 1 for a, b in zip(before, shares, strict=True))
        assert all(a >= b - 1e-12 for a, b in itertools.pairwise(shares))
        before = list(shares)
    assert before == pytest.approx([1.0] * len(before))
    for strength in (-0.1, 1.1):
        with pytest.raises(PruneError, match="outside 0 to 1"):
            schedule.shares(strength)


def test_v2drop_passes_through_the_papers_setting():
    assert V2Drop().shares(0.5) == (0.5, 0.25, 0.0)
    # 3 layers of 576, 14 of 288, 5 of 144, 10 of 1: the paper's average of 202.8.
    counts = plan(V2Drop(), tokens=Fraction(6490, 32)).totals(576, 1)
    assert counts == [288, 144, 1]


@pytest.mark.parametrize(("before", "after"), [(96 / 576, 32 / 576), (192 / 2880, 64 / 2880), (0.3, 0.1)])
def test_apet_passes_through_the_papers_settings(before, after):
    assert ApET().shares(before) == pytest.approx((before, after))


def test_apet_average():
    assert plan(ApET(), tokens=64).totals(576, 1) == [96, 32]


def test_mvpruner_solves_the_papers_equation():
    first, second = MVPruner().shares(0.171)
    assert (16 * first + 16 * second) / 32 == pytest.approx(0.1, abs=2e-4)


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: s.name)
@pytest.mark.parametrize("depth", [24, 28, 32])
def test_any_average_that_the_early_layers_allow(schedule, depth):
    visual, views = 6 * 729, 6
    first = starts(schedule, depth)[0]
    for retention in (0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 0.75, 0.9, 1.0):
        if retention <= first / depth + 0.01:
            continue
        found = plan(schedule, depth, retention=retention)
        counts = found.totals(visual, views)
        assert counts == sorted(counts, reverse=True)
        assert counts[-1] >= views
        assert float(found.average(counts, visual)) == pytest.approx(retention * visual, abs=1)


def test_v2drop_refuses_what_its_first_layers_already_spend():
    with pytest.raises(PruneError, match="the layers before 3 see all 576"):
        plan(V2Drop(), retention=0.05).totals(576, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: V2Drop(layers=(3, 17)), r"v2drop: layers=\(3, 17\) are 2 layers; give 3"),
        (lambda: V2Drop(layers=(3, 2, 9)), "v2drop: layers=.*ascending"),
        (lambda: V2Drop(metric="l3"), "v2drop: unknown metric='l3'"),
        (lambda: V2Drop(scope="batch"), "v2drop: scope='batch'"),
        (lambda: ApET(layers=(0,)), "apet: layers="),
        (lambda: MVPruner(layers=16), "mvpruner: layers=16"),
        (lambda: ApET(layers=(40,)).stages(32), "apet: layers=.*has 32 layers"),
    ],
)
def test_bad_fields(make, message):
    with pytest.raises(PruneError, match=message):
        make()
