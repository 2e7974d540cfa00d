"""The nouns every part shares: segments, images, views, selections, position policies.

Nothing here knows a model. All geometry lives on the host (CPU tensors, Python integers), so
that asking "how many" or "where" never waits for an accelerator.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from .functional.counts import on_device

if TYPE_CHECKING:
    from .rig import Rig

Box = tuple[float, float, float, float]
"""A rectangle x0, y0, x1, y1 as shares of a picture's width and height, origin top left."""

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


class PositionPolicy(enum.StrEnum):
    """What happens to position ids when tokens leave.

    ``KEEP``: every surviving token keeps the position id it had in the full prompt.
    ``REINDEX``: the numbers no surviving token uses are removed, order preserved.
    ``CALIBRATE``: as ``KEEP``, and attention to a kept visual token gains what rotary positions took
    from it with distance (RESTORE, ICML 2026): see `engine.bias`.
    """

    KEEP = "keep"
    REINDEX = "reindex"
    CALIBRATE = "calibrate"


class Signal(enum.StrEnum):
    """What a method may need besides the features of the visual tokens, and declares in ``needs``.

    Before the language model:
    ``ENCODER`` the vision tower's features as the projector receives them;
    ``SALIENCY`` the attention that a token receives in the vision tower;
    ``VISION_KEYS`` a token's attention key in the vision tower;
    ``TEXT`` the instruction.
    Inside it, at the input of layer K:
    ``PREVIOUS`` the hidden states entering layer K-1;
    ``INPUT`` the hidden states entering layer 0;
    ``ATTENTION`` the attention that layer K-1 paid from the instruction's tokens;
    ``LAST_ATTENTION`` the attention that layer K-1 paid from the last token alone;
    ``OWN_ATTENTION`` the attention that layer K is about to pay from the instruction's tokens;
    ``KEYS`` the rotated keys of layer K-1;
    ``OWN_KEYS`` the keys and queries of layer K;
    ``ROPE`` the attention logits that rotary positions alone would give the instruction in layer K-1.
    """

    ENCODER = "encoder"
    SALIENCY = "saliency"
    VISION_KEYS = "vision_keys"
    TEXT = "text"
    PREVIOUS = "previous"
    INPUT = "input"
    ATTENTION = "attention"
    LAST_ATTENTION = "last_attention"
    OWN_ATTENTION = "own_attention"
    KEYS = "keys"
    OWN_KEYS = "own_keys"
    ROPE = "rope"


