"""Layers of one model brought to another depth, in whole numbers."""

import itertools
from fractions import Fraction

import pytest

from prune2drive.errors import PruneError
from prune2drive.schedules.base import Schedule, scaled


@pytest.mark.parametrize(
    ("layers", "depth", "of", "wanted"),
    [
        ((8, 16, 24), 32, 32, (8, 16, 24)),
        ((8, 16, 24), 28, 32, (7, 14, 21)),
        ((8, 16, 24), 4, 32, (1, 2, 3)),
        ((3, 7, 16), 32, 32, (3, 7, 16)),
        ((3, 7, 16), 40, 32, (4, 9, 20)),  # 3.75, 8.75 and 20
        ((2,), 24, 32, (2,)),  # 1.5 goes up
        ((2,), 12, 32, (1,)),  # 0.75
        ((1,), 8, 32, (1,)),  # 0.25, at least 1
        ((0, 16), 12, 32, (0, 6)),
        ((0,), 1, 32, (0,)),
        ((0, 1, 2), 3, 32, (0, 1, 2)),  # 0.1 and 0.2: pushed apart
        ((30, 31), 32, 32, (30, 31)),
        ((5,), 12, 10, (6,)),
        ((30, 31), 8, 32, (6, 7)),  # 7.5 and 7.75: the last there are
        ((31,), 8, 32, (7,)),
    ],
)
def test_layers_keep_their_share_of_the_way(layers, depth, of, wanted):
    assert scaled(layers, depth, of) == wanted


def test_the_depth_they_were_given_for_changes_nothing():
    for layers in itertools.combinations(range(12), 3):
        assert scaled(layers, 12, 12) == layers


@pytest.mark.parametrize("number", [1, 2, 3])
def test_ascending_distinct_and_as_near_as_whole_layers_allow(number):
    for layers in itertools.combinations(range(0, 32, 3), number):
        for depth in range(1, 41):
            exact = [Fraction(layer * depth, 32) for layer in layers]
            try:
                got = scaled(layers, depth)
            except PruneError:
                # Only where there are fewer layers than stages behind the first.
                assert depth < number + (layers[0] > 0)
                continue
            assert len(got) == number and all(b > a for a, b in itertools.pairwise(got))
            assert got[-1] < depth
            assert all((new == 0) == (old == 0) for old, new in zip(layers, got, strict=True))
            for at, (new, old) in enumerate(zip(got, exact, strict=True)):
                near = abs(new - old) <= Fraction(1, 2)
                pushed = (at and new == got[at - 1] + 1) or (new == 1 and old > 0)
                held = new == depth - (number - at)  # the last layer that leaves room for the rest
                assert near or pushed or held


@pytest.mark.parametrize(("layers", "depth"), [((8, 16, 24), 3), ((8,), 1), ((1, 2), 2)])
def test_a_model_that_is_too_shallow_is_refused(layers, depth):
    with pytest.raises(PruneError, match=rf"do not fit a language model of {depth} layers; give layers="):
        scaled(layers, depth)


def test_a_schedule_must_say_its_stages_and_shares():
    class Half(Schedule):
        name = "half"

        def stages(self, depth):
            return []

    with pytest.raises(TypeError, match="shares"):
        Half()
