"""Training batches: scenes, each seen once in a stage, rendered and labelled in worker processes.

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
from .labels import GRID, lane_labels, patch_labels, path_labels, place_labels
from .looks import look
from .model import IMAGE, build_tokenizer
from .questions import ANSWERS, FRONT, FRONTS, TEXTS, Question, all_questions, choose
from .render import render

TRAINING = {
    "exists": 3,
    "count": 4,
    "colour": 3,
    "type": 2,
    "motion": 3,
    "next": 3,
    "cross": 2,
    "action": 1,
    "reason": 1,
    "steering": 1,
    "speed": 1,
}
"""Questions of each type that two or three pictures are trained on at once."""

TRAINING_ALL = {type_: round(1.7 * count) if count > 1 else 1 for type_, count in TRAINING.items()}
"""The same for all six pictures."""


FRONT_VIEWS = tuple(NUSCENES.names.index(name) for name in FRONTS)

BACK = "CAM_BACK"
MIRRORED = {"left": "right", "right": "left", "straight": "straight"}

SCARCE = 3.0
"""Weight of the answers of which a scene has one only: planning and behaviour."""

MIXED = 0.4
"""Share of scenes whose cameras are grouped at random rather than in the order of the prompt."""

QUESTION_LENGTH = max(len(text.split()) + 1 for text in TEXTS.values())
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
        path = path_labels(drawn, frames)
        lane = torch.full_like(path, -1)
        lane[:, NUSCENES.names.index(FRONT)] = lane_labels(drawn, frames)
        pixels, lamps = frames.visible(max(len(scene.things) for scene in drawn))
        views = self._partition(rng)
        quotas = TRAINING_ALL if self.groups == 1 else TRAINING
        rows = []
        road = torch.full((len(drawn), len(NUSCENES)), -1)
        choice = torch.full((len(drawn), len(NUSCENES)), -1)
        reasons = []
        for b, scene in enumerate(drawn):
            seen = slice(0, len(scene.things))
            found = all_questions(scene, pixels[b, :, seen].tolist(), lamps[b, :, seen].tolist())
            reasons.append(next((q.answer for q in found if q.type == "reason"), None))
            for question in found:
                if question.type == "steering":
                    road[b, NUSCENES.names.index(FRONT)] = ANSWERS["steering"].index(question.answer)
                    # Seen backwards, a road that bends to our left bends to the right.
                    road[b, NUSCENES.names.index(BACK)] = ANSWERS["steering"].index(MIRRORED[question.answer])
                # The last camera ahead is the first whose tokens can know the decision.
                if question.type == "reason" and all(
                    set(FRONT_VIEWS) <= set(p) or not set(FRONT_VIEWS) & set(p) for p in views
                ):
                    choice[b, max(FRONT_VIEWS)] = ANSWERS["reason"].index(question.answer)
            for part in views:
                shown = {NUSCENES.names[v] for v in part}
                rows.append(choose([q for q in found if _answerable(q, shown)], rng, quotas))
        at_view = torch.tensor(views)
        out = {"labels": labels, "centres": centres, "cross": cross, "following": following}
        out |= {"path": path, "lane": lane, "road": road, "choice": choice}
        out = {key: value[:, at_view].flatten(0, 1) for key, value in out.items()}
        out["images"] = frames.images[:, at_view].flatten(0, 1)
        out["views"] = at_view.repeat(self.size, 1)
        out.update(self._text(rows, views * self.size))
        out["look"] = torch.zeros(*out["text"].shape[:2], out["prefix"].shape[1], dtype=torch.bool)
        out["share"] = torch.full(out["text"].shape[:2], -1.0)
        for r, row in enumerate(rows):
            b, part = r // len(views), views[r % len(views)]
            for q, question in enumerate(row):
                told = look(question, reasons[b], part, labels[b], centres[b], cross[b], path[b])
                out["look"][r, q], out["share"][r, q] = told
        return out

    def _partition(self, rng: random.Random) -> list[list[int]]:
        order = list(range(len(NUSCENES)))
        if self.groups > 1 and rng.random() < MIXED:
            rng.shuffle(order)  # else, of three, those ahead and those behind, for questions about the way
        each = len(order) // self.groups
        return [sorted(order[n * each : (n + 1) * each]) for n in range(self.groups)]

    def _text(self, rows: list[list[Question]], views: list[list[int]]) -> dict[str, Tensor]:
        """Token ids of prompts (rows, P), and questions with answers and what follows each of their tokens
        (-100: not learnt), both (rows, questions, QUESTION_LENGTH) and padded."""
        heads = [
            self.tokenizer("".join(f"{NUSCENES.names[v]}: " + IMAGE * GRID**2 + "\n" for v in part)).input_ids
            for part in views
        ]
        most = max(len(row) for row in rows)
        text = torch.full((len(rows), most, QUESTION_LENGTH), self.tokenizer.pad_token_id)
        target = torch.full_like(text, -100)
        weight = torch.ones(text.shape[:2])
        for r, row in enumerate(rows):
            for q, question in enumerate(row):
                asked = self.tokenizer(question.text).input_ids
                words = asked + self.tokenizer(question.answer).input_ids
                text[r, q, : len(words)] = torch.tensor(words)
                weight[r, q] = SCARCE if question.camera is None else 1.0
                target[r, q, len(asked) - 1 : len(words)] = torch.tensor(
                    [*words[len(asked) :], self.tokenizer.eos_token_id]
                )
        return {"prefix": torch.tensor(heads), "text": text, "target": target, "weight": weight}


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
