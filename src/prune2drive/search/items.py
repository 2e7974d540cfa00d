"""What is kept of a frame: the encoder's output and the tokenized prompts, as named tensors and back."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..prompts import build_inputs
from .features import Item

ANSWER_TYPE: dict[str, int] = {"paligemma": 1}
"""``token_type_ids`` of an answer by model type, where not 0: PaliGemma's prompt attends both ways."""

CONSTANT = "visual_indicator_features"
"""Of an encoder's output: Ovis2's features of its marker tokens, the same for every picture."""

TEXT, PICTURE = "text.", "picture."
"""Prefixes in a prompt item: one value per token of all its prompts, and one row per picture."""


@dataclass(frozen=True, eq=False)
class Ask:
    """One question of a frame, tokenized."""

    frame: int
    """The frame's number in its task."""
    text: Mapping[str, Tensor]
    """Per-token inputs by name, int32 ``(L,)``, without the answer."""
    pictures: Mapping[str, Tensor]
    """Inputs that go with the pictures, ``(pictures, ...)``, pixels not among them."""
    answer: Tensor
    """int64 ``(A,)``, A >= 1."""
    reference: str


def processed(
    processor: Any, frame: Mapping[str, Any], questions: Sequence[str], cameras: Sequence[str]
) -> tuple[dict[str, Tensor], Item]:
    """What a processor makes of a frame's pictures: inputs of the first question, and the prompts of all.

    The prompts are an item without pixels: ``lengths`` int64 ``(Q,)``, ``text.*`` int32 ``(sum of
    lengths,)``, and under ``picture.*`` the rest as it came, such as ``image_grid_thw``.
    """
    quick = copy.copy(processor)
    quick.image_processor = Once(processor.image_processor)
    made = [build_inputs(quick, None, [frame], question, cameras) for question in questions]
    tensors = [{k: v for k, v in one.items() if isinstance(v, Tensor)} for one in made]
    item: Item = {"lengths": torch.tensor([one["input_ids"].shape[1] for one in tensors])}
    for name, first in tensors[0].items():
        if name == "attention_mask" or name.startswith("pixel_"):
            continue
        if first.shape == tensors[0]["input_ids"].shape:
            item[TEXT + name] = torch.cat([one[name][0] for one in tensors]).to(torch.int32)
        else:
            item[PICTURE + name] = first
    return tensors[0], item


def asks(item: Item, frame: int, answers: Sequence[tuple[str, Tensor]]) -> list[Ask]:
    """The questions of a frame from its prompts; tensors stay where they are (memory-mapped).

    ``answers``: text and tokens of each question's reference.
    """
    lengths = item["lengths"].tolist()
    texts = {k.removeprefix(TEXT): v.split(lengths) for k, v in item.items() if k.startswith(TEXT)}
    pictures = {k.removeprefix(PICTURE): v for k, v in item.items() if k.startswith(PICTURE)}
    return [
        Ask(frame, {k: v[at] for k, v in texts.items()}, pictures, tokens, answer)
        for at, (answer, tokens) in enumerate(answers)
    ]


def collated(group: Sequence[Ask], pad: int, answer_type: int | None) -> dict[str, Tensor]:
    """Inputs of one call for some questions, on the host and without features.

    Args:
        pad: the id that stands in front of short prompts.
        answer_type: ``token_type_ids`` of the answers, which follow their prompts; None for prompts alone.

    Returns:
        int64 ``(B, L)`` for all that is per token, and what goes with the pictures, row by row.
    """
    rows: dict[str, list[Tensor]] = {name: [] for name in group[0].text}
    for ask in group:
        for name, tokens in ask.text.items():
            kind = (answer_type or 0) if name == "token_type_ids" else 0
            more = ask.answer if name == "input_ids" else torch.full_like(ask.answer, kind)
            rows[name].append(tokens.long() if answer_type is None else torch.cat([tokens.long(), more]))
    rows["attention_mask"] = [torch.ones_like(row) for row in rows["input_ids"]]
    inputs = {name: left_padded(row, pad if name == "input_ids" else 0) for name, row in rows.items()}
    return inputs | {name: torch.cat([ask.pictures[name] for ask in group]) for name in group[0].pictures}


class Once:
    """An image processor that works each list of pictures once: questions of a frame share them."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._done: list[tuple[Any, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = (args, kwargs)
        for before, result in self._done:
            if _same(before, call):
                return copy.copy(result)
        result = self._processor(*args, **kwargs)
        self._done.append((call, result))
        return copy.copy(result)  # callers take things out of it


def packed(family: Any, out: Any) -> Item:
    """An encoder's output as tensors to keep: its features, Qwen3-VL's deepstack planes, Ovis2's
    marker features.

    A stacked container ``(E, n, D)`` stays as it is; a list becomes ``(T, D)`` and ``entries``, the
    rows of each.
    """
    planes = {"features": out.pooler_output}
    for number, plane in enumerate(getattr(out, "deepstack_features", None) or ()):
        planes[f"deepstack.{number}"] = plane
    item: Item = {"entries": torch.tensor(family.flatten(out.pooler_output)[1])}
    if (constant := getattr(out, CONSTANT, None)) is not None:
        item[CONSTANT] = constant
    for name, plane in planes.items():
        item[name] = plane if isinstance(plane, Tensor) else family.flatten(plane)[0]
    return item


def restored(items: Sequence[Item], device: torch.device) -> Any:
    """The encoder's output for the frames of several items, in order."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    def container(name: str) -> Any:
        rows = [item[name].to(device, non_blocking=True) for item in items]
        if rows[0].dim() == 3:
            return torch.cat(rows)
        parts = zip(rows, items, strict=True)
        return [entry for row, item in parts for entry in row.split(item["entries"].tolist())]

    out: Any = BaseModelOutputWithPooling(pooler_output=container("features"))
    if CONSTANT in items[0]:
        setattr(out, CONSTANT, items[0][CONSTANT].to(device))
    if "deepstack.0" in items[0]:
        count = sum(name.startswith("deepstack.") for name in items[0])
        out.deepstack_features = [container(f"deepstack.{number}") for number in range(count)]
    return out


def left_padded(rows: Sequence[Tensor], fill: int) -> Tensor:
    """Stack vectors of different length, ``fill`` in front of the short ones."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), True, fill, padding_side="left")


def stacked(orders: Sequence[Tensor]) -> Tensor:
    """Orders ``(V, N)`` of several frames below each other, -1 beyond the end of a view."""
    most = max(order.shape[1] for order in orders)
    return torch.cat(
        [torch.nn.functional.pad(order, (0, most - order.shape[1]), value=-1) for order in orders]
    )


def _same(a: Any, b: Any) -> bool:
    """Whether two arguments are the same pictures and equal settings."""
    if isinstance(a, list | tuple) and type(a) is type(b):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return a is b or (isinstance(a, str | int | float | bool) and type(a) is type(b) and a == b)
