"""Caches of pruned prompts: shorter than the text the caller holds."""

from __future__ import annotations

from typing import Any

from ..errors import PruneError

REMOVED = "_prune2drive_removed"
"""Attribute of a cache: columns of its prompt that were cut out before the language model."""


def mark_cache(cache: Any, removed: int) -> None:
    """Note on a cache that its prompt lost columns."""
    if cache is not None and removed > 0:
        setattr(cache, REMOVED, removed)


def check_continuation(inputs: dict[str, Any], cache: Any, image_token_id: int) -> None:
    """Refuse to continue a shortened cache with ids or a mask of the full prompt.

    transformers would cut the caller's ids at the cache's length, in the middle of the pictures, and read
    placeholders as text.
    """
    if not getattr(cache, REMOVED, 0):
        return
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    length = cache.get_seq_length()
    replayed = ids is not None and bool((ids == image_token_id).any())
    misfit = ids is not None and mask is not None and mask.shape[-1] != length + ids.shape[-1]
    if replayed or misfit:
        raise PruneError(
            f"this cache holds a pruned prompt of {length} tokens, "
            f"{getattr(cache, REMOVED)} fewer than its text: ask "
            "the next question as a new prompt with its pictures, or "
            "pass only the new tokens with a mask of the "
            "cache's length plus theirs (see Pruned.rewrite)"
        )
