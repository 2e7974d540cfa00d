"""A masking oracle: what a pruned model must compute, from the full sequence on the stock model.

Nothing is cut. At the decoder layers from a given one on, the columns of dropped tokens are hidden by a
forward pre-hook that edits the layer's attention mask; columns of generated tokens stay open, and a dropped
row still sees itself so that it cannot become NaN. Positions stay as the model makes them, or are given
explicitly, counted with plain Python loops. Shares no code with the engine under test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Stages = Sequence[tuple[int, Tensor]]
"""(first layer, dropped ``(B, L)`` over the columns of the full prompt), layers ascending."""

WIDE = 1 << 14


def language_model(model: nn.Module) -> nn.Module:
    """The module that owns the decoder layers."""
    core = model.base_model
    for name in ("language_model", "text_model"):
        if hasattr(core, name):
            return getattr(core, name)
    raise AssertionError(f"no language model in {type(core).__name__}")


def widen(model: nn.Module) -> nn.Module:
    """Open every sliding window of the language model, in place.

    A window counts places in the sequence, so a shortened sequence sees further back by design and could not
    be compared with the full one.
    """
    config = model.config.get_text_config()
    if getattr(config, "sliding_window", None) is not None:
        config.sliding_window = WIDE
    for module in language_model(model).modules():
        if getattr(module, "sliding_window", None) is not None:
            module.sliding_window = WIDE
    return model


def dropped_columns(inputs: dict[str, Tensor], record: Any, image_token_id: int, stage: int = -1) -> Tensor:
    """Columns of the full prompt that a stage (counted over all stages) has dropped: bool ``(B, L)``."""
    ids = inputs["input_ids"].tolist()
    dropped = torch.zeros(len(ids), len(ids[0]), dtype=torch.bool)
    kept = record.stage(stage)
    for row, tokens in enumerate(ids):
        places = [column for column, token in enumerate(tokens) if token == image_token_id]
        for name, view in record.views[row].items():
            stay = set(kept[row][name].indices)
            for number, token in enumerate(view.index.tolist()):
                if number not in stay:
                    dropped[row, places[token]] = True
    return dropped


def live_columns(inputs: dict[str, Tensor], dropped: Tensor) -> list[list[int]]:
    """Columns of each row that are neither padding nor dropped, in order."""
    mask = inputs["attention_mask"].tolist()
    gone = dropped.tolist()
    return [[c for c, real in enumerate(row) if real and not gone[r][c]] for r, row in enumerate(mask)]


def _hide(mask: Tensor | None, hidden: Tensor, cache: Any, layer: int, gone: Tensor, floats: bool) -> Tensor:
    """The layer's mask with the columns of ``gone`` closed."""
    rows, query = hidden.shape[:2]
    before = cache.get_seq_length(layer) if cache is not None else 0
    total = before + query
    if mask is not None:
        width = mask.shape[-1]
    elif before:
        width = cache.layers[layer].keys.shape[-2] + query  # a sliding cache forgets its oldest columns
    else:
        width = query
    column = torch.arange(total - width, total)
    asking = torch.arange(total - query, total)
    close = torch.zeros(rows, total, dtype=torch.bool)
    prompt = gone.repeat_interleave(rows // gone.shape[0], 0)
    close[:, : prompt.shape[1]] = prompt[:, :total]
    close = close[:, None, None, total - width :] & (column[None, :] != asking[:, None])
    if mask is None:
        causal = (column[None, :] <= asking[:, None]).expand(rows, 1, query, width)
        mask = torch.zeros(causal.shape, dtype=hidden.dtype).masked_fill(
            ~causal, torch.finfo(hidden.dtype).min
        )
        mask = mask if floats else causal
    if mask.dtype is torch.bool:
        return mask & ~close
    return mask.masked_fill(close, torch.finfo(mask.dtype).min)


@dataclass(frozen=True)
class Written:
    """Rows that a stage at ``layer`` writes into the hidden states: ``places`` are (row, column)."""

    layer: int
    places: list[tuple[int, int]]
    features: Tensor


Bias = Callable[[int, list[int], int], Tensor | None]
"""(layer, columns that ask, columns there are) -> what the logits gain, ``(rows, asking, there)``."""


@contextmanager
def masked(
    model: nn.Module, stages: Stages, written: Sequence[Written] = (), bias: Bias | None = None
) -> Iterator[nn.Module]:
    """Inside, the stock model's layers do not see the dropped columns of the prompt; also in ``generate``.

    ``written``: rows that take other values on their way; ``bias``: added to attention logits.
    """
    decoder = language_model(model)
    floats = decoder.config._attn_implementation == "eager"
    handles = []

    def hook_for(number: int, gone: Tensor | None):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            hidden = args[0] if args else kwargs["hidden_states"]
            cache = kwargs.get("past_key_values")
            before = cache.get_seq_length(number) if cache is not None else 0
            for each in written:
                if each.layer == number and not before:
                    hidden = hidden.clone()
                    repeat = hidden.shape[0] // (max(row for row, _ in each.places) + 1)
                    for (row, column), value in zip(each.places, each.features, strict=True):
                        hidden[row * repeat : (row + 1) * repeat, column] = value
            mask = kwargs.get("attention_mask")
            if gone is not None:
                mask = _hide(mask, hidden, cache, number, gone, floats)
            total = before + hidden.shape[1]
            asking = list(range(before, total))
            if bias is not None and (extra := bias(number, asking, total)) is not None:
                assert mask is not None
                assert mask.shape[-1] == total
                if mask.dtype is torch.bool:
                    closed = torch.finfo(hidden.dtype).min
                    mask = torch.zeros(mask.shape, dtype=hidden.dtype).masked_fill(~mask, closed)
                mask = mask + extra[:, None]
            if args:
                return (hidden, *args[1:]), {**kwargs, "attention_mask": mask}
            return args, {**kwargs, "hidden_states": hidden, "attention_mask": mask}

        return hook

    for number, layer in enumerate(decoder.layers):
        ranges = [gone for first, gone in stages if first <= number]
        if ranges or written or bias is not None:
            hook = hook_for(number, ranges[-1] if ranges else None)
            handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


# -- positions, by counting ---------------------------------------------------------------------------------


def plain_positions(inputs: dict[str, Tensor], generating: bool, first: int = 0) -> list[list[int]]:
    """Position ids of families with one axis, as the stock call counts them."""
    out = []
    for row in inputs["attention_mask"].tolist():
        if not generating:
            out.append([first + column for column in range(len(row))])
            continue
        counted, number = [], 0
        for real in row:
            counted.append(number if real else 0)
            number += int(bool(real))
        out.append(counted)
    return out


def mrope_positions(inputs: dict[str, Tensor], image_token_id: int, merge: int = 2) -> list[list[list[int]]]:
    """Position ids ``[axis][row][column]`` of the Qwen families for pictures: time, height, width.

    Text counts on along all axes; a picture starts at the next number, stays there in time and counts rows
    and columns; after it text continues behind the largest number used.
    """
    ids, mask = inputs["input_ids"].tolist(), inputs["attention_mask"].tolist()
    grids = iter(inputs["image_grid_thw"].tolist())
    axes: list[list[list[int]]] = [[], [], []]
    for tokens, real in zip(ids, mask, strict=True):
        row: list[list[int]] = [[0] * len(tokens) for _ in range(3)]
        column, number = 0, 0
        while column < len(tokens):
            if not real[column]:
                column += 1
            elif tokens[column] != image_token_id:
                for axis in range(3):
                    row[axis][column] = number
                number, column = number + 1, column + 1
            else:
                times, high, wide = next(grids)
                high, wide = high // merge, wide // merge
                assert times == 1
                for y in range(high):
                    for x in range(wide):
                        row[0][column], row[1][column], row[2][column] = number, number + y, number + x
                        column += 1
                number += max(high, wide)
        for axis in range(3):
            axes[axis].append(row[axis])
    return axes


def renumber(axes: Sequence[Sequence[Sequence[int]]], live: Sequence[Sequence[int]]) -> list[list[list[int]]]:
    """Drop the numbers that no live column uses on any axis; a row starts where it started."""
    out = [[list(row) for row in axis] for axis in axes]
    for row, columns in enumerate(live):
        used = sorted({axis[row][column] for axis in axes for column in columns})
        new = {number: used[0] + rank for rank, number in enumerate(used)}
        for axis in out:
            axis[row] = [new.get(number, 0) for number in axis[row]]
    return out


def reindexed(
    inputs: dict[str, Tensor], dropped: Tensor, image_token_id: int, mrope: bool, generating: bool, first: int
) -> Tensor:
    """Explicit position ids of the full prompt for the "reindex" policy: ``(B, L)`` or ``(4, B, L)``."""
    live = live_columns(inputs, dropped)
    text = plain_positions(inputs, True)
    if mrope:
        return torch.tensor([text, *renumber(mrope_positions(inputs, image_token_id), live)])
    return torch.tensor(renumber([plain_positions(inputs, generating, 0 if generating else first)], live)[0])
