"""From the features of all images of a call to the rows that stay.

Counts and geometry are host integers, so the only question put to the device is "are the features
finite"; everything else is queued without waiting.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..allocators import Allocator
from ..errors import PruneError
from ..functional.counts import on_device
from ..layer_pruners.base import LayerPruner
from ..layout import Layout
from ..rig import Rig
from ..selectors.base import Selector
from ..tokens import ImageTokens, Selection, Signals, View, VisualTokens
from .clock import Clock
from .pooling import pool, take_apart
from .sources import Sources, padded


@dataclass(frozen=True, eq=False)
class Cut:
    """Which rows of the flat features stay.

    ``kept`` int64 ``(K,)`` ascending rows of ``features`` ``(T, D)`` (with merged rows written in);
    ``per_row`` kept visual tokens of each sample, structure included.
    """

    kept: Tensor
    features: Tensor
    per_row: list[int]
    counts: list[int]
    indices: Tensor
    sizes: Tensor | None
    select_ms: Callable[[], float]


def assign_views(
    images: Sequence[Sequence[ImageTokens]], layout: Layout, rig: Rig | None
) -> list[list[View]]:
    """The views of each sample; a sample without pictures has none."""
    return [layout.assign(row, rig, sample) if row else [] for sample, row in enumerate(images)]


def allocate(
    views: Sequence[Sequence[View]], allocator: Allocator, rig: Rig | None, rounding: str
) -> list[int]:
    """Tokens to keep of each view, over all samples in order."""
    return [k for row in views if row for k in allocator.allocate(row, rig, rounding)]


def batch_views(
    rows: Tensor,
    views: Sequence[Sequence[View]],
    index: Tensor,
    sources: Sources | None = None,
    rig: Rig | None = None,
) -> VisualTokens:
    """Gather features of views, and the signals that go with them, into one padded batch.

    Args:
        rows: ``(T, D)`` features.
        index: int64 ``(V, N)`` rows of each view's tokens, -1 beyond its end.
    """
    names = [view for row in views for view in row]
    samples = [number for number, row in enumerate(views) for _ in row]
    ragged = any(len(view) < index.shape[1] for view in names)

    def gather(flat: Tensor) -> Tensor:
        out = flat[index.clamp(min=0)]
        if not ragged:
            return out
        return out.masked_fill((index < 0).reshape(*index.shape, *[1] * (out.dim() - 2)), 0)

    signals = Signals()
    if sources is not None:
        aligned: dict[str, Any] = {
            name: gather(flat.to(rows.device)) for name, flat in sources.per_token.items()
        }
        signals = Signals(**aligned, text=sources.text, text_mask=sources.text_mask)
    return VisualTokens(gather(rows), names, samples, signals, rig)


def select(
    method: Selector | LayerPruner, tokens: VisualTokens, counts: Sequence[int], clock: Clock | None = None
) -> Selection:
    """Let a method choose, after checking what goes in and before trusting what comes out.

    Returns:
        A selection per view. Its counts are those asked, unless the method ranks a sample's tokens
        together or splits the total by itself: then only each sample's total is.
    """
    tokens = dataclasses.replace(tokens, features=tokens.features.detach())
    check_finite(tokens.features, tokens)
    with clock or Clock(tokens.features.device):
        return choose(method, tokens, counts)


@torch.no_grad()
def choose(method: Selector | LayerPruner, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
    """As `select`, without a clock and without asking whether the features are finite."""
    if method.scope == "sample":
        pooled, totals, where = pool(tokens, counts)
        chosen = method.select(pooled, totals)
        check_shape(method, chosen, totals)
        return take_apart(chosen, where)
    if 0 in counts:  # an earlier stage emptied a view; methods need not know
        return without_empty(method, tokens, counts)
    chosen = method.select(tokens, counts)
    check_shape(method, chosen, counts, tokens)
    return chosen


def without_empty(method: Selector | LayerPruner, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
    """The choice among the views of which something is to be kept; the others keep nothing."""
    rows = [row for row, k in enumerate(counts) if k]
    at = torch.tensor(rows).to(tokens.features.device)
    part = VisualTokens(
        tokens.features[at],
        [tokens.views[row] for row in rows],
        [tokens.samples[row] for row in rows],
        tokens.signals.mapped(lambda tensor: tensor[at]),
        tokens.rig,
    )
    asked = [counts[row] for row in rows]
    chosen = method.select(part, asked)
    check_shape(method, chosen, asked, part)

    def back(values: Tensor | None, fill: float) -> Tensor | None:
        if values is None:
            return None
        return values.new_full((len(counts), *values.shape[1:]), fill).index_copy(0, at, values)

    all_counts = [0] * len(counts)
    for row, k in zip(rows, chosen.counts, strict=True):
        all_counts[row] = k
    none = chosen.indices.new_full((len(counts), *chosen.indices.shape[1:]), -1)
    indices = none.index_copy(0, at, chosen.indices)
    return Selection(indices, all_counts, back(chosen.features, 0), back(chosen.sizes, 1))


def with_gradient(merged: Tensor, features: Tensor, indices: Tensor) -> Tensor:
    """Merged rows ``(V, K, D)`` that pass their gradient on to the tokens in whose place they stand.

    ``features`` ``(V, N, D)`` with the gradient that choosing cut off; ``indices`` ``(V, K)`` into them.
    """
    if not (torch.is_grad_enabled() and features.requires_grad):
        return merged
    own = features.gather(1, indices.clamp(min=0)[..., None].expand(-1, -1, features.shape[-1]))
    return own + (merged.to(own.dtype) - own).detach()


def check_shape(
    method: Selector | LayerPruner,
    chosen: Selection,
    counts: Sequence[int],
    tokens: VisualTokens | None = None,
) -> None:
    """Refuse a selection that is not what was asked; ``tokens`` for methods that may split totals."""
    got, asked = list(chosen.counts), list(counts)
    fits = got == asked
    if method.allocates and tokens is not None and len(got) == len(asked):
        totals: dict[int, int] = {}
        for sample, k, wanted in zip(tokens.samples, got, asked, strict=True):
            totals[sample] = totals.get(sample, 0) + k - wanted
        inside = all(0 <= k <= n for k, n in zip(got, tokens.lengths, strict=True))
        fits = inside and not any(totals.values())
    if not fits or chosen.indices.shape != (len(got), max(got)):
        raise PruneError(
            f"{type(method).__name__} returned {tuple(chosen.indices.shape)} indices and counts "
            f"{got[:6]}..., asked for {asked[:6]}... of {len(asked)} views"
        )


def check_finite(features: Tensor, tokens: VisualTokens) -> None:
    """One wait for the device; the search for the culprit happens only when there is one."""
    if bool(torch.isfinite(features).all()):
        return
    view, token, channel = (int(x[0]) for x in (~torch.isfinite(features)).nonzero(as_tuple=True))
    raise PruneError(
        f"{tokens.views[view].name} (sample {tokens.samples[view]}): "
        f"feature of token {token}, channel {channel} "
        f"is {float(features[view, token, channel])}; check the picture and the dtype of the vision tower "
        "(fp16 overflows in some towers; bf16 does not)"
    )


def cut_features(
    flat: Tensor,
    images: Sequence[Sequence[ImageTokens]],
    views: Sequence[Sequence[View]],
    counts: Sequence[int],
    selector: Selector,
    there: Tensor | None = None,
    sources: Sources | None = None,
    rig: Rig | None = None,
) -> Cut:
    """Choose ``counts`` tokens of each view from the flat features ``(T, D)`` of all samples.

    ``there`` host bool ``(T,)``: False at tokens that the attention mask hides, which never stay.
    """
    where = Rows.of(images, views, flat.device, there)
    clock = Clock(flat.device)
    chosen = select(selector, batch_views(flat, views, where.table, sources, rig), counts, clock)
    valid = counts_mask(chosen.counts, flat.device)
    kept, flat = where.keep(flat, chosen, valid)
    per_row = where.per_row(chosen.counts)
    return Cut(kept, flat, per_row, list(chosen.counts), chosen.indices, chosen.sizes, lambda: clock.ms)


def counts_mask(counts: Sequence[int], device: torch.device) -> Tensor:
    """Bool ``(V, max counts)``: True at the first ``counts[v]`` places of each row."""
    return torch.arange(max(counts), device=device) < on_device(counts, device)[:, None]


@dataclass(frozen=True, eq=False)
class Rows:
    """Where the views' tokens lie among a call's rows of features, as far as the prompt alone tells.

    ``table`` int64 ``(V, N)``: row of each view's tokens, -1 beyond its end. ``fixed`` bool ``(T,)``: rows
    that stay whatever is chosen (row ends, separators), and ``fixed_per_sample`` how many.
    """

    views: Sequence[Sequence[View]]
    table: Tensor
    fixed: Tensor
    fixed_per_sample: Sequence[int]

    @classmethod
    def of(
        cls,
        images: Sequence[Sequence[ImageTokens]],
        views: Sequence[Sequence[View]],
        device: torch.device,
        there: Tensor | None = None,
    ) -> Rows:
        """``there`` host bool ``(T,)``: False at rows that the attention mask hides, which never stay."""
        totals = [sum(image.length for image in row) for row in images]
        offsets = [sum(totals[:row]) for row in range(len(totals))]
        rows = [view.index + offsets[row] for row, group in enumerate(views) for view in group]
        fixed = torch.ones(sum(totals), dtype=torch.bool) if there is None else there.clone()
        for view_rows in rows:
            fixed[view_rows] = False
        per_sample = [int(fixed[at : at + n].sum()) for at, n in zip(offsets, totals, strict=True)]
        table = padded(rows).to(device, non_blocking=True)
        return cls(views, table, fixed.to(device, non_blocking=True), per_sample)

    def per_row(self, counts: Sequence[int]) -> list[int]:
        """Visual tokens each sample keeps if its views keep ``counts``."""
        by_view = iter(counts)
        return [
            fixed + sum(next(by_view) for _ in group)
            for fixed, group in zip(self.fixed_per_sample, self.views, strict=True)
        ]

    def keep(self, flat: Tensor, chosen: Selection, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Rows that stay, int64 ``(K,)`` ascending, and the features with merged rows written in.

        ``valid`` as `counts_mask` makes it. Nothing here waits for the device.
        """
        total = sum(self.per_row(chosen.counts))
        picked = self.table.gather(1, chosen.indices.clamp(min=0))
        # One row more than there are tokens: picks beyond a view's count land there and are cut off.
        target = torch.where(valid, picked, len(flat)).reshape(-1)
        if chosen.features is not None:
            spare = torch.cat([flat, flat.new_zeros(1, flat.shape[1])])
            merged = with_gradient(chosen.features, flat[self.table.clamp(min=0)], chosen.indices)
            merged = merged.reshape(-1, flat.shape[1]).to(flat.dtype)
            flat = spare.index_copy(0, target, merged)[:-1]
        keep = torch.cat([self.fixed, self.fixed.new_zeros(1)])
        keep = keep.index_fill(0, target, True)[:-1]
        # The number of kept rows is known, so a stable sort finds them without asking the device.
        return torch.argsort(~keep, stable=True)[:total], flat
