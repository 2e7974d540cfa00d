"""The objective: values by hand, and what it refuses."""

import pytest

from prune2drive.errors import PruneError
from prune2drive.search.objective import Objective

MEANS = {"exact": 0.6, "probability": 0.5, "likelihood": -1.25, "language": 0.2}
RATES = {"CAM_FRONT": 0.4, "CAM_BACK": 0.1}


def test_values_by_hand():
    objective = Objective({"exact": 0.5, "language": 0.5}, 0.03)
    assert objective.reward(MEANS) == pytest.approx(0.4)  # 0.3 + 0.1
    assert objective.value(MEANS, RATES) == pytest.approx(0.385)  # less 0.03 * 0.5
    assert Objective({"likelihood": 2}, 1).value(MEANS, RATES) == pytest.approx(-3.0)


def test_unless_told_it_is_the_likelihood_alone():
    assert Objective().value(MEANS, RATES) == -1.25


def test_without_a_penalty_rates_do_not_matter():
    objective = Objective({"exact": 1})
    assert objective.value(MEANS, RATES) == objective.value(MEANS, dict.fromkeys("ABCDEF", 1.0)) == 0.6


def test_a_penalty_takes_each_camera_as_it_is():
    objective = Objective({"exact": 1}, 0.03)
    assert objective.value(MEANS, dict.fromkeys("ABCDEF", 1.0)) == pytest.approx(0.6 - 0.18)
    assert objective.value(MEANS, {"A": 0.9, "B": 0.1}) == pytest.approx(
        objective.value(MEANS, {"A": 0.5, "B": 0.5})
    )


@pytest.mark.parametrize(
    ("parts", "penalty", "message"),
    [
        ({"exakt": 1}, 0, r"unknown score 'exakt'.*Did you mean 'exact'.*likelihood"),
        ({}, 0, "needs scores.*exact"),
        (["exact"], 0, "needs scores.*exact"),
        ({"exact": 0}, 0, "weight of exact, 0, is not a positive number"),
        ({"exact": 1, "language": -0.5}, 0, "weight of language, -0.5, is not a positive number"),
        ({"exact": float("nan")}, 0, "weight of exact, nan"),
        ({"exact": float("inf")}, 0, "weight of exact, inf"),
        ({"exact": True}, 0, "weight of exact, True"),
        ({"exact": "1"}, 0, "weight of exact, '1'"),
        ({"exact": 1}, -0.03, r"penalty \(lambda\) -0.03 is negative.*Give 0 or more, such as 0.03"),
        ({"exact": 1}, float("nan"), "nan is negative or no number.*Give 0 or more"),
        ({"exact": 1}, float("inf"), "inf is negative or no number.*Give 0 or more"),
        ({"exact": 1}, True, "True is negative or no number.*Give 0 or more"),
        ({"exact": 1}, None, "None is negative or no number.*Give 0 or more"),
    ],
)
def test_refusals(parts, penalty, message):
    with pytest.raises(PruneError, match=message):
        Objective(parts, penalty)


def test_parts_that_the_data_does_not_have():
    objective = Objective({"exact": 1, "language": 1})
    objective.check(iter(["language", "exact", "likelihood"]))
    with pytest.raises(PruneError, match=r"no score 'language'. It has: exact, likelihood"):
        objective.check(["exact", "likelihood"])


def test_in_words():
    assert str(Objective()) == "1 likelihood"
    assert str(Objective({"exact": 0.5, "language": 0.25}, 0.03)) == (
        "0.5 exact + 0.25 language - 0.03 x sum of rates"
    )
