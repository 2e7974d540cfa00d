"""A task without a model: answers get better with tokens, more so for some cameras."""

from __future__ import annotations

import numpy as np

from prune2drive.search.task import Scores, Task

WORTH = {"LEFT": 0.2, "AHEAD": 1.0, "RIGHT": 0.2}
"""How much the tokens of each camera are worth."""


class FakeTask(Task):
    """``exact`` of a frame is ``sum_v worth_v * sqrt(k_v) / 10`` plus noise that all rates share."""

    parts = ("exact", "likelihood")
    fixed_length = True

    def __init__(self, frames=24, tokens=16, batch=2, noise=0.05, model="fake", before=lambda calls: None):
        self.cameras = list(WORTH)
        self.tokens = dict.fromkeys(WORTH, tokens)
        self.frames = [f"frame/{number}" for number in range(frames)]
        self.batch, self.model, self.before = batch, model, before
        self.noise = np.random.default_rng(0).normal(0, noise, frames)
        self.calls: list[tuple[dict[str, float], int, int]] = []

    def about(self):
        data = {"source": "fake", "samples": len(self.frames)}
        return {
            "model": self.model,
            "weights": "0" * 64,
            "dtype": "float32",
            "method": "tfps",
            "cameras": self.cameras,
            "tokens": self.tokens,
            "data": data,
        }

    def prepare(self, progress=lambda done: None):
        progress(len(self.frames))

    def quality(self, rates):
        return sum(WORTH[c] * np.sqrt(round(rates[c] * n)) for c, n in self.tokens.items()) / 10

    def score(self, retention, start, stop, parts=()):
        self.before(len(self.calls))
        self.calls.append((dict(retention), start, stop))
        exact = self.quality(retention) + self.noise[start:stop]
        return Scores(np.ones(stop - start), {"exact": exact, "likelihood": exact - 1})
