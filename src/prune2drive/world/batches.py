"""Training batches: fresh scenes, rendered and labelled, in worker processes.

Batch ``n`` depends on its number alone, so a resumed run goes on with exactly the scenes it would
have seen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..rig import NUSCENES
from .generate import scenes
from .labels import GRID, patch_labels, place_labels
from .model import IMAGE, build_tokenizer
from .questions import FRONT, FRONTS, TEXTS, Question, all_questions, choose
from .render import render

TRAINING = {
    "exists": 6,
    "count": 8,
    "colour": 6,
    "type": 3,
    "motion": 6,
    "next": 5,
    "cross": 4,
    "action": 1,
    "reason": 1,
    "steering": 1,
    "speed": 1,
}
"""Questions of each type that a row of pictures is trained on at once."""


QUESTION_LENGTH = max(
    len(text.replace("{kinds}", "{kind}").split()) + 1 for text in TEXTS.values()
)
"""Tokens of the longest question and its answer."""


class SeeBatches(Dataset[dict[str, Tensor]]):
    """Batches of the first stage: uint8 pictures and patch labels."""

    def __init__(self, size: int, start: int, stop: int) -> None:
        self.size, self.start, self.stop = size, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, at: int) -> dict[str, Tensor]:
        number = self.start + at
        drawn = list(scenes("train", self.size, number * self.size))
        frames = render(drawn, NUSCENES)
        labels, centres = patch_labels(drawn, frames)
        return {"images": frames.images, "labels": labels, "centres": centres}


class AnswerBatches(Dataset[dict[str, Tensor]]):
    """Batches of the second stage: pictures, labels, and rows of questions with their answers.

    The cameras of each scene are shown in ``groups`` rows of the same number of cameras (1: all six
    together). Questions go to the row that shows what they need.
    """

    def __init__(self, size: int, start: int, stop: int, groups: int = 1) -> None:
        self.size, self.start, self.stop, self.groups = size, start, stop, groups
        self.tokenizer = build_tokenizer()

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, at: int) -> dict[str, Tensor]:
        number = self.start + at
        rng = random.Random(f"answers {number}")
        drawn = list(scenes("train", self.size, number * self.size))
        frames = render(drawn, NUSCENES)
        labels, centres = patch_labels(drawn, frames)
        cross, following = place_labels(drawn, frames)
        pixels, lamps = frames.visible(max(len(scene.things) for scene in drawn))
        views = self._partition(rng)
        rows = []
        for b, scene in enumerate(drawn):
            seen = slice(0, len(scene.things))
            found = all_questions(scene, pixels[b, :, seen].tolist(), lamps[b, :, seen].tolist())
            for part in views:
                shown = {NUSCENES.names[v] for v in part}
                rows.append(choose([q for q in found if _answerable(q, shown)], rng, TRAINING))
        at_view = torch.tensor(views)
        out = {"labels": labels, "centres": centres, "cross": cross, "following": following}
        out = {key: value[:, at_view].flatten(0, 1) for key, value in out.items()}
        out["images"] = frames.images[:, at_view].flatten(0, 1)
        out["views"] = at_view.repeat(self.size, 1)
        out.update(self._text(rows, views * self.size))
        return out

    def _partition(self, rng: random.Random) -> list[list[int]]:
        order = list(range(len(NUSCENES)))
        if self.groups > 1 and rng.random() < 0.5:
            rng.shuffle(order)  # else the three ahead and the three behind, for questions about the way
        each = len(order) // self.groups
        return [sorted(order[n * each : (n + 1) * each]) for n in range(self.groups)]

    def _text(self, rows: list[list[Question]], views: list[list[int]]) -> dict[str, Tensor]:
        """Token ids of prompts (rows, P), and questions with answers and what follows each of their tokens
        (-100: not learnt), both (rows, questions, QUESTION_LENGTH) and padded."""
        heads = [
            self.tokenizer(
                "".join(f"{NUSCENES.names[v]}: " + IMAGE * GRID**2 + "\n" for v in part)
            ).input_ids
            for part in views
        ]
        most = max(len(row) for row in rows)
        text = torch.full((len(rows), most, QUESTION_LENGTH), self.tokenizer.pad_token_id)
        target = torch.full_like(text, -100)
        for r, row in enumerate(rows):
            for q, question in enumerate(row):
                asked = self.tokenizer(question.text).input_ids
                words = asked + self.tokenizer(question.answer).input_ids
                text[r, q, : len(words)] = torch.tensor(words)
                target[r, q, len(asked) - 1 : len(words)] = torch.tensor(
                    [*words[len(asked) :], self.tokenizer.eos_token_id]
                )
        return {"prefix": torch.tensor(heads), "text": text, "target": target}


def _answerable(question: Question, shown: set[str]) -> bool:
    if question.camera is not None:
        return question.camera in shown
    return FRONT in shown if question.type == "steering" else shown.issuperset(FRONTS)


def load(batches: Any, workers: int) -> Iterator[dict[str, Tensor]]:
    """Yield the batches in order, made by ``workers`` processes (0: in this one)."""
    loader = DataLoader(
        batches,
        batch_size=None,
        shuffle=False,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread,
    )
    yield from loader


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
