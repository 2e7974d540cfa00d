"""The language score, against values worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prune2drive.benchmarks.language import bleu, language, rouge_l, words

WORDS = ["stop", "turn", "left", "right", "the", "a", "car"]
sentences = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9)


def test_words_are_lower_case_and_keep_numbers_and_hyphens_whole():
    assert words('Slow down: 0.5 m/s, don\'t hit the "T-junction"!') == [
        *["slow", "down", "0.5", "m", "s", "don't", "hit", "the", "t-junction"]
    ]
    assert words("?! --") == []


def test_a_pair_worked_out_by_hand():
    # given: the car turns left now (5), reference: the car will turn left now (6)
    given_, reference = "The car turns left now.", "the car will turn left now"
    a, b = words(given_), words(reference)
    short = math.exp(1 - 6 / 5)
    assert bleu(a, b, 1) == pytest.approx(short * 4 / 5)  # the, car, left, now
    assert bleu(a, b, 2) == pytest.approx(short * math.sqrt(4 / 5 * 2 / 4))  # the car, left now
    assert bleu(a, b, 3) == bleu(a, b, 4) == 0  # no three words in a row
    assert rouge_l(a, b) == pytest.approx(2 * (4 / 5) * (4 / 6) / (4 / 5 + 4 / 6))
    mean = short * (4 / 5 + math.sqrt(2 / 5)) / 4
    assert language(given_, reference) == pytest.approx(0.5 * mean + 0.5 * 8 / 11)


def test_a_repeated_word_counts_as_often_as_the_reference_has_it():
    assert bleu(["left"] * 4, ["left", "turn", "left", "now"], 1) == pytest.approx(2 / 4)


def test_longer_n_grams_than_an_answer_has_are_left_out():
    assert language("left", "Left.") == 1.0
    assert language("turn left", "turn left now") == pytest.approx(0.5 * math.exp(1 - 3 / 2) + 0.5 * 4 / 5)


def test_order_matters():
    reference = "turn left and stop at the light"
    assert language("stop at the light and turn left", reference) < language(reference, reference)
    assert 0 < language("light the at stop and left turn", reference) < 0.3


@given(sentences, sentences)
def test_bounds_identity_and_nothing_in_common(a, b):
    one, two = " ".join(a), " ".join(b)
    assert 0 <= language(one, two) <= 1
    assert language(one, one) == pytest.approx(1.0)
    assert (language(one, two) == 0) == (not set(a) & set(b))
    assert language(one, "") == language("", one) == language("...", one) == 0
