"""What is added to attention logits: the weight of merged tokens, and distance undone.

One path serves both. A token that stands for s tokens gets log s (proportional attention: ToMe, PACT).
Under the position policy "calibrate" a kept visual token n gets, from a query m, log(c - D(m - n)) with
D(m - n) = (2 / d) sum_j cos((m - n) theta_j), the similarity that rotary positions leave two equal vectors
at that distance, and c = 2: nothing is added at distance 0, up to log 2 far away (RESTORE, ICML 2026); and
there log s too, whether a method asks for it or not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional.products import no_autocast

CEILING = 2.0
"""c of RESTORE."""

Rope = tuple[Tensor, Tensor]
"""Cosines and sines ``(B, n, d)`` of a layer's rotary positions, as the layer gets them."""


def unit_rope(rope: Rope) -> Tensor:
    """Vectors whose dot product is D: float32 ``(B, n, 2 d)``.

    cos(m t) cos(n t) + sin(m t) sin(n t) is cos((m - n) t), whichever way a family pairs its channels
    and whatever axis of M-RoPE a channel follows; a scale on cosines and sines cancels.
    """
    return torch.nn.functional.normalize(torch.cat([part.float() for part in rope], -1), dim=-1)


def distance_gain(queries: Tensor, keys: Tensor) -> Tensor:
    """log(c - D) between unit rope vectors ``(B, m, e)`` and ``(B, n, e)``: float32 ``(B, m, n)``."""
    with no_autocast(queries.device):
        similarity = queries @ keys.transpose(-1, -2)
    return torch.log((CEILING - similarity).clamp(min=torch.finfo(torch.float32).eps))


def key_bias(
    log_sizes: Tensor | None, visual: Tensor | None, queries: Tensor | None, keys: Tensor | None
) -> Tensor | None:
    """What the keys of a layer gain: float32 ``(B, 1, m or 1, n)``, or None for nothing.

    Args:
        log_sizes: ``(B, n)`` or None.
        visual: bool ``(B, n)`` keys that distance is undone for, or None.
        queries, keys: unit rope vectors, needed with ``visual``.
    """
    bias = None if log_sizes is None else log_sizes[:, None, None, :]
    if visual is not None and queries is not None and keys is not None:
        gain = distance_gain(queries, keys).masked_fill(~visual[:, None, :], 0)[:, None]
        bias = gain if bias is None else bias + gain
    return bias


def add_bias(mask: Tensor | None, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """A 4-D mask (bool, additive, or None for all allowed) with ``bias`` added: additive, of ``dtype``."""
    if mask is None:
        return bias.to(dtype)
    lowest = torch.finfo(dtype).min
    if mask.dtype is torch.bool:
        return (
            bias.to(dtype).expand(torch.broadcast_shapes(bias.shape, mask.shape)).masked_fill(~mask, lowest)
        )
    return (mask.float() + bias).clamp(min=lowest).to(dtype)
