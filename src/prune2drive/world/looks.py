"""Where a question should look: the visual tokens that show what it asks about.

An answer is found in two steps: from the question to the tokens of the thing it is about, and from what
these know to a word. Answers alone teach the first step late, since only both together lower their loss.
So one head group of one layer is told where to look; where there is nothing to see, it looks at the
first token of the prompt. It learns nothing that it could not read off the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..rig import NUSCENES
from .labels import FIELDS
from .questions import FRONTS, Question
from .scene import COLOURS, KINDS, VEHICLES

BEFORE_TOKENS = 2
"""Tokens of a camera's part of the prompt before its visual tokens: its name and a colon."""

_KIND, _COLOUR, _FIRST, _NEAREST = (FIELDS.index(name) for name in ("kind", "colour", "first", "nearest"))
_PEOPLE = ("pedestrian", "cyclist")


def look(
    question: Question,
    reason: str | None,
    views: Sequence[int],
    labels: Tensor,
    centres: Tensor,
    cross: Tensor,
    path: Tensor,
) -> tuple[Tensor, float]:
    """Say where a question looks.

    Args:
        reason: of the safe action in this scene; None if that is not asked.
        views: indices of the cameras in the prompt, in its order.
        labels, centres: of one scene, (V, patches, fields) and (V, patches, kinds), as `labels.patch_labels`.
        cross, path: (V, patches), as `labels.place_labels` and `labels.path_labels`.

    Returns:
        A bool mask over the prompt, and the share of the attention that it should get; what is left goes
        to the first token. -1 where nothing is known.
    """
    shown = torch.zeros(labels.shape[:2], dtype=torch.bool)
    share = 1.0
    kind = labels[..., _KIND]
    if question.camera is not None:
        v = NUSCENES.names.index(question.camera)
        if question.type == "type":
            shown[v] = labels[v, :, _NEAREST] == 1
        else:
            asked = KINDS.index(question.kind or "")
            of_kind = kind[v] == 1 + asked
            if question.type == "count":
                shown[v] = centres[v, :, asked] > 0
                share = int(question.answer) / (int(question.answer) + 1)
            elif question.type == "exists":
                shown[v] = of_kind
                share = float(question.answer == "yes")
            else:
                shown[v] = of_kind & (labels[v, :, _FIRST] == 1)
    elif question.type != "steering" and reason is not None:
        for name in FRONTS:
            v = NUSCENES.names.index(name)
            shown[v] = _decisive(reason, kind[v], labels[v, :, _COLOUR], cross[v], path[v])
        share = float(reason != "clear")
    else:  # the road is everywhere
        share = -1.0
    if share > 0 and not shown.any():
        share = -1.0
    return _placed(shown, views), share


def _decisive(reason: str, kind: Tensor, colour: Tensor, cross: Tensor, path: Tensor) -> Tensor:
    """The patches whose thing gives the reason for the safe action."""

    def one_of(kinds: Sequence[str]) -> Tensor:
        return torch.isin(kind, torch.tensor([1 + KINDS.index(name) for name in kinds]))

    return {
        "light": one_of(["light"]) & (colour == 1 + COLOURS.index("red")),
        "person": one_of(_PEOPLE) & (path == 1),
        "vehicle": one_of(VEHICLES) & (path == 1),
        "crossing": cross == 1,
        "cone": one_of(["cone"]) & (path == 1),
        "clear": torch.zeros_like(path, dtype=torch.bool),
    }[reason]


def _placed(shown: Tensor, views: Sequence[int]) -> Tensor:
    """A mask over patches (V, patches) as one over the prompt of some cameras."""
    padded = torch.nn.functional.pad(shown[list(views)], (BEFORE_TOKENS, 0))
    return padded.flatten()


def look_loss(weights: Tensor, looks: Tensor, shares: Tensor) -> Tensor:
    """Cross entropy of where attention goes.

    Args:
        weights: attention of the questions' marks to the prompt, (rows, heads, questions, prompt).
        looks: bool (rows, questions, prompt). shares: (rows, questions), -1 where unknown.
    """
    known = shares >= 0
    if not known.any():
        return weights.new_zeros(())
    weights = weights.float().mean(1)[known]
    there = (weights * looks[known]).sum(-1).clamp(min=1e-6)
    sink = weights[:, 0].clamp(min=1e-6)
    share = shares[known]
    return -(share * there.log() + (1 - share) * sink.log()).mean()
