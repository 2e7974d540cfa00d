"""How much of a reference answer's wording a given answer has: BLEU and ROUGE-L of one pair of sentences."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

ORDERS = (1, 2, 3, 4)
"""Lengths of the n-grams that BLEU looks at."""


def language(given: str, reference: str) -> float:
    """Overlap of an answer with its reference, in [0, 1]: half mean BLEU, half ROUGE-L.

    0.5 * mean of BLEU-1 to BLEU-4 (of one sentence, with brevity penalty) + 0.5 * ROUGE-L F1, over
    lower-case words. Orders of n-gram longer than either answer are left out of the mean: they hold
    no n-gram, and a right answer of one word must be able to score 1. Nothing is smoothed, so that
    answers without a common word score 0. An empty answer scores 0.

    DriveLM's official term also has CIDEr, which weighs words by statistics of a whole corpus; that
    is left out here, so numbers are not comparable with its leaderboard.
    """
    a, b = words(given), words(reference)
    if not a or not b:
        return 0.0
    orders = [n for n in ORDERS if n <= min(len(a), len(b))]
    return 0.5 * sum(bleu(a, b, n) for n in orders) / len(orders) + 0.5 * rouge_l(a, b)


def words(text: str) -> list[str]:
    """Lower-case words; numbers such as 0.5 and words such as "don't" or "x-ray" stay whole."""
    return re.findall(r"\w+(?:[.'-]\w+)*", text.lower())


def bleu(given: Sequence[str], reference: Sequence[str], order: int) -> float:
    """BLEU-``order`` of one sentence, unsmoothed: both must hold at least ``order`` words."""
    logs = 0.0
    for n in range(1, order + 1):
        have, want = _ngrams(given, n), _ngrams(reference, n)
        common = (have & want).total()
        if common == 0:
            return 0.0
        logs += math.log(common / have.total())
    brevity = min(1.0, math.exp(1 - len(reference) / len(given)))
    return brevity * math.exp(logs / order)


def rouge_l(given: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of the longest common subsequence of two word lists."""
    row = [0] * (len(reference) + 1)
    for word in given:
        before = row
        row = [0]
        for at, other in enumerate(reference):
            row.append(before[at] + 1 if word == other else max(before[at + 1], row[at]))
    return 2 * row[-1] / (len(given) + len(reference))


def _ngrams(text: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(text[at : at + n]) for at in range(len(text) - n + 1))
