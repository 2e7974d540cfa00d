"""Pictures that show what was kept: kept patches clear, dropped ones dark, a thin line around each."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import PruneError
from ..tokens import WHOLE, Box

DIM = 0.5
"""Brightness of a dropped patch, as a share of the original."""
COARSE = 0.75
"""Brightness where only a coarse token (of a thumbnail beside tiles) was kept."""
UNSEEN = (0.16, 0.28)
"""Brightness of the two stripes where the model sees nothing of the picture."""
STRIPE = 8
"""Width of a stripe in pixels, measured along a row."""
OUTLINE = (94, 234, 212)
OUTLINE_COARSE = (251, 191, 36)


def overlay(
    picture: Image.Image,
    boxes: Tensor,
    kept: Sequence[int] | Tensor,
    width: int = 640,
    region: Box = WHOLE,
) -> Image.Image:
    """Draw which tokens of a camera were kept onto its picture.

    Args:
        picture: the camera's picture; never enlarged.
        boxes: float ``(n, 4)``: x0, y0, x1, y1 of each token as shares of the region's width and height.
        kept: indices into ``boxes``, any order, without -1 padding.
        width: largest width of the result in pixels.
        region: the part of the picture that the tokens cover, see `processed_region`.

    Returns:
        RGB picture. Inside a kept box pixels are as they were (but for the outline), outside every
        kept box they have `DIM` times their brightness. Where tokens of two sizes cover the picture
        (tiles and a thumbnail), the large ones clear it only to `COARSE`. Outside the region the picture is
        dark and striped (`UNSEEN`).

    Raises:
        PruneError: ``boxes`` of a wrong shape, or an index out of range.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise PruneError(f"boxes must have shape (n, 4), got {tuple(boxes.shape)}.")
    chosen = torch.as_tensor(kept, dtype=torch.int64).reshape(-1).cpu()
    if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(boxes):
        raise PruneError(
            f"kept indices reach from {int(chosen.min())} to {int(chosen.max())}, of {len(boxes)} tokens."
        )
    picture = picture.convert("RGB")
    if picture.width > width:
        height = max(1, round(picture.height * width / picture.width))
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    pixels = np.asarray(picture)
    w, h = picture.size
    rects = _pixels(in_picture(boxes, region), w, h)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    coarse = (area > 2.5 * area.min()).cpu() if len(boxes) else torch.zeros(0, dtype=torch.bool)
    stripes = (np.arange(h)[:, None] + np.arange(w)) // STRIPE % 2
    light = np.array(UNSEEN, dtype=np.float32)[stripes]
    x0, y0, x1, y1 = _pixels(torch.tensor([region]), w, h)[0].tolist()
    light[y0:y1, x0:x1] = DIM
    lines: list[tuple[tuple[int, int, int, int], tuple[int, int, int]]] = []
    # Coarse tokens first, so that a fine one above them is fully clear.
    for i in sorted(chosen.tolist(), key=lambda i: (not coarse[i], i)):
        x0, y0, x1, y1 = rects[i].tolist()
        light[y0:y1, x0:x1] = COARSE if coarse[i] else 1.0
        lines.append(((x0, y0, x1, y1), OUTLINE_COARSE if coarse[i] else OUTLINE))
    out = np.rint(pixels * light[..., None]).astype(np.uint8)
    for (x0, y0, x1, y1), colour in lines:
        _outline(out, x0, y0, x1, y1, colour)
    return Image.fromarray(out)


def in_picture(boxes: Tensor, region: Box) -> Tensor:
    """Boxes in shares of a region -> in shares of the picture it lies in; float64, may reach beyond it."""
    x0, y0, x1, y1 = region
    origin = torch.tensor([x0, y0, x0, y0], dtype=torch.float64)
    extent = torch.tensor([x1 - x0, y1 - y0, x1 - x0, y1 - y0], dtype=torch.float64)
    return origin + boxes.cpu().double() * extent


def overlay_jpeg(
    picture: Image.Image,
    boxes: Tensor,
    kept: Sequence[int] | Tensor,
    width: int = 640,
    quality: int = 82,
    region: Box = WHOLE,
) -> bytes:
    """`overlay`, encoded as JPEG (about 60 kB at 640 pixels wide)."""
    buffer = io.BytesIO()
    overlay(picture, boxes, kept, width, region).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def _pixels(boxes: Tensor, width: int, height: int) -> Tensor:
    """Boxes in shares of a picture -> its pixels, clipped to it: int64 ``(n, 4)``."""
    edges = boxes.double().clamp(0, 1) * torch.tensor([width, height] * 2, dtype=torch.float64)
    return edges.round().long()


def _outline(pixels: np.ndarray, x0: int, y0: int, x1: int, y1: int, colour: tuple[int, int, int]) -> None:
    """One pixel along the inside of a box, half transparent; nothing for boxes too small to hold it."""
    if x1 - x0 < 4 or y1 - y0 < 4:
        return
    tint = np.array(colour, dtype=np.float32)
    for rows, cols in (
        (slice(y0, y0 + 1), slice(x0, x1)),
        (slice(y1 - 1, y1), slice(x0, x1)),
        (slice(y0 + 1, y1 - 1), slice(x0, x0 + 1)),
        (slice(y0 + 1, y1 - 1), slice(x1 - 1, x1)),
    ):
        pixels[rows, cols] = (0.35 * pixels[rows, cols] + 0.65 * tint).astype(np.uint8)
