"""The control without a model: the answer that is right most often, given only what is asked.

A benchmark whose questions give their answers away would reward a model that sees nothing; this
says how far that goes.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

from ..world.generate import scenes
from ..world.questions import ANSWERS, Question, choose
from ..world.render import render
from .world import offers

SPLIT, FIRST, SCENES, DRAWS = "calibration", 1_000_000, 200, 8
"""Counted over scenes that nothing else looks at, several draws of questions from each: drawn as in
the test, since the draw, not the world, decides how frequent an answer is."""

_AT_ONCE = 8

Key = tuple[str, str | None, str | None]


class Guess:
    """The most frequent answer to each (type, kind, camera); of the type where that was never asked."""

    def __init__(self, questions: Iterable[Question]) -> None:
        self._counts: dict[Key, Counter[str]] = {}
        for question in questions:
            for key in _keys(question):
                self._counts.setdefault(key, Counter())[question.answer] += 1

    @classmethod
    def counted(cls, seed: int = 0, count: int | None = None) -> Guess:
        """Count over ``count`` calibration scenes, `SCENES` by default (about 0.05 s each)."""
        return cls(_drawn(seed, SCENES if count is None else count))

    def answer(self, question: Question) -> str:
        """Return the guess; of answers equally frequent the first in `ANSWERS`."""
        order = ANSWERS[question.type]
        for key in _keys(question):
            if counts := self._counts.get(key):
                return max(order, key=lambda answer: (counts[answer], -order.index(answer)))
        return order[0]


def _keys(question: Question) -> tuple[Key, Key]:
    """The narrow question and the wide one."""
    return (question.type, question.kind, question.camera), (question.type, "*", "*")


def _drawn(seed: int, count: int) -> Iterable[Question]:
    for at in range(0, count, _AT_ONCE):
        group = list(scenes(SPLIT, min(_AT_ONCE, count - at), FIRST + at))
        for scene, offered in zip(group, offers(group, render(group)), strict=True):
            for draw in range(DRAWS):
                yield from choose(offered, random.Random(f"{seed}/{scene.name}/{draw}"))
