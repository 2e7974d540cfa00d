"""Uniform, Rates and the rounding rules: counts in integers, errors with the value and the remedy."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prune2drive.allocators import Rates, Total, Uniform, count, load_allocator
from prune2drive.errors import PruneError
from prune2drive.layout import THUMBNAIL
from prune2drive.rig import NUSCENES
from prune2drive.tokens import View


def view(name, n=100):
    zeros = torch.zeros(n, dtype=torch.int64)
    return View(name, torch.arange(n), torch.zeros(n, 4), zeros, zeros)


SIX = [view(name, 256) for name in NUSCENES.names]


# Counts -----------------------------------------------------------------------------------------


@given(st.integers(1, 20_000), st.integers(1, 1_000_000))
def test_half_up_is_exact_at_parts_per_million(n, ppm):
    exact = math.floor(Fraction(ppm * n, 1_000_000) + Fraction(1, 2))
    assert count(n, ppm / 1_000_000) == min(max(exact, 1), n)


@given(st.integers(1, 20_000), st.floats(1e-9, 1))
def test_counts_stay_within_the_view(n, rate):
    for rounding in ("half-up", "truncate"):
        assert 1 <= count(n, rate, rounding) <= n


def test_counts_by_hand():
    assert count(256, 0.10) == 26  # 25.6
    assert count(256, 0.10, "truncate") == 25
    assert count(25, 0.10) == 3  # 2.5 rounds up
    assert count(729, 1.0) == count(729, 1.0, "truncate") == 729
    assert count(3, 0.01) == count(3, 0.01, "truncate") == 1
    assert count(100, 0.29, "truncate") == 28  # 0.29 * 100 is 28.999999999999996 in floating point
    assert count(100, 0.29) == 29
    with pytest.raises(PruneError, match="Did you mean 'half-up'"):
        count(10, 0.5, "halfup")


# Uniform ----------------------------------------------------------------------------------------


def test_uniform():
    assert Uniform(0.1).allocate(SIX, NUSCENES) == [26] * 6
    assert Uniform(0.1).allocate(SIX, None, "truncate") == [25] * 6
    assert Uniform(1).allocate([view("A", 7), view("B", 3)], None) == [7, 3]


def test_uniform_refuses_a_camera_the_rig_lacks():
    with pytest.raises(PruneError) as error:
        Uniform(0.1).allocate([view("CAM_FORNT")], NUSCENES)
    text = str(error.value)
    assert text.startswith("CAM_FORNT is not a camera of rig nuscenes. Did you mean 'CAM_FRONT'?")
    assert "'*' rate" in text
    assert Uniform(0.1).allocate([view(THUMBNAIL)], NUSCENES) == [10]


# Rates ------------------------------------------------------------------------------------------


def test_rates_with_and_without_a_default():
    rates = Rates({"CAM_FRONT": 0.25, "*": 0.08})
    assert rates.allocate(SIX, NUSCENES) == [64, 20, 20, 20, 20, 20]
    each = Rates(dict.fromkeys(NUSCENES.names, 0.5))
    assert each.allocate(SIX[:2], NUSCENES) == [128, 128]


@given(st.sets(st.sampled_from(range(6)), min_size=1), st.integers(0, 5))
def test_a_count_never_depends_on_the_other_views(kept, seed):
    rates = {name: 0.01 + 0.03 * ((at + seed) % 6) for at, name in enumerate(NUSCENES.names)}
    full = Rates(rates).allocate(SIX, NUSCENES)
    some = sorted(kept)
    assert Rates(rates).allocate([SIX[at] for at in some], NUSCENES) == [full[at] for at in some]


def test_camera_without_a_rate():
    with pytest.raises(PruneError, match=r"CAM_BACK has no rate; add 'CAM_BACK', or '\*'"):
        Rates({"CAM_FRONT": 0.25}).allocate([SIX[0], SIX[3]], NUSCENES)
    with pytest.raises(PruneError, match="THUMBNAIL has no rate"):
        Rates({"CAM_FRONT": 0.25}).allocate([SIX[0], view(THUMBNAIL)], NUSCENES)


def test_rate_for_a_camera_nobody_knows():
    with pytest.raises(
        PruneError, match=r"a rate for CAM_FORNT, which is no camera of rig nuscenes.*'CAM_FRONT'"
    ):
        Rates({"CAM_FORNT": 0.25, "*": 0.1}).allocate(SIX, NUSCENES)
    with pytest.raises(PruneError, match=r"a rate for REAR, which is no camera of the prompt.*rig="):
        Rates({"REAR": 0.25, "*": 0.1}).allocate(SIX[:1], None)
    # A rig camera that this sample does not show is fine, and so is a thumbnail it does not have.
    assert Rates({"CAM_BACK": 0.25, THUMBNAIL: 0.5, "*": 0.1}).allocate(SIX[:1], NUSCENES) == [26]


def test_camera_the_rig_lacks_needs_a_rate_or_a_default():
    extra = view("CAM_ROOF")
    assert Rates({"CAM_ROOF": 0.2}).allocate([extra], NUSCENES) == [20]
    assert Rates({"*": 0.2}).allocate([extra], NUSCENES) == [20]
    with pytest.raises(PruneError, match="CAM_ROOF is not a camera of rig nuscenes"):
        Rates({"CAM_FRONT": 0.2}).allocate([extra], NUSCENES)


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ({}, "must be {camera: rate}"),
        (0.1, "must be {camera: rate}"),
        ({"CAM_FRONT": 25}, r"retention of CAM_FRONT 25 is not in \(0, 1\]; for 25% write 0.25"),
        ({"CAM_FRONT": "0.25"}, "retention of CAM_FRONT '0.25' is not a number"),
        ({"*": 0}, r"retention of \* 0 is not in"),
    ],
)
def test_bad_rates(rates, words):
    with pytest.raises(PruneError, match=words):
        Rates(rates)


# By value ---------------------------------------------------------------------------------------


def test_load_allocator(tmp_path):
    assert load_allocator(0.1) == load_allocator(Uniform(0.1)) == Uniform(0.1)
    assert load_allocator(1) == Uniform(1.0)
    assert load_allocator(np.float32(0.5)) == Uniform(0.5)
    assert load_allocator({"*": 0.1}) == Rates({"*": 0.1})
    assert load_allocator(Total(10)) == Total(10)
    path = tmp_path / "preset.json"
    path.write_text(json.dumps({"model": "some/model", "rates": {"CAM_FRONT": 0.25, "*": 0.08}}))
    assert load_allocator(path) == load_allocator(str(path)) == Rates({"CAM_FRONT": 0.25, "*": 0.08})
    path.write_text(json.dumps({"CAM_FRONT": 0.25}))
    with pytest.raises(PruneError, match=r"preset\.json' has no 'rates'"):
        load_allocator(path)
    with pytest.raises(PruneError, match=r"preset file 'nowhere\.json': No such file"):
        load_allocator("nowhere.json")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (10, "retention 10 is not in (0, 1]; for 10% write 0.10"),
        (2.5, "retention 2.5 is not in (0, 1]; for 2.5% write 0.025"),
        (576, "retention 576 is not in (0, 1]; for a number of tokens write Total(tokens)"),
        (0, "retention 0 is not in (0, 1]; for 10% write 0.10"),
        (-0.1, "retention -0.1 is not in (0, 1]; for 10% write 0.10"),
        (math.nan, "retention nan is not in (0, 1]; for 10% write 0.10"),
        (math.inf, "retention inf is not in (0, 1]; for a number of tokens write Total(tokens)"),
        (True, "retention True is not a number in (0, 1]; for 10% write 0.10"),
        (None, "retention None is not a number in (0, 1]; for 10% write 0.10"),
        ([0.1], "retention [0.1] is not a number in (0, 1]; for 10% write 0.10"),
    ],
)
def test_bad_retention(value, text):
    with pytest.raises(PruneError) as error:
        load_allocator(value)
    assert str(error.value) == text
