"""What instruction tokens pay to visual tokens: which rows of attention count, and their mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .products import dots


def of_samples(per_sample: Tensor, samples: Sequence[int]) -> Tensor:
    """Give every row its sample's entry: ``(S, ...)`` -> ``(V, ...)``."""
    index = torch.tensor(list(samples), dtype=torch.int64).to(per_sample.device, non_blocking=True)
    return per_sample[index]


def last_only(text_mask: Tensor) -> Tensor:
    """True at the last real token of each text alone: bool ``(..., T)``; real tokens stand first."""
    place = torch.arange(text_mask.shape[-1], device=text_mask.device)
    return text_mask & (place == text_mask.sum(-1, keepdim=True) - 1)


def mean_paid(attention: Tensor, rows: Tensor) -> Tensor:
    """Attention ``(V, N, H, T)`` averaged over heads and over the text tokens in ``rows``, bool ``(V, T)``.

    Returns:
        float32 ``(V, N)``; zero where a text has no such token.
    """
    weights = rows.float()
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
    return (attention.float().mean(2) * weights[:, None, :]).sum(-1)


def raters(visual: Tensor, mask: Tensor | None, samples: Sequence[int], text: Tensor, real: Tensor) -> Tensor:
    """Text tokens that the visual tokens of their sample resemble more than they do the mean text token.

    Each visual token spreads one unit over the text by a softmax of inner products. A text token rates if it
    gathers more than the mean over the sample's text; if none does, all do.

    Args:
        visual: ``(V, N, D)``, any float dtype.
        mask: bool ``(V, N)``, True at real visual tokens; None when all are.
        samples: the sample of each row.
        text: ``(S, T, D)``.
        real: bool ``(S, T)``, True at real text tokens.

    Returns:
        bool ``(S, T)``.
    """
    logits = dots(visual.float(), of_samples(text, samples).float())
    there = of_samples(real, samples)[:, None, :]
    # The lowest number instead of -inf: a sample without text must not turn into NaN.
    shares = logits.masked_fill(~there, torch.finfo(torch.float32).min).softmax(-1)
    if mask is not None:
        shares = shares * mask[..., None]
    per_row = shares.sum(1)
    # A product instead of scattered additions, whose order changes from run to run on GPUs. Sums serve as
    # well as means: both sides of the comparison would be divided by the number of visual tokens.
    index = torch.tensor(list(samples), dtype=torch.int64).to(text.device, non_blocking=True)
    belongs = (torch.arange(len(text), device=text.device)[:, None] == index).float()
    gathered = dots(belongs[None], per_row.mT[None])[0].masked_fill(~real, 0.0)
    mean = gathered.sum(-1, keepdim=True) / real.sum(-1, keepdim=True).clamp(min=1)
    chosen = real & (gathered > mean)
    return torch.where(chosen.any(-1, keepdim=True), chosen, real)
