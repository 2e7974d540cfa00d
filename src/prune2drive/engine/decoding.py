"""Greedy decoding behind a captured prefill: step by step, on a growing cache or on one of fixed size.

A step of one token reads every weight once and computes next to nothing, so launching its kernels from Python
takes longer than running them. On a cache of fixed size the step has static shapes and is recorded as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache
from transformers.cache_utils import StaticLayer

from .frozen import Frozen
from .graphs import Pool, Stage, Tensors

Step = Callable[[Tensor, Tensor], Tensor]
"""Token ``(B, 1)`` and its position id ``(B, 1)`` -> the next token ``(B, 1)``."""


def greedy(first: Tensor, position: Tensor, step: Step, most: int, ends: Sequence[int]) -> Tensor:
    """The most likely tokens, int64 ``(B, n)``, n at most ``most``; rows that ended repeat their end.

    ``first`` ``(B, 1)`` is the first token, ``position`` int64 ``(B,)`` its position id. Where a token can
    end a row, every step waits for the device once.
    """
    answer, done = [first], torch.zeros_like(first, dtype=torch.bool)
    while len(answer) < most:
        for end in ends:
            done = done | (answer[-1] == end)
        if ends and bool(done.all()):
            break
        token = step(answer[-1], (position + len(answer) - 1)[:, None])
        answer.append(torch.where(done, answer[-1], token) if ends else token.clone())
    return torch.cat(answer, 1)


def call(frozen: Frozen, token: Tensor, position: Tensor, mask: Tensor | None, cache: Any) -> Tensor:
    """One step of the model; ``mask`` ``(B, keys)`` or None."""
    out = frozen.model(
        input_ids=token,
        attention_mask=mask,
        position_ids=position.expand(3, -1, -1) if frozen.family.mrope else position,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return out.logits[:, -1:].argmax(-1)


class GrowingSteps:
    """Steps on the cache that a prefill returned."""

    def __init__(self, frozen: Frozen, cache: Any, mask: Tensor) -> None:
        self.frozen, self.cache, self.mask = frozen, cache, mask

    def __call__(self, token: Tensor, position: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(token), 1)], 1)
        return call(self.frozen, token, position, None if self.frozen.causal else self.mask, self.cache)


class FixedSteps:
    """Steps on a cache with room for ``room`` tokens behind the prompt, recorded if ``record``.

    Every answer begins with `begin`, which copies the prompt's keys and values in.
    """

    def __init__(self, frozen: Frozen, room: int, record: bool, pool: Pool | None) -> None:
        self.frozen, self.room = frozen, room
        config = frozen.model.config.get_text_config(decoder=True)
        self.cache: Any = StaticCache(config=config, max_cache_len=frozen.length + room)
        self.stage = Stage("decode", self._step, record, pool)

    @property
    def why_not(self) -> str | None:
        """Why this model's cache cannot have a fixed size here; None if it can."""
        kinds = {type(layer).__name__ for layer in self.cache.layers if type(layer) is not StaticLayer}
        return f"layers keep their keys in {', '.join(sorted(kinds))}" if kinds else None

    @property
    def how(self) -> str:
        """How steps run, as `Stage.how`."""
        return self.stage.how if self.why_not is None else f"plain: {self.why_not}"

    def serves(self, most: int) -> bool:
        """Whether an answer of ``most`` tokens, the first of them the prefill's, can be had here."""
        return self.why_not is None and most <= self.room + 1

    def prepare(self, read: Tensors, mask: Tensor, token: Tensor, position: Tensor) -> None:
        """Make the cache's tensors from a prefill's ``read`` (logits, then keys and values), and record."""
        if self.why_not is not None:
            return
        for layer, keys, values in zip(self.cache.layers, read[1::2], read[2::2], strict=True):
            layer.lazy_initialization(keys, values)
        self.begin(read)
        ones = mask.new_ones(len(mask), self.room)
        self.mask = torch.cat([mask, ones], 1)
        self.stage.prepare(token, position, self.mask)

    def begin(self, read: Tensors) -> None:
        """Put the prompt of a new prefill into the cache."""
        for layer, keys, values in zip(self.cache.layers, read[1::2], read[2::2], strict=True):
            length = keys.shape[2]
            layer.keys[:, :, :length].copy_(keys)
            layer.values[:, :, :length].copy_(values)
            layer.cumulative_length.fill_(length)

    def __call__(self, token: Tensor, position: Tensor) -> Tensor:
        return self.stage(token, position, self.mask)[0]

    def _step(self, token: Tensor, position: Tensor, mask: Tensor) -> Tensors:
        return (call(self.frozen, token, position, None if self.frozen.causal else mask, self.cache),)
