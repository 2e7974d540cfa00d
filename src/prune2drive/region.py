"""Which part of a picture an image processor shows to the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .tokens import WHOLE, Box


def processed_region(image_processor: Any, size: tuple[int, int]) -> Box:
    """The rectangle that a picture's tokens cover, as shares of the picture.

    The whole picture, unless the processor cuts out the middle after resizing the shorter edge (CLIP for
    LLaVA-1.5: of 1600x900 the middle 900 pixels), or pads to a square before: then the rectangle reaches
    beyond 0 and 1. Processors that cut a picture into tiles show all of it (where LLaVA-OneVision pads
    several pictures, its family says so in the tokens' boxes).

    Args:
        image_processor: a Hugging Face image processor.
        size: width, height of the picture.
    """
    width, height = size
    tiles = getattr(image_processor, "image_grid_pinpoints", None) is not None
    # The rectangle in pixels of the picture, first what is resized, then what is cut out of it.
    x, y, wide, high = 0.0, 0.0, float(width), float(height)
    if hasattr(image_processor, "pad_to_square") and not tiles and getattr(image_processor, "do_pad", False):
        wide = high = float(max(width, height))
        x, y = -((wide - width) // 2), -((high - height) // 2)
    resized = _resized(image_processor, (round(wide), round(high)))
    crop = _edges(getattr(image_processor, "crop_size", None), "width", "height")
    if getattr(image_processor, "do_center_crop", False) and not tiles and crop and resized:
        # Floor division is how processors place the cut, and the padding where the picture is smaller.
        x += (resized[0] - crop[0]) // 2 * wide / resized[0]
        y += (resized[1] - crop[1]) // 2 * high / resized[1]
        wide, high = crop[0] * wide / resized[0], crop[1] * high / resized[1]
    if (x, y, wide, high) == (0.0, 0.0, width, height):
        return WHOLE
    return x / width, y / height, (x + wide) / width, (y + high) / height


def seen_share(region: Box) -> float:
    """The share of the picture's area inside its processed region."""
    x0, y0, x1, y1 = (min(max(edge, 0.0), 1.0) for edge in region)
    return (x1 - x0) * (y1 - y0)


def _resized(image_processor: Any, size: tuple[int, int]) -> tuple[int, int] | None:
    """Width and height before the cut; None where the rule is not known."""
    if not getattr(image_processor, "do_resize", True):
        return size
    given = getattr(image_processor, "size", None)
    if fixed := _edges(given, "width", "height"):
        return fixed
    if short := _edges(given, "shortest_edge", "shortest_edge"):
        width, height = size
        if width <= height:
            return short[0], int(short[0] * height / width)
        return int(short[0] * width / height), short[0]
    return None


def _edges(size: Any, first: str, second: str) -> tuple[int, int] | None:
    """Two entries of a processor's size, a mapping or an object; None unless both are there."""
    read = size.get if isinstance(size, Mapping) else lambda name: getattr(size, name, None)
    a, b = read(first), read(second)
    return (int(a), int(b)) if a and b else None
