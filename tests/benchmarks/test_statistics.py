"""Intervals against hand-computed cases and a bootstrap written as a loop."""

import numpy as np
import pytest

from prune2drive.benchmarks.statistics import difference, resamples, share


def test_resamples_are_drawn_with_replacement_and_seeded():
    drawn = resamples(7, seed=1, count=500)
    assert drawn.shape == (500, 7)
    assert (drawn.sum(1) == 7).all()
    assert np.array_equal(drawn, resamples(7, seed=1, count=500))
    assert not np.array_equal(drawn, resamples(7, seed=2, count=500))
    # A scene is missing from a resample with probability (6/7)**7.
    assert abs((drawn == 0).mean() - (6 / 7) ** 7) < 0.02


def test_share_by_hand():
    right, asked = np.array([2, 1, 0, 0, 0]), np.array([2, 2, 1, 1, 1])
    drawn = np.array([[5, 0, 0, 0, 0], [2, 2, 0, 0, 0], [0, 5, 0, 0, 0]])  # shares 1, 3/4, 1/2
    result = share(right, asked, drawn)
    assert (result["value"], result["n"]) == (3 / 7, 7)
    assert result["low"] == pytest.approx(0.5 + 0.25 * 0.05)  # 2.5 % of the way, linear between three values
    assert result["high"] == pytest.approx(1 - 0.25 * 0.05)


def test_difference_is_paired():
    right, asked = np.array([3, 1, 2, 2, 2]), np.full(5, 3)
    drawn = resamples(5)
    worse = difference(right - 1, right, asked, drawn)  # one fewer in every scene: no doubt about it
    assert worse == {
        "value": pytest.approx(-1 / 3),
        "low": pytest.approx(-1 / 3),
        "high": pytest.approx(-1 / 3),
    }
    assert difference(right, right, asked, drawn) == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_against_a_loop():
    rng = np.random.default_rng(0)
    asked = rng.integers(0, 4, 30)
    right = rng.binomial(asked, 0.6)
    result = share(right, asked, resamples(30))
    shares = []
    for _ in range(2000):
        picks = rng.integers(0, 30, 30)
        shares.append(sum(right[p] for p in picks) / sum(asked[p] for p in picks))
    assert result["value"] == right.sum() / asked.sum()
    assert result["low"] == pytest.approx(np.quantile(shares, 0.025), abs=0.015)
    assert result["high"] == pytest.approx(np.quantile(shares, 0.975), abs=0.015)


def test_intervals_cover():
    """Nominal 95 % intervals hold the truth in about that share of experiments, though questions cluster."""
    rng = np.random.default_rng(1)
    asked, drawn, hits = np.full(60, 5), resamples(60, count=400), 0
    for _ in range(300):
        right = rng.binomial(5, rng.beta(2, 2, 60))  # scenes differ in difficulty
        found = share(right, asked, drawn)
        hits += found["low"] <= 0.5 <= found["high"]
    assert 0.90 <= hits / 300 <= 0.985


def test_groups_that_are_small_or_empty():
    drawn = resamples(20)
    asked = np.zeros(20, dtype=int)
    empty = share(asked, asked, drawn)
    assert empty == {"value": None, "low": None, "high": None, "n": 0}
    asked[3] = 2
    assert share(asked // 2, asked, drawn) == {"value": 0.5, "low": None, "high": None, "n": 2}
    asked[4:8] = 2  # five scenes, the fewest that say how sure it is
    assert share(asked // 2, asked, drawn) == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 10}
