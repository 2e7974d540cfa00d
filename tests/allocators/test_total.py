"""Total: sums exactly, respects every bound, and is proportional where bounds allow it."""

import math
from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prune2drive.allocators import Total
from prune2drive.allocators.total import largest_remainder
from prune2drive.errors import PruneError
from prune2drive.rig import NUSCENES
from prune2drive.tokens import View


def view(name, n=100):
    zeros = torch.zeros(n, dtype=torch.int64)
    return View(name, torch.arange(n), torch.zeros(n, 4), zeros, zeros)


@st.composite
def cases(draw):
    lengths = draw(st.lists(st.integers(1, 300), min_size=1, max_size=8))
    weights = {f"v{at}": draw(st.floats(1e-3, 1e3)) for at in range(len(lengths)) if draw(st.booleans())}
    total = draw(st.integers(len(lengths), sum(lengths)))
    return lengths, weights, total


@given(cases())
@settings(max_examples=200, deadline=None)
def test_sums_exactly_within_the_bounds_and_in_proportion(case):
    lengths, weights, total = case
    views = [view(f"v{at}", n) for at, n in enumerate(lengths)]
    counts = Total(total, weights).allocate(views, None)
    assert sum(counts) == total
    assert all(1 <= k <= n for k, n in zip(counts, lengths, strict=True))
    # No view off its bounds is more than a rounding away from the common level of the others.
    shares = [n * Fraction(weights.get(f"v{at}", 1)) for at, n in enumerate(lengths)]
    level_low = max(((k - 1) / s for k, s in zip(counts, shares, strict=True) if k > 1), default=0)
    level_high = min(
        ((k + 1) / s for k, s, n in zip(counts, shares, lengths, strict=True) if k < n), default=math.inf
    )
    assert level_low <= level_high


def test_brute_force_nearest_to_proportional():
    # Without bounds in the way, largest remainder is the split nearest to the exact quotas.
    lengths, total = [9, 7, 5], 8
    counts = Total(total).allocate([view(f"v{at}", n) for at, n in enumerate(lengths)], None)
    quotas = [Fraction(total * n, sum(lengths)) for n in lengths]
    best = min(
        (split for split in product(*(range(1, n + 1) for n in lengths)) if sum(split) == total),
        key=lambda split: sum(abs(k - q) for k, q in zip(split, quotas, strict=True)),
    )
    assert counts == list(best)


def test_by_hand():
    six = [view(name, 256) for name in NUSCENES.names]
    assert Total(100).allocate(six, NUSCENES) == [17, 17, 17, 17, 16, 16]
    assert Total(100).allocate(six, NUSCENES, "truncate") == [17, 17, 17, 17, 16, 16]
    assert Total(70, {"CAM_FRONT": 2}).allocate(six, NUSCENES) == [20, 10, 10, 10, 10, 10]
    assert Total(70, {"CAM_BACK": 1, "*": 2}).allocate(six, NUSCENES) == [13, 13, 13, 6, 13, 12]
    assert Total(6).allocate(six, NUSCENES) == [1] * 6
    assert Total(6 * 256).allocate(six, NUSCENES) == [256] * 6
    # The heavy view is full after 4 tokens, the light one may not vanish: the third takes the rest.
    views = [view("heavy", 4), view("light", 50), view("rest", 50)]
    assert Total(20, {"heavy": 100, "light": 1e-6}).allocate(views, None) == [4, 1, 15]
    assert Total(20).allocate([], None) == []


def test_largest_remainder_ties_go_to_the_first():
    assert largest_remainder([Fraction(1, 2)] * 4) == [1, 1, 0, 0]
    assert largest_remainder([Fraction(5, 4), Fraction(7, 4)]) == [1, 2]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Total(0), "total 0 is not a whole number"),
        (lambda: Total(0.1), "retention=0.10"),
        (lambda: Total(True), "total True"),
        (lambda: Total(5, {"A": 0}), "weight of A, 0, is not a positive"),
        (lambda: Total(5, {"A": math.nan}), "weight of A, nan"),
        (lambda: Total(1).allocate([view("A"), view("B")], None), r"less than one token.*2 views \(A, B\)"),
        (lambda: Total(201).allocate([view("A"), view("B")], None), "total 201 is more than the 200"),
        (lambda: Total(9, {"C": 2}).allocate([view("A")], None), "a weight for C"),
        (lambda: Total(9).allocate([view("CAM_FORNT")], NUSCENES), "Did you mean 'CAM_FRONT'"),
    ],
)
def test_errors(make, words):
    with pytest.raises(PruneError, match=words):
        make()
