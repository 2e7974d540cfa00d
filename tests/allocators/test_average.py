"""Layer-averaged budgets against all counts there are, on cases small enough to list them."""

import itertools
import math
import random
from fractions import Fraction

import pytest
import torch

from prune2drive.allocators import LayerAveraged
from prune2drive.allocators.average import AveragedStage, Plan
from prune2drive.allocators.total import split
from prune2drive.engine.stages import _Powers
from prune2drive.errors import PruneError
from prune2drive.rig import NUSCENES
from prune2drive.schedules.apet import ApET
from prune2drive.schedules.duet import Duet
from prune2drive.schedules.pyramiddrop import PyramidDrop
from prune2drive.schedules.sparsevlm import SparseVLM
from prune2drive.tokens import View

SCHEDULES = {s.name: s for s in (PyramidDrop(), SparseVLM(), Duet(), ApET())}


def starts_of(schedule, depth):
    return tuple(getattr(stage, "layer", 0) for stage in schedule.stages(depth))


def shares_of(name, depth, generator):
    """Where the stages start and what they keep: of a schedule, or equal parts at layers drawn."""
    if name in SCHEDULES:
        return starts_of(SCHEDULES[name], depth), SCHEDULES[name].shares
    stages = int(name[-1])
    return tuple(sorted(generator.sample(range(depth), stages))), _Powers(stages)


def spent(counts, starts, depth, visual):
    """Tokens that the layers see together, layer by layer."""
    seen = 0
    for layer in range(depth):
        there = [k for k, start in zip(counts, starts, strict=True) if start <= layer]
        seen += there[-1] if there else visual
    return seen


def possible(starts, visual, views):
    """Every way to share out: no stage under a token for each view, none more than the one before."""
    ways = itertools.product(range(views, visual + 1), repeat=len(starts))
    return [c for c in ways if list(c) == sorted(c, reverse=True)]


@pytest.mark.parametrize("name", [*SCHEDULES, "powers1", "powers2", "powers3"])
def test_the_average_is_met_from_below_as_closely_as_whole_tokens_allow(name):
    generator = random.Random(name)
    refused = met = 0
    for _ in range(120):
        depth = generator.choice([4, 6, 8, 12, 32])
        views = generator.choice([1, 2, 3])
        visual = generator.randint(views, 12)
        starts, shares = shares_of(name, depth, generator)
        asked = LayerAveraged(tokens=Fraction(generator.randint(1, visual * depth), depth))
        plan = Plan(asked, starts, depth, shares, name)
        ways = [(spent(c, starts, depth, visual), c) for c in possible(starts, visual, views)]
        most = asked.tokens * depth
        if min(ways)[0] > most:
            refused += 1
            with pytest.raises(PruneError, match=f"{name}: .* tokens on average asked"):
                plan.totals(visual, views)
            continue
        met += 1
        counts = plan.totals(visual, views)
        got = spent(counts, starts, depth, visual)
        assert plan.average(counts, visual) == Fraction(got, depth)
        assert tuple(counts) in [c for _, c in ways] and got <= most
        # No stage can have one more: what is missing is less than a token of the last stage, unless that
        # has all that the one before left.
        for stage in range(len(counts)):
            more = [k + (number == stage) for number, k in enumerate(counts)]
            if tuple(more) in [c for _, c in ways]:
                assert spent(more, starts, depth, visual) > most, (counts, more, starts, depth, visual)
    assert (met > 40 and refused > 0) or name == "powers1"


@pytest.mark.parametrize("name", SCHEDULES)
def test_real_sizes_are_met_within_one_token_of_the_last_stage(name):
    schedule, depth, visual, views = SCHEDULES[name], 32, 6 * 144, 6
    starts = starts_of(schedule, depth)
    last = depth - starts[-1]
    before = 0
    for percent in range(1, 101):
        plan = Plan(LayerAveraged(percent / 100), starts, depth, schedule.shares, name)
        if spent([views] * len(starts), starts, depth, visual) * 100 > percent * visual * depth:
            with pytest.raises(PruneError):
                plan.totals(visual, views)
            continue
        counts = plan.totals(visual, views)
        got = spent(counts, starts, depth, visual)
        left = Fraction(percent * visual * depth, 100) - got
        assert 0 <= left < last or counts[-1] == (counts[-2] if len(counts) > 1 else visual)
        assert counts == sorted(counts, reverse=True)
        assert got > before
        before = got
    assert counts == [visual] * len(starts)


