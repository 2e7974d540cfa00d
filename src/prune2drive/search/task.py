"""What a trial runs on: frames with questions, and a model that answers under any rates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..allocators.base import count

PARTS: dict[str, str] = {
    "exact": "share of questions whose greedy answer is the reference, or begins with it",
    "probability": "mean probability of the reference answer, teacher-forced",
    "likelihood": "mean log-likelihood of the reference answer, teacher-forced, in nats per answer token",
    "language": "mean overlap of the generated answer with the reference (BLEU-1 to 4 and ROUGE-L)",
}
"""Scores that a task can give to answers, and what they are; higher is better in all."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of some frames under one setting.

    ``asked``: float64 ``(S,)``, questions of each frame. ``sums``: by part of `PARTS`, float64
    ``(S,)``, the sum over each frame's questions.
    """

    asked: np.ndarray
    sums: Mapping[str, np.ndarray]

    def means(self) -> dict[str, float]:
        """Each part's mean over all questions; 0 where nothing is asked."""
        total = max(float(self.asked.sum()), 1.0)
        return {part: float(values.sum()) / total for part, values in self.sums.items()}

    @classmethod
    def joined(cls, several: Sequence[Scores]) -> Scores:
        """The scores of all frames of several, in order."""
        return cls(
            np.concatenate([one.asked for one in several]),
            {part: np.concatenate([one.sums[part] for one in several]) for part in several[0].sums},
        )


class Task(ABC):
    """Frames with questions and reference answers, and a model.

    ``cameras``: names in prompt order. ``tokens``: visual tokens of each in the first frame, unpruned.
    ``frames``: ids, in the order in which trials look at them. ``batch``: frames that are scored at once.
    """

    fixed_length: ClassVar[bool] = False
    """Whether every frame has as many tokens of a camera as the first one."""

    rounding: str = "half-up"
    """How the method turns a rate into a count, see `allocators.count`."""

    cameras: Sequence[str]
    tokens: Mapping[str, int]
    frames: Sequence[str]
    parts: Sequence[str]
    batch: int

    @property
    def contents(self) -> Sequence[str]:
        """What tells a frame's pictures from others', by whatever name they go."""
        return self.frames

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What scores depend on, plain JSON data: model, weights, data, method, cameras, dtype.

        Two workers whose data differ here must not share a study.
        """

    @abstractmethod
    def prepare(self, progress: Callable[[int], None] = lambda done: None) -> None:
        """Encode every frame that is not in the cache; ``progress`` is told how many more are done."""

    @abstractmethod
    def score(
        self, retention: Mapping[str, float] | None, start: int, stop: int, parts: Sequence[str] = ()
    ) -> Scores:
        """Ask the questions of frames ``start`` to before ``stop``.

        Args:
            retention: the rate of every camera; None for unpruned.
            parts: which of `PARTS` are wanted; others may come with them.
        """

    def kept(self, retention: Mapping[str, float]) -> float:
        """Tokens kept of a frame at these rates, on average over the frames."""
        return float(sum(count(n, retention[camera], self.rounding) for camera, n in self.tokens.items()))

    def close(self) -> None:  # noqa: B027 - nothing to do for a task without files
        """Let go of files; harmless if there are none, and a closed task opens them again."""
