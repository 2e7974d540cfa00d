"""From a prompt's features to the shortened prompt: the part that native and legacy models share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..allocators import Allocator
from ..errors import PruneError
from ..layer_pruners.base import LayerPruner
from ..layout import Layout
from ..rig import Rig
from ..selectors.base import Selector
from ..tokens import ImageTokens, View
from .choose import Cut, allocate, assign_views, cut_features
from .record import Record
from .rewrite import Shortening, is_right_padded, live_columns, new_lengths, shorten
from .sources import Sources


@dataclass(frozen=True)
class Stage:
    """A method and the budget it works to."""

    method: Selector | LayerPruner
    allocator: Allocator


@dataclass(frozen=True, eq=False)
class CutPrompt:
    """A prompt's views and budgets, and the cut before the language model if there is one.

    ``budgets[s][v]`` tokens that stage ``s`` keeps of view ``v``, views of all samples in order.
    ``cut`` and ``short`` are None when every stage works inside the language model.
    """

    views: list[list[View]]
    budgets: list[list[int]]
    cut: Cut | None
    short: Shortening | None
    length: int
    record: Record


@dataclass(frozen=True)
class Cutter:
    """How to prune: the stages, the cameras and how pictures map to them."""

    stages: Sequence[Stage]
    rig: Rig | None
    layout: Layout
    depth: int | None = None
    """Layers of the language model, None where it does not show them."""

    @property
    def selector(self) -> Selector | None:
        first = self.stages[0].method
        return first if isinstance(first, Selector) else None

    @property
    def layer_pruners(self) -> list[LayerPruner]:
        return [s.method for s in self.stages if isinstance(s.method, LayerPruner)]

    def picture_sizes(self, row: int, count: int) -> Sequence[tuple[int, int] | None]:
        """Width and height of each picture of a sample as the layout expects them."""
        return self.layout.image_sizes(count, self.rig, row)

    def __call__(
        self,
        flat: Tensor,
        images: Sequence[Sequence[ImageTokens]],
        mask: Tensor,
        visual: Tensor,
        encode_ms: Callable[[], float],
        masked_column: bool = False,
        sources: Sources | None = None,
    ) -> CutPrompt:
        """Choose and shorten.

        Args:
            flat: features ``(T, D)`` of all placeholders in order.
            images: the images of each sample.
            mask, visual: host bool ``(B, L)``: real tokens, and placeholders among them.
            masked_column: leave one masked column in a batch that would have none.
            sources: what the method before the language model needs besides features.
        """
        there = mask[visual]
        views = self.views(images, there)
        budgets = self.budgets(views)
        before = length = mask.shape[1]
        cut, short = None, None
        if self.selector is not None:
            cut = cut_features(flat, images, views, budgets[0], self.selector, there, sources, self.rig)
            length = max(new_lengths(mask, visual, cut.per_row))
            length += int(masked_column and length < before)
            device = flat.device
            places = visual.flatten().nonzero().flatten().to(device, non_blocking=True)
            live = live_columns(mask.to(device, non_blocking=True), places, cut.kept)
            short = shorten(live, length, is_right_padded(mask))
        record = self.record(images, views, (before, length), encode_ms)
        if cut is not None:
            record.add_stage(cut.counts, cut.indices, cut.select_ms, 0)
        return CutPrompt(views, budgets, cut, short, length, record)

    def views(self, images: Sequence[Sequence[ImageTokens]], there: Tensor) -> list[list[View]]:
        """The views of each sample, without what the attention mask hides: ``there`` host bool ``(T,)``."""
        views = assign_views(images, self.layout, self.rig)
        if bool(there.all()):
            return views
        views = unmasked(views, there, [sum(image.length for image in row) for row in images])
        if not any(views):
            raise PruneError(
                "attention_mask hides every picture, so there is nothing to "
                "prune; leave the prune context "
                "for a blind control, or mask fewer placeholders"
            )
        return views

    def record(
        self,
        images: Sequence[Sequence[ImageTokens]],
        views: list[list[View]],
        sequence: tuple[int, int],
        encode_ms: Callable[[], float],
    ) -> Record:
        """The account of a call, before any stage is added; ``sequence`` as in `Record`."""
        method = " + ".join(repr(s.method) for s in self.stages)
        tokens = sum(image.length for row in images for image in row)
        structure = tokens - sum(len(view) for row in views for view in row)
        return Record(method, views, sequence, structure, encode_ms, self.depth)

    def budgets(self, views: list[list[View]]) -> list[list[int]]:
        """Tokens each stage keeps of each view, never more than the stage before it left."""
        budgets = [allocate(views, s.allocator, self.rig, s.method.rounding) for s in self.stages]
        names = [view.name for row in views for view in row]
        for before, after, stage in zip(budgets, budgets[1:], self.stages[1:], strict=False):
            for name, left, asked in zip(names, before, after, strict=True):
                if asked > left:
                    raise PruneError(
                        f"{name}: {type(stage.method).__name__} asked for {asked} "
                        "tokens, the stage before left "
                        f"{left}; every retention counts against the original tokens, so it must not grow"
                    )
        return budgets


def check_filled(visual: Tensor, rows: int) -> None:
    """Refuse pictures that do not fill their placeholders: ``visual`` host bool ``(B, L)``."""
    if int(visual.sum()) != rows:
        raise PruneError(
            f"{int(visual.sum())} image placeholders in input_ids, {rows} visual tokens from the "
            "pictures; pass exactly what the processor returned (was the prompt truncated?)"
        )


def unmasked(views: Sequence[Sequence[View]], there: Tensor, totals: Sequence[int]) -> list[list[View]]:
    """The views without tokens that the caller's attention mask hides; a camera hidden whole is no view.

    ``there`` host bool ``(T,)`` over the visual tokens of all samples, ``totals`` how many each has.
    """
    out = []
    for group, part in zip(views, there.split(list(totals)), strict=True):
        cut = [(view, part[view.index]) for view in group]
        out.append([view.subset(seen) for view, seen in cut if bool(seen.any())])
    return out