def test_one_stage_before_the_model_keeps_the_rate():
    plan = Plan(LayerAveraged(0.1), (0,), 32, _Powers(1), "tfps")
    for visual in range(10, 200, 7):
        assert plan.totals(visual, 1) == [visual // 10]
    assert Plan(LayerAveraged(tokens=64), (0,), 32, _Powers(1), "tfps").totals(576, 1) == [64]


def test_one_stage_inside_keeps_what_the_layers_before_left_to_spend():
    """64 kept from layer 2 of 32 on: 2 layers of 576 and 30 of 64 are 96 on average."""
    assert Plan(LayerAveraged(tokens=96), (2,), 32, _Powers(1), "fastv").totals(576, 1) == [64]


def test_numbers_are_those_written():
    """0.1 of 10 is 1, and 4.2 is 42 tenths, whatever floating point makes of them."""
    assert LayerAveraged(0.1).target(10) == 1
    assert LayerAveraged(0.07).target(100) == 7
    assert LayerAveraged(tokens=4.2).target(100) == Fraction(42, 10)
    assert LayerAveraged(tokens=Fraction(6490, 32)).target(576) == Fraction(6490, 32)
    assert LayerAveraged(tokens=99).target(10) == 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "a retention, as in 0.10, or tokens=64, and not both"),
        ({"retention": 0.1, "tokens": 3}, "not both"),
        ({"retention": 0}, r"layer-averaged retention 0 is not in \(0, 1\]"),
        ({"retention": 10}, "for 10% write 0.10"),
        ({"retention": True}, "layer-averaged retention True is not a number"),
        ({"tokens": 0}, "layer-averaged tokens=0 is not a positive number"),
        ({"tokens": -3}, "tokens=-3 is not a positive number"),
        ({"tokens": True}, "tokens=True is not a positive number"),
        ({"tokens": "64"}, "tokens='64' is not a positive number"),
        ({"tokens": math.nan}, "tokens=nan is not a positive number"),
        ({"tokens": math.inf}, "tokens=inf is not a positive number"),
    ],
)
def test_what_cannot_be_asked(arguments, words):
    with pytest.raises(PruneError, match=words):
        LayerAveraged(**arguments)


def test_an_impossible_average_says_what_is_spent_and_what_to_do():
    plan = Plan(LayerAveraged(tokens=64), (16,), 32, _Powers(1), "late")
    # 16 layers of 576 and 16 of 6: 291.
    with pytest.raises(
        PruneError,
        match=r"late: 64 tokens on average asked, of 576 in 32 layers it keeps at least 291; the layers "
        r"before 16 see all 576\. Ask for more, choose at an earlier layer, or put a method before",
    ):
        plan.totals(576, 6)
    with pytest.raises(PruneError, match=r"keeps at least 6\. Ask for more"):
        Plan(LayerAveraged(tokens=3), (0,), 32, _Powers(1), "early").totals(576, 6)


def views_of(lengths, names=NUSCENES.names):
    out = []
    for name, n in zip(names, lengths, strict=False):
        zeros = torch.zeros(n, dtype=torch.long)
        out.append(View(name, torch.arange(n), torch.zeros(n, 4), zeros, zeros))
    return out


@pytest.mark.parametrize("lengths", [[16] * 6, [3, 40, 11], [1, 1, 30], [7]])
@pytest.mark.parametrize("retention", [0.3, 0.55, 0.8, 1.0])
def test_stages_share_their_totals_evenly_and_no_view_ever_grows(lengths, retention):
    schedule, depth = Duet(), 32
    plan = Plan(LayerAveraged(retention), starts_of(schedule, depth), depth, schedule.shares, "duet")
    stages = [AveragedStage(plan, number).allocate(views_of(lengths), NUSCENES) for number in range(3)]
    assert [sum(counts) for counts in stages] == plan.totals(sum(lengths), len(lengths))
    for before, after in itertools.pairwise([lengths, *stages]):
        assert all(1 <= k <= n for k, n in zip(after, before, strict=True))
        # Even shares: as near to the rate as a whole token, and a token for each view, allow.
        rate = sum(after) / sum(before)
        free = [(k, n) for k, n in zip(after, before, strict=True) if 1 < k < n]
        if len(free) == len(before):
            assert all(abs(k - rate * n) < 1 for k, n in free)


def test_no_view_grows_even_where_shares_of_the_whole_would_make_it():
    """Rounded shares of a smaller total can be larger (the Alabama paradox)."""
    generator, paradoxes = random.Random(0), 0
    for _ in range(300):
        lengths = [generator.randint(1, 30) for _ in range(generator.randint(3, 6))]
        asked = LayerAveraged(generator.choice([0.4, 0.6, 0.8, 0.9, 0.95]))
        plan = Plan(asked, (0, 1, 2), 12, lambda s: (s, s**1.1, s**1.2), "steps")
        try:
            totals = plan.totals(sum(lengths), len(lengths))
        except PruneError:
            continue
        stages = [AveragedStage(plan, number).allocate(views_of(lengths), NUSCENES) for number in range(3)]
        assert [sum(counts) for counts in stages] == totals
        for before, after in itertools.pairwise([lengths, *stages]):
            assert all(1 <= k <= n for k, n in zip(after, before, strict=True))
        anew = [split(total, lengths, [1.0] * len(lengths)) for total in totals]
        paradoxes += any(k > n for b, c in itertools.pairwise(anew) for n, k in zip(b, c, strict=True))
    assert paradoxes > 0


def test_rounding_rules_do_not_apply_and_an_empty_sample_keeps_nothing():
    plan = Plan(LayerAveraged(0.5), (0,), 4, _Powers(1), "tfps")
    stage = AveragedStage(plan, 0)
    assert stage.allocate([], None) == []
    views = views_of([5, 6])
    assert stage.allocate(views, None) == stage.allocate(views, None, "truncate") == [2, 3]


def test_a_camera_that_is_none_of_the_rig_is_refused():
    stage = AveragedStage(Plan(LayerAveraged(0.5), (0,), 4, _Powers(1), "tfps"), 0)
    with pytest.raises(PruneError, match="CAM_FORNT is not a camera of rig nuscenes"):
        stage.allocate(views_of([4], ["CAM_FORNT"]), NUSCENES)