READS_QUESTION: frozenset[Signal] = frozenset(
    {
        Signal.TEXT,
        Signal.ATTENTION,
        Signal.LAST_ATTENTION,
        Signal.OWN_ATTENTION,
        Signal.KEYS,
        Signal.ROPE,
        Signal.INPUT,
    }
)
"""Signals that differ from question to question."""


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
class Signals:
    """What a method declared in ``needs``; everything else is None.

    Per visual token, aligned with the features, zero beyond a view's length:
    ``encoder`` ``(V, N, C)``; ``saliency`` ``(V, N)`` float32, not negative; ``vision_keys`` ``(V, N, C)``
    mean over heads; ``previous``, ``input`` ``(V, N, D)``;
    ``attention`` ``(V, N, H, T)`` float32 probabilities from every instruction token (query) to this visual
    token (key), zero where ``text_mask`` is False; the last real one is the prompt's last token;
    ``last_attention`` ``(V, N, H)`` those of the last token alone;
    ``own_attention`` ``(V, N, H, T)`` as ``attention``, of the layer itself;
    ``rope`` ``(V, N, T)`` float32 logits, no softmax, from every instruction token's position to this one's
    for queries and keys of d ones: sqrt(d) D(m - n), D = (2 / d) sum_f cos((m - n) theta_f). At most
    sqrt(d), and just that where the layer before does not rotate; far away they can be negative. Zero where
    ``text_mask`` is False;
    ``keys`` ``(V, N, C)`` key heads side by side, rotated, of the layer before;
    ``own_queries``, ``own_keys`` ``(V, N, H, d)`` of the layer itself, not rotated (key heads repeated to H);
    ``own_rotated_keys`` ``(V, N, C)`` key heads side by side, rotated.

    Per sample of the batch (index with ``VisualTokens.samples``):
    ``text`` ``(S, T, D)`` the instruction: embeddings before the language model, hidden states inside.
    The instruction is what follows a prompt's last visual token, or all text if nothing does;
    ``text_mask`` bool ``(S, T)`` True at real tokens, which stand first;
    ``text_input`` ``(S, T, D)`` with ``input``: the instruction entering layer 0;
    ``text_keys`` ``(S, T, C)`` with ``keys``.

    ``norm`` the language model's final norm, ``(..., D)`` -> the same, for methods that choose inside it.
    ``memory`` what earlier stages of the same method left for later ones, for one call.
    """

    encoder: Tensor | None = None
    saliency: Tensor | None = None
    vision_keys: Tensor | None = None
    previous: Tensor | None = None
    input: Tensor | None = None
    attention: Tensor | None = None
    last_attention: Tensor | None = None
    own_attention: Tensor | None = None
    rope: Tensor | None = None
    keys: Tensor | None = None
    own_queries: Tensor | None = None
    own_keys: Tensor | None = None
    own_rotated_keys: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None
    text_input: Tensor | None = None
    text_keys: Tensor | None = None
    norm: Callable[[Tensor], Tensor] | None = None
    memory: dict[str, Any] = field(default_factory=dict)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Signals:
        """The same with every tensor per visual token changed alike."""
        changed: dict[str, Any] = {
            name: change(tensor) for name in self.PER_TOKEN if (tensor := getattr(self, name)) is not None
        }
        return replace(self, **changed)

    PER_TOKEN: ClassVar[tuple[str, ...]] = (
        "encoder",
        "saliency",
        "vision_keys",
        "previous",
        "input",
        "attention",
        "last_attention",
        "own_attention",
        "rope",
        "keys",
        "own_queries",
        "own_keys",
        "own_rotated_keys",
    )


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """All views of all samples of a call, padded to one batch: what a selector sees.

    ``features`` ``(V, N, D)`` any float dtype; rows beyond a view's length are zero.
    ``views`` one `View` per row; ``samples`` the batch row each view belongs to.
    ``signals`` what the method asked for besides; ``rig`` the vehicle's cameras if known.

    To a method of ``scope`` "sample" a row is all of a sample's views one after the other, and the
    sample's total is asked of it.
    """

    features: Tensor
    views: Sequence[View]
    samples: Sequence[int]
    signals: Signals = field(default_factory=Signals)
    rig: Rig | None = None

    @property
    def lengths(self) -> list[int]:
        return [len(view) for view in self.views]

    @property
    def by_sample(self) -> dict[int, list[int]]:
        """The rows of each sample, both in the order of the batch."""
        groups: dict[int, list[int]] = {}
        for row, sample in enumerate(self.samples):
            groups.setdefault(sample, []).append(row)
        return groups

    @property
    def mask(self) -> Tensor | None:
        """Bool ``(V, N)``, True at real tokens; None when every view is full."""
        width = self.features.shape[1]
        if all(n == width for n in self.lengths):
            return None
        device = self.features.device
        return torch.arange(width, device=device) < on_device(self.lengths, device)[:, None]


@dataclass(frozen=True, eq=False)
class Selection:
    """What a method returns for a `VisualTokens` batch.

    ``indices`` int64 ``(V, K)``: indices into each view's tokens, any order; the engine sorts.
    Row ``v`` holds ``counts[v]`` picks, then -1.
    ``features`` ``(V, K, D)`` replaces the kept rows (merging methods), in the order of
    ``indices``; ``sizes`` ``(V, K)`` says how many tokens each kept row stands for (at least 1): attention
    to it counts for so many where the method is ``proportional``, and under calibrated positions.
    """

    indices: Tensor
    counts: Sequence[int]
    features: Tensor | None = field(default=None)
    sizes: Tensor | None = field(default=None)
