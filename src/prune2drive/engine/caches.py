"""Caches of pruned prompts: shorter than the text the caller holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import PruneError
from ..families.base import Family

SHORTENED = "_prune2drive_shortened"
"""Attribute of a cache: what was cut out of its prompt before the language model."""


@dataclass(frozen=True, eq=False)
class Shortened:
    """A cut before the language model, as later turns must know it.

    ``removed`` columns; ``length`` what is left; ``following`` int64 ``(B,)`` the position id a bare
    ``forward`` gives the next token, None where the model counts for itself (M-RoPE).
    """

    removed: int
    length: int
    following: Tensor | None


def mark_cache(cache: Any, shortened: Shortened | None) -> None:
    """Note on a cache what its prompt lost."""
    if cache is not None and shortened is not None and shortened.removed > 0:
        setattr(cache, SHORTENED, shortened)


def continue_shortened(inputs: dict[str, Any], cache: Any, family: Family, generating: bool) -> None:
    """Place new tokens behind a shortened prompt; refuse ids or a mask of the full one.

    transformers would cut a full prompt's ids at the cache's length, in the middle of the pictures, and
    read placeholders as text; and it would count positions on from the short length.
    """
    short: Shortened | None = getattr(cache, SHORTENED, None)
    length = cache.get_seq_length()
    if short is None:
        return
    if length < short.length:  # emptied and filled anew with something else
        delattr(cache, SHORTENED)
        return
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if not isinstance(ids, Tensor):
        return
    replayed = bool((ids == family.image_token_id).any())
    if replayed or (mask is not None and mask.shape[-1] != length + ids.shape[-1]):
        raise PruneError(
            f"this cache holds a pruned prompt: {length} tokens, "
            f"{short.removed} fewer than its text. Ask the "
            "next question as a new prompt with its pictures, or pass only the new tokens with a mask of the "
            "cache's length plus theirs"
        )
    if inputs.get("position_ids") is None and short.following is not None:
        following = short.following.to(ids.device)
        following = following.repeat_interleave(max(len(ids) // len(following), 1))[:, None]
        following = following + length - short.length - (family.first_position if generating else 0)
        inputs["position_ids"] = following + torch.arange(ids.shape[1], device=ids.device)
