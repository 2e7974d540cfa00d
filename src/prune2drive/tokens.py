"""The nouns every part shares: segments, images, views, selections, position policies.

Nothing here knows a model. All geometry lives on the host (CPU tensors, Python integers), so
that asking "how many" or "where" never waits for an accelerator.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Box = tuple[float, float, float, float]
"""A rectangle x0, y0, x1, y1 as shares of a picture's width and height, origin top left."""

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


class PositionPolicy(enum.StrEnum):
    """What happens to position ids when tokens leave.

    ``KEEP``: every surviving token keeps the position id it had in the full prompt.
    ``REINDEX``: the numbers no surviving token uses are removed, order preserved.
    """

    KEEP = "keep"
    REINDEX = "reindex"


@dataclass(frozen=True)
class Segment:
    """One rectangle of tokens of an image: the whole picture, one tile, or the thumbnail.

    Tokens run row by row. ``stride`` is the distance between the first tokens of two rows:
    ``cols``, or ``cols + 1`` where the model ends every row with a newline token.
    """

    start: int
    """Offset of the first token, counted from the first token of the image."""
    grid: tuple[int, int]
    """Rows, columns."""
    box: Box = WHOLE
    """The part of the picture it covers."""
    stride: int | None = None
    thumbnail: bool = False

    @property
    def length(self) -> int:
        return self.grid[0] * self.grid[1]

    def offsets(self) -> Tensor:
        """Offsets of its tokens inside the image: int64 ``(rows * cols,)``, ascending."""
        rows, cols = self.grid
        stride = self.stride or cols
        return (self.start + torch.arange(rows)[:, None] * stride + torch.arange(cols)).reshape(-1)

    def boxes(self) -> Tensor:
        """Rectangle of each token in the picture: float32 ``(rows * cols, 4)``."""
        rows, cols = self.grid
        x0, y0, x1, y1 = self.box
        x = torch.linspace(x0, x1, cols + 1, dtype=torch.float64)
        y = torch.linspace(y0, y1, rows + 1, dtype=torch.float64)
        left, top = x[:-1].repeat(rows), y[:-1].repeat_interleave(cols)
        right, bottom = x[1:].repeat(rows), y[1:].repeat_interleave(cols)
        return torch.stack([left, top, right, bottom], -1).float()


@dataclass(frozen=True)
class ImageTokens:
    """The tokens of one image of a prompt, as the model family lays them out.

    Tokens that no segment covers are structure (row ends, separators): always kept, never scored.
    """

    start: int
    """First token, counted over the visual tokens of its sample."""
    length: int
    """All its tokens, structure included."""
    segments: tuple[Segment, ...]


@dataclass(frozen=True, eq=False)
class View:
    """One camera's visual tokens in one sample, in sequence order.

    ``index`` int64 ``(n,)``: positions among the sample's visual tokens, ascending.
    ``boxes`` float32 ``(n, 4)``: the rectangle of each token in the camera's picture.
    ``part`` int64 ``(n,)``: which segment (tile, thumbnail, frame) a token comes from, from 0.
    ``frame`` int64 ``(n,)``: which frame of the camera, 0 the first given.
    """

    name: str
    index: Tensor
    boxes: Tensor
    part: Tensor
    frame: Tensor

    def __len__(self) -> int:
        return self.index.numel()

    def subset(self, which: Tensor) -> View:
        """The view with only some of its tokens: host indices, or bool ``(n,)``."""
        return View(self.name, self.index[which], self.boxes[which], self.part[which], self.frame[which])


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """All views of all samples of a call, padded to one batch: what a selector sees.

    ``features`` ``(V, N, D)`` any float dtype; rows beyond a view's length are zero.
    ``views`` one `View` per row; ``samples`` the batch row each view belongs to.
    """

    features: Tensor
    views: Sequence[View]
    samples: Sequence[int]

    @property
    def lengths(self) -> list[int]:
        return [len(view) for view in self.views]

    @property
    def mask(self) -> Tensor | None:
        """Bool ``(V, N)``, True at real tokens; None when every view is full."""
        width = self.features.shape[1]
        if all(n == width for n in self.lengths):
            return None
        lengths = torch.tensor(self.lengths).to(self.features.device, non_blocking=True)
        return torch.arange(width, device=self.features.device) < lengths[:, None]


@dataclass(frozen=True, eq=False)
class Selection:
    """What a method returns for a `VisualTokens` batch.

    ``indices`` int64 ``(V, K)``: indices into each view's tokens, any order; the engine sorts.
    Row ``v`` holds ``counts[v]`` picks, then -1.
    ``features`` ``(V, K, D)`` replaces the kept rows (merging methods), in the order of
    ``indices``; ``sizes`` ``(V, K)`` says how many tokens each kept row stands for.
    """

    indices: Tensor
    counts: Sequence[int]
    features: Tensor | None = field(default=None)
    sizes: Tensor | None = field(default=None)
