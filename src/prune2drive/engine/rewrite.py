"""Cut dropped placeholders out of a prompt and gather everything that runs along with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import PruneError
from ..tokens import PositionPolicy

FILL = {"token_type_ids": 0, "mm_token_type_ids": 0, "labels": -100}
"""Inputs with one value per token, and what stands at padding."""


@dataclass(frozen=True, eq=False)
class Shortening:
    """How a batch of sequences is shortened.

    ``columns`` int64 ``(B, n)``: the original column of each new one; ``valid`` bool ``(B, n)``:
    False where a row has fewer than ``n`` tokens left. Host copies are not kept: both live on the
    device of the tensors they gather.
    """

    columns: Tensor
    valid: Tensor

    def gather(self, tensor: Tensor, fill: int | float | bool) -> Tensor:
        """``(B, L)`` -> ``(B, n)`` with ``fill`` where not valid."""
        return tensor.gather(1, self.columns).masked_fill(~self.valid, fill)


def shorten(live: Tensor, length: int, right_padded: bool) -> Shortening:
    """Columns that stay, in order, on the side where the batch is not padded.

    Args:
        live: bool ``(B, L)``, True at tokens that stay.
        length: the new length, at least the longest row's live tokens.
        right_padded: pads go behind the tokens, else in front.
    """
    order = torch.argsort((~live if right_padded else live).to(torch.int8), dim=-1, stable=True)
    columns = order[:, :length] if right_padded else order[:, live.shape[1] - length :]
    return Shortening(columns, live.gather(1, columns))


def live_columns(mask: Tensor, places: Tensor, kept: Tensor) -> Tensor:
    """Bool ``(B, L)``: tokens that stay.

    Args:
        mask: bool ``(B, L)``, True at real tokens.
        places: int64 ``(T,)``: where the placeholders stand in the flattened mask.
        kept: int64 ``(K,)``: which of the T stay.
    """
    stays = torch.zeros(len(places), dtype=torch.bool, device=mask.device).index_fill(0, kept, True)
    return mask.flatten().index_put((places,), stays).reshape(mask.shape)


def is_right_padded(mask: Tensor) -> bool:
    """Whether a host mask ``(B, L)`` pads behind the text. Rows padded on both sides count as left."""
    return bool(mask[:, 0].all()) and not bool(mask[:, -1].all())


def compress(positions: Tensor, valid: Tensor) -> Tensor:
    """Remove the position numbers that no valid token uses; order and equalities stay.

    ``positions`` int64 ``(B, n)`` or ``(A, B, n)``; numbers used on any axis count as used, so
    that the axes of M-RoPE keep their relation. Each row starts where it started.
    """
    rows = positions if positions.dim() == 3 else positions[None]
    axes, batch, length = rows.shape
    # Invalid places take a copy of a number in use, so that they neither open nor close a gap.
    lowest = rows.masked_fill(~valid, torch.iinfo(torch.long).max).amin((0, 2))
    lowest = torch.where(valid.any(-1), lowest, 0)
    filled = torch.where(valid, rows, lowest[None, :, None])
    flat = filled.permute(1, 0, 2).reshape(batch, axes * length)
    ordered, order = flat.sort(-1)
    rank = torch.cat([torch.zeros_like(ordered[:, :1]), (ordered.diff(dim=-1) > 0).long()], -1).cumsum(-1)
    new = torch.empty_like(rank).scatter_(1, order, rank) + lowest[:, None]
    new = new.reshape(batch, axes, length).permute(1, 0, 2)
    return new if positions.dim() == 3 else new[0]


def cut_positions(positions: Tensor, short: Shortening, policy: PositionPolicy) -> Tensor:
    """Position ids of the short prompt: ``(B, L)`` or ``(4, B, L)`` -> the same with ``n``.

    Of four rows the first only serves to build masks: there, gaps would be read as several packed
    sequences, so it is counted anew.
    """

    def gather(rows: Tensor) -> Tensor:
        cut = rows.gather(-1, short.columns.expand(*rows.shape[:-1], -1))
        if policy is PositionPolicy.REINDEX:
            cut = compress(cut, short.valid)
        return cut.masked_fill(~short.valid, 0)

    if positions.dim() == 2:
        return gather(positions)
    text = (short.valid.long().cumsum(-1) - 1).clamp(min=0)
    return torch.cat([text[None], gather(positions[1:])])


def next_positions(full: Tensor, mask: Tensor, cut: Tensor, policy: PositionPolicy) -> Tensor:
    """Position id behind a shortened prompt, for models that count in one row: int64 ``(B,)``.

    ``full``, ``mask`` ``(B, L)``: of the prompt before the cut, whose last token may be one of those that
    were dropped; ``cut`` ``(B, n)`` the position ids after it.
    """
    used = cut if policy is PositionPolicy.REINDEX else full.masked_fill(~mask, 0)
    return used.amax(-1) + 1


def cut_prompt(kwargs: dict[str, Any], short: Shortening, pad: int) -> dict[str, Any]:
    """The per-token inputs of a call, shortened; the mask is always explicit.

    Without an explicit mask, positions with gaps would be taken for several packed sequences.
    """
    out = dict(kwargs)
    out["input_ids"] = short.gather(kwargs["input_ids"], pad)
    mask = kwargs.get("attention_mask")
    out["attention_mask"] = short.valid.to(mask.dtype if mask is not None else torch.long)
    for name, fill in FILL.items():
        if kwargs.get(name) is not None:
            out[name] = short.gather(kwargs[name], fill)
    return out


def remap_logits_to_keep(wanted: Tensor, short: Shortening, length: int) -> Tensor:
    """Columns asked for by their place in the full prompt -> their place in the short one.

    ``wanted`` int64 ``(M,)`` host or device; all rows must agree, which is so for batch one.
    """
    if wanted.dtype is torch.bool:
        wanted = wanted.nonzero().flatten()
    wanted = torch.where(wanted < 0, wanted + length, wanted)
    columns = short.columns.masked_fill(~short.valid, -1)  # padding holds dropped columns
    place = (columns[:, :, None] == wanted.to(columns.device)).long()
    found, where = place.max(1)
    if not bool(found.all()) or not bool((where == where[:1]).all()):
        raise PruneError(
            f"logits_to_keep={wanted.tolist()} names columns that were "
            "pruned or that lie at different places in "
            "the rows of the batch; ask for the last ones with an integer"
        )
    return where[0]


def new_lengths(mask: Tensor, visual: Tensor, kept: Sequence[int]) -> list[int]:
    """Tokens left in each row: its text plus its kept visual tokens. Host tensors ``(B, L)``."""
    text = (mask & ~visual).sum(-1).tolist()
    return [int(t) + k for t, k in zip(text, kept, strict=True)]
