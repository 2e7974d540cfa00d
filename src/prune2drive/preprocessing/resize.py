"""Resizing batches of 8-bit pictures on any device, bit for bit as PIL does.

PIL (Pillow, ``src/libImaging/Resample.c``) filters along one axis and then the other, in whole numbers:
weights in units of 2**-22, levels rounded half up and clamped after each pass. One pass in float over both
axes differs by a level in every seventh pixel, and by many levels where the first pass would have clamped.
Which axis comes first depends on the sizes and on Pillow's version; the installed one is asked.

Here a pass is a product of matrices whose terms are whole numbers below 2**24, so float32 makes no error in
it. A weight is split in two halves of at most 12 bits, which TF32 holds as well. Blocks of output columns
see only the stretch of input under their filters: the product costs little more than the filters do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MODES = {2: "bilinear", 3: "bicubic"}
"""PIL's number of a filter -> its name here."""

BITS = 22
"""A weight is a whole number of 2**-22."""

BLOCK = 32
"""Neighbouring outputs that share one stretch of input."""

HALF = 1 << 11
"""Largest whole number up to which TF32 (11 bits) holds each."""


class Pass(NamedTuple):
    """One axis from one length to another.

    ``seen``: ``(blocks * window,)`` int64, the input each block sees.
    ``weights``: ``(blocks, window, 2 * BLOCK)`` float32, high halves before low halves; 0 past ``length``.
    ``shift``: a weight is high * 2**shift + low, in units of 2**-22.
    ``length``: the new one.
    """

    seen: Tensor
    weights: Tensor
    shift: int
    length: int


class Resize:
    """Resizes pictures on one device; what depends on sizes only is made once and kept there.

    Pictures are ``(N, C, H, W)`` float32 on the device, whole levels 0..255, and so is what comes out.
    ``mode``: ``"bicubic"`` or ``"bilinear"``, both widened when shrinking (antialiasing).
    """

    def __init__(self, mode: str, device: torch.device) -> None:
        self.mode = mode
        self.device = device
        self._passes: dict[tuple[int, int], Pass] = {}
        self._rows_first: dict[tuple[int, int, int, int], bool] = {}

    def __call__(self, pictures: Tensor, height: int, width: int) -> Tensor:
        """As ``PIL.Image.resize((width, height), ...)`` on 8-bit RGB; no copy if the size is that."""
        if self.rows_first(pictures.shape[2], pictures.shape[3], height, width):
            return self.columns(self.rows(pictures, width), height)
        return self.rows(self.columns(pictures, height), width)

    def rows(self, pictures: Tensor, width: int) -> Tensor:
        """The pass along rows alone."""
        if pictures.shape[3] == width:
            return pictures
        to = self._pass(pictures.shape[3], width)
        n, channels, height, _ = pictures.shape
        blocks, window, _ = to.weights.shape
        with _full_precision(self.device):
            seen = pictures.index_select(3, to.seen).view(-1, blocks, window).transpose(0, 1)
            high, low = torch.bmm(seen, to.weights).split(BLOCK, 2)
        out = _level(high, low, to.shift).transpose(0, 1).reshape(n, channels, height, -1)
        return out[..., :width]

    def columns(self, pictures: Tensor, height: int) -> Tensor:
        """The pass along columns alone."""
        if pictures.shape[2] == height:
            return pictures
        to = self._pass(pictures.shape[2], height)
        n, channels, _, width = pictures.shape
        blocks, window, _ = to.weights.shape
        with _full_precision(self.device):
            seen = pictures.index_select(2, to.seen).view(n, channels, blocks, window, width)
            high, low = torch.matmul(to.weights.transpose(1, 2), seen).split(BLOCK, 3)
        return _level(high, low, to.shift).reshape(n, channels, -1, width)[:, :, :height]

    def rows_first(self, old_height: int, old_width: int, height: int, width: int) -> bool:
        """Whether the installed Pillow passes along rows first, found on noise once per sizes."""
        if old_height == height or old_width == width:
            return True
        key = (old_height, old_width, height, width)
        if key not in self._rows_first:
            noise = np.random.default_rng(0).integers(0, 256, (old_height, old_width, 3), dtype=np.uint8)
            number = next(number for number, mode in MODES.items() if mode == self.mode)
            made = Image.fromarray(noise).resize((width, height), Image.Resampling(number))
            want = torch.from_numpy(np.asarray(made)[..., 0].astype(np.float32))
            here = Resize(self.mode, torch.device("cpu"))
            first = levels(torch.from_numpy(noise)[None])[:, :1]
            other = here.rows(here.columns(first, height), width)[0, 0]
            self._rows_first[key] = not torch.equal(other, want)
        return self._rows_first[key]

    def _pass(self, old: int, new: int) -> Pass:
        if (old, new) not in self._passes:
            made = make_pass(old, new, self.mode)
            self._passes[old, new] = made._replace(
                seen=made.seen.to(self.device), weights=made.weights.to(self.device)
            )
        return self._passes[old, new]


