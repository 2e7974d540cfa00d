"""The rates a search may try: splits of an exact budget, and free rates."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from prune2drive.allocators import Rates, Uniform, count
from prune2drive.errors import PruneError
from prune2drive.rig import NUSCENES
from prune2drive.search.space import BudgetSplit, FreeRates, even_rates, exact_rates
from prune2drive.tokens import View

SIX = dict.fromkeys(NUSCENES.names, 144)
MIXED = dict(zip(NUSCENES.names, (144, 36, 720, 81, 2, 1), strict=True))


def views(tokens):
    made = []
    for name, n in tokens.items():
        zeros = torch.zeros(n, dtype=torch.int64)
        made.append(View(name, torch.arange(n), torch.zeros(n, 4), zeros, zeros))
    return made


def uniform(tokens, share, rounding="half-up"):
    return Uniform(share).allocate(views(tokens), None, rounding)


@st.composite
def budgets(draw, alike=False):
    """A space and parameters within its bounds."""
    cameras = draw(st.integers(2, 8))
    lengths = [draw(st.integers(2, 3000))] * cameras
    if not alike:
        lengths = draw(st.lists(st.integers(2, 3000), min_size=cameras, max_size=cameras))
    tokens = {f"CAM_{n}": length for n, length in enumerate(lengths)}
    share, rounding = draw(st.floats(0.001, 1)), draw(st.sampled_from(["half-up", "truncate"]))
    total = sum(count(n, share, rounding) for n in lengths)
    assume(cameras < total < sum(lengths))  # others can be split in one way only, and are refused
    space = BudgetSplit(tokens, share, draw(st.floats(1.01, 1000)), rounding)
    inside = st.floats(space.low, space.high)
    return space, {name: draw(inside) for name in space.names}


# -- a budget -----------------------------------------------------------------------------------------


@given(budgets())
def test_every_split_keeps_what_the_uniform_rate_keeps(drawn):
    space, parameters = drawn
    rates = space.rates(parameters)
    counts = space.counts(rates)
    assert list(counts) == list(rates) == list(space.tokens)
    assert sum(counts.values()) == space.total == sum(uniform(space.tokens, space.share, space.rounding))
    assert all(1 <= counts[name] <= n for name, n in space.tokens.items())
    assert all(0 < rate <= 1 for rate in rates.values())


@given(budgets())
def test_rates_give_these_counts_when_pruning(drawn):
    space, parameters = drawn
    rates = space.rates(parameters)
    assert Rates(rates).allocate(views(space.tokens), None, space.rounding) == list(
        space.counts(rates).values()
    )


@given(budgets(), st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_only_how_parameters_compare_matters(drawn, factor):
    space, parameters = drawn
    assert space.rates(parameters) == space.rates({name: factor * p for name, p in parameters.items()})


@given(budgets(alike=True))
def test_the_uniform_start_of_equal_cameras_is_the_uniform_rate(drawn):
    space, _ = drawn
    (start,) = space.starts()
    assert all(space.low < parameter < space.high for parameter in start.values())
    assert list(space.counts(space.rates(start)).values()) == uniform(
        space.tokens, space.share, space.rounding
    )


def test_the_uniform_start_of_unequal_cameras_is_the_uniform_rate():
    tokens = {"A": 15, "B": 15, "C": 15, "D": 34}
    space = BudgetSplit(tokens, 0.1)
    assert list(space.counts(space.rates(space.starts()[0])).values()) == uniform(tokens, 0.1)  # 2, 2, 2, 3


def test_budgets_by_hand():
    space = BudgetSplit(SIX, 0.1, spread=4)
    assert space.total == 84 and (space.low, space.high) == (0.25, 4)
    parameters = dict.fromkeys(SIX, 1.0) | {"CAM_FRONT": 2.0}
    assert space.counts(space.rates(parameters)) == dict.fromkeys(SIX, 12) | {"CAM_FRONT": 24}


def test_rates_far_below_the_uniform_one_are_reached():
    space = BudgetSplit(SIX, 0.1, spread=4)
    low = space.rates(dict.fromkeys(SIX, space.high) | {"CAM_BACK": space.low})
    assert low["CAM_BACK"] < 0.1 / 4 and low["CAM_FRONT"] > 0.1
    high = space.rates(dict.fromkeys(SIX, space.low) | {"CAM_BACK": space.high})
    assert high["CAM_BACK"] > 0.1 * 4 and high["CAM_FRONT"] < 0.1 / 3


def test_a_full_camera_leaves_the_rest_to_others():
    space = BudgetSplit(MIXED, 0.9, spread=1000)
    parameters = dict.fromkeys(MIXED, space.low) | {"CAM_FRONT": space.high}
    counts = space.counts(space.rates(parameters))
    assert counts["CAM_FRONT"] == 144 and sum(counts.values()) == space.total


@pytest.mark.parametrize(("tokens", "share"), [(MIXED, 1.0), (SIX, 0.0001), ({"CAM_FRONT": 144}, 0.1)])
def test_what_can_be_split_in_one_way_only(tokens, share):
    with pytest.raises(PruneError, match="one way only"):
        BudgetSplit(tokens, share)


@given(st.integers(1, 3000), st.data())
def test_exact_rates_keep_so_many_however_they_are_rounded(n, data):
    k = data.draw(st.integers(1, n))
    (rate,) = exact_rates({"CAM": n}, [k]).values()
    assert count(n, rate) == count(n, rate, "truncate") == k


@pytest.mark.parametrize(
    ("share", "spread", "message"),
    [
        (0, 4, r"budget 0 is not in \(0, 1\]"),
        (10, 4, r"budget 10 .*for 10% write 0.10"),
        (float("nan"), 4, "budget nan"),
        (True, 4, "budget True"),
        (0.1, 1, "spread 1 leaves nothing.*more than 1, such as 4"),
        (0.1, 0.5, "spread 0.5 leaves nothing"),
        (0.1, float("inf"), "spread inf"),
        (0.1, float("nan"), "spread nan"),
    ],
)
def test_bad_budgets(share, spread, message):
    with pytest.raises(PruneError, match=message):
        BudgetSplit(SIX, share, spread)


# -- free rates ---------------------------------------------------------------------------------------


class Lowest:
    """A trial that takes the lower bound of all, or the upper one."""

    def __init__(self, upper=False):
        self.upper, self.asked = upper, []

    def suggest_float(self, name, low, high, log):
        self.asked.append((name, low, high, log))
        return high if self.upper else low


@pytest.mark.parametrize(
    "space", [FreeRates(SIX, 0.1, 0.8), BudgetSplit(SIX, 0.1, 4)], ids=["free", "budget"]
)
def test_every_camera_is_asked_for_once_on_a_log_scale(space):
    trial = Lowest()
    assert space.suggest(trial) == dict.fromkeys(SIX, space.low)
    assert trial.asked == [(name, space.low, space.high, True) for name in SIX]


def test_free_rates_are_the_parameters():
    space = FreeRates(MIXED, 0.1, 0.8)
    assert space.rates(space.suggest(Lowest())) == dict.fromkeys(MIXED, 0.1)
    assert space.rates(space.suggest(Lowest(upper=True))) == dict.fromkeys(MIXED, 0.8)
    assert list(space.counts(dict.fromkeys(MIXED, 0.1)).values()) == [14, 4, 72, 8, 1, 1]


@given(st.lists(st.floats(0.001, 1), min_size=6, max_size=6))
def test_free_rates_give_their_counts_when_pruning(drawn):
    parameters = dict(zip(MIXED, drawn, strict=True))
    space = FreeRates(MIXED, 0.001, 1.0)
    rates = space.rates(parameters)
    kept = Rates(rates).allocate(views(MIXED), None)
    assert kept == list(space.counts(rates).values())
    assert kept == [count(n, parameters[name]) for name, n in MIXED.items()]


def test_the_smallest_free_rates_are_rates():
    space = FreeRates(SIX, 1e-7, 1.0)
    Rates(space.rates(space.suggest(Lowest())))


def test_starts_are_uniform_within_bounds_and_none_twice():
    space = FreeRates(SIX, 0.1, 0.3, starts=(0.1, 0.05, 0.25, 0.5))
    assert space.starts() == [dict.fromkeys(SIX, share) for share in (0.1, 0.25, 0.3)]
    assert FreeRates(SIX).starts() == [dict.fromkeys(SIX, 0.1)]


@pytest.mark.parametrize(
    "space",
    [
        FreeRates(SIX),
        FreeRates(SIX, 0.06, 0.09),
        FreeRates(SIX, 0.05, 1.0),
        BudgetSplit(SIX, 0.1),
        BudgetSplit(SIX, 0.1, 1.5),
    ],
    ids=["free", "narrow", "from a level", "budget", "narrow budget"],
)
def test_levels_are_within_bounds_and_none_twice(space):
    levels = space.levels()
    assert len(levels) >= 2 and sorted(set(levels)) == levels
    assert space.low <= levels[0] and levels[-1] <= space.high


def test_levels_of_a_budget_have_the_uniform_split_in_the_middle():
    low, middle, high = BudgetSplit(SIX, 0.1).levels()
    assert middle == 1 and low == pytest.approx(1 / high)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (0, 1, r"lowest rate 0 is not in \(0, 1\]"),
        (0.1, 1.5, "highest rate 1.5 is not"),
        (0.5, 0.1, "bounds 0.5 to 0.1 leave nothing.*lower one first"),
        (0.5, 0.5, "bounds 0.5 to 0.5 leave nothing"),
        (float("nan"), 1, "lowest rate nan"),
        (0.1, True, "highest rate True"),
    ],
)
def test_bad_bounds(low, high, message):
    with pytest.raises(PruneError, match=message):
        FreeRates(SIX, low, high)


def test_bad_starts():
    with pytest.raises(PruneError, match="first rate 10"):
        FreeRates(SIX, starts=(10,))


# -- the even split -----------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=8), st.data())
def test_even_rates_keep_as_many(lengths, data):
    tokens = {f"CAM_{n}": length for n, length in enumerate(lengths)}
    kept = data.draw(st.integers(len(lengths), sum(lengths)))
    counts = Rates(even_rates(tokens, kept)).allocate(views(tokens), None)
    assert sum(counts) == kept
    assert all(1 <= k <= n for k, n in zip(counts, lengths, strict=True))


def test_even_rates_are_even():
    assert even_rates(SIX, 84) == dict.fromkeys(SIX, 0.097223)
    counts = Rates(even_rates(SIX, 87)).allocate(views(SIX), None)
    assert sorted(counts) == [14, 14, 14, 15, 15, 15]
    assert Rates(even_rates({"A": 100, "B": 300}, 40)).allocate(views({"A": 100, "B": 300}), None) == [10, 30]
