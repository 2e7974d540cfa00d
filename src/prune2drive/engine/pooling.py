"""Methods that rank all of a sample's tokens together: views laid end to end, and taken apart again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..tokens import Selection, View, VisualTokens

ALL = "*"
"""Name of the row that holds every view of a sample."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Where each token of a pooled row comes from.

    ``row``, ``index`` int64 ``(S, M)``: the view's row and the token's index in it, 0 beyond the end.
    ``views`` how many views there are.
    """

    row: Tensor
    index: Tensor
    views: int


def pool(tokens: VisualTokens, counts: Sequence[int]) -> tuple[VisualTokens, list[int], Pool]:
    """One row per sample instead of one per view, and each sample's total."""
    groups = tokens.by_sample
    lengths, device = tokens.lengths, tokens.features.device
    rows = [torch.cat([torch.full((lengths[v],), v) for v in group]) for group in groups.values()]
    places = [torch.cat([torch.arange(lengths[v]) for v in group]) for group in groups.values()]
    pad = torch.nn.utils.rnn.pad_sequence
    row = pad(rows, batch_first=True).to(device, non_blocking=True)
    index = pad(places, batch_first=True).to(device, non_blocking=True)
    real = pad([torch.ones(len(r), dtype=torch.bool) for r in rows], batch_first=True)
    real = real.to(device, non_blocking=True)
    whole = len({len(r) for r in rows}) == 1

    def gather(tensor: Tensor) -> Tensor:
        out = tensor[row, index]
        return out if whole else out.masked_fill(~real.reshape(*real.shape, *[1] * (out.dim() - 2)), 0)

    signals = tokens.signals.mapped(gather)
    views = [join([tokens.views[v] for v in group]) for group in groups.values()]
    totals = [sum(counts[v] for v in group) for group in groups.values()]
    pooled = VisualTokens(gather(tokens.features), views, list(groups), signals, tokens.rig)
    return pooled, totals, Pool(row, index, len(tokens.views))


def join(views: Sequence[View]) -> View:
    """The views of a sample as one; its geometry is that of the parts, each in its own picture."""
    names = ("index", "boxes", "part", "frame")
    return View(ALL, **{name: torch.cat([getattr(view, name) for view in views]) for name in names})


def take_apart(chosen: Selection, where: Pool) -> Selection:
    """What was chosen of pooled rows, per view. The counts are read from the device once."""
    device = chosen.indices.device
    valid = torch.zeros(chosen.indices.shape, dtype=torch.bool)
    for row, k in enumerate(chosen.counts):
        valid[row, :k] = True
    flat = valid.flatten().nonzero().flatten().to(device, non_blocking=True)
    picks = chosen.indices.clamp(min=0)
    views = where.row.gather(1, picks).flatten()[flat]
    index = where.index.gather(1, picks).flatten()[flat]
    per_view = torch.bincount(views, minlength=where.views)
    counts: list[int] = per_view.cpu().tolist()
    # A stable sort by view leaves each view's picks in the order in which they were made.
    order = torch.argsort(views, stable=True)
    start = (per_view.cumsum(0) - per_view)[views[order]]
    place = torch.arange(len(order), device=device) - start
    width = max(counts)

    def table(values: Tensor, fill: float) -> Tensor:
        out = values.new_full((where.views, width, *values.shape[1:]), fill)
        out[views[order], place] = values[order]
        return out

    features = sizes = None
    if chosen.features is not None:
        features = table(chosen.features.flatten(0, 1)[flat], 0)
    if chosen.sizes is not None:
        sizes = table(chosen.sizes.flatten(0, 1)[flat], 1)
    return Selection(table(index, -1), counts, features, sizes)