def levels(frames: Tensor) -> Tensor:
    """``(N, H, W, 3)`` uint8 -> ``(N, 3, H, W)`` float32, contiguous."""
    return frames.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)


def make_pass(old: int, new: int, mode: str) -> Pass:
    """The filters of one axis, on the CPU."""
    first, whole = _filters(old, new, mode)
    # By the largest weight, so that both halves are small; and 7 at least: the high halves of the many small
    # weights of a strong reduction come to 2**(22 - shift), which 255 times over must stay below 2**24. The
    # low halves stay below it up to a reduction 250-fold.
    shift = max(7, int(np.abs(whole).max()).bit_length() - HALF.bit_length() + 1)
    high = np.clip((whole + (1 << shift >> 1)) >> shift, -HALF, HALF)
    low = whole - (high << shift)
    blocks = -(-new // BLOCK)
    taps = (whole != 0) * (np.arange(whole.shape[1]) + 1)
    ends = np.minimum(first + np.maximum(taps.max(1), 1), old)
    starts = first[::BLOCK]
    window = max(int(ends[b * BLOCK : (b + 1) * BLOCK].max() - starts[b]) for b in range(blocks))
    starts = np.minimum(starts, old - window)
    weights = np.zeros((blocks, window, 2, BLOCK), dtype=np.float32)
    out, tap = np.nonzero(whole)
    block, at = out // BLOCK, first[out] + tap
    weights[block, at - starts[block], 0, out % BLOCK] = high[out, tap]
    weights[block, at - starts[block], 1, out % BLOCK] = low[out, tap]
    seen = starts[:, None] + np.arange(window)
    return Pass(
        torch.from_numpy(seen.reshape(-1)), torch.from_numpy(weights.reshape(blocks, window, -1)), shift, new
    )


def _filters(old: int, new: int, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """First input place ``(new,)`` and weights ``(new, taps)`` int64 in 2**-22 of each output."""
    scale = old / new
    stretch = max(scale, 1.0)
    reach = (2.0 if mode == "bicubic" else 1.0) * stretch
    centre = (np.arange(new) + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + reach + 0.5).astype(np.int64), old)
    places = first[:, None] + np.arange(int((last - first).max()))
    x = np.abs((places - centre[:, None] + 0.5) * (1.0 / stretch))
    if mode == "bicubic":
        a = -0.5
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = (((x - 5) * x + 8) * x - 4) * a
        weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    else:
        weights = np.where(x < 1, 1 - x, 0.0)
    weights = np.where(places < last[:, None], weights, 0.0)
    # Added up one by one, in PIL's order: another order can end in another last digit.
    weights = weights / np.cumsum(weights, 1)[:, -1:] * (1 << BITS)
    return first, np.trunc(weights + np.where(weights < 0, -0.5, 0.5)).astype(np.int64)


def _full_precision(device: torch.device) -> torch.autocast:
    """Autocast would make the products of 8 bits."""
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)


def _level(high: Tensor, low: Tensor, shift: int) -> Tensor:
    total = high.to(torch.int32).bitwise_left_shift_(shift).add_(low.to(torch.int32))
    return total.add_(1 << (BITS - 1)).bitwise_right_shift_(BITS).clamp_(0, 255).to(torch.float32)
