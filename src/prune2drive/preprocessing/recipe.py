"""What a stock image processor does to a picture, read from its own settings.

Only what is reproduced to the level is accepted: a setting this package does not know the effect of is
an error that names it, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import PruneError
from .resize import MODES

KINDS = {
    "CLIPImageProcessor": "plain",
    "SiglipImageProcessor": "plain",
    "LlavaImageProcessor": "plain",
    "LlavaOnevisionImageProcessor": "onevision",
    "GotOcr2ImageProcessor": "tiles",
    "Qwen2VLImageProcessor": "patches",
}
"""Image processor class, without the name of its backend -> how it lays pixels out."""

_REMEDY = "Use the stock processor for this model."


@dataclass(frozen=True)
class Recipe:
    """The steps, in order: pad to a square, resize or tile, crop, rescale, normalise, lay out.

    ``kind``: a value of `KINDS`. ``name``: the image processor's class.
    ``pad``: levels of the bars that make a picture square first; None for no padding.
    ``size``: (height, width) to resize to; None for another rule or none.
    ``shortest``: length of the shorter edge after the resize; None for another rule or none.
    ``pixels``: fewest and most pixels of a picture after the resize (``patches`` only); None for no resize.
    ``crop``: (height, width) cut from the centre; None for no crop.
    ``scale``: factor of the levels; ``mean``, ``std``: per channel, after it. None for no such step.
    ``tiles``: fewest and most tiles of a picture (``tiles`` only); None for one.
    ``patch``: (patch, merge, temporal) sizes (``patches`` only).
    """

    kind: str
    name: str
    mode: str
    pad: tuple[int, ...] | None = None
    size: tuple[int, int] | None = None
    shortest: int | None = None
    pixels: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    tiles: tuple[int, int] | None = None
    patch: tuple[int, int, int] = (1, 1, 1)


def read_recipe(processor: Any) -> Recipe:
    """Read a processor's settings.

    Args:
        processor: a Hugging Face processor, or its image processor alone, of either backend. A processor's
            own ``images_kwargs`` come before its image processor's settings, as in its calls.

    Raises:
        PruneError: an image processor, or a setting of one, that is not reproduced here.
    """
    images = getattr(processor, "image_processor", None) or processor
    name = type(images).__name__
    kind = KINDS.get(name.removesuffix("Pil").removesuffix("Fast"))
    if kind is None:
        raise PruneError(f"{name} is not reproduced on the device; these are: {', '.join(KINDS)}. {_REMEDY}")
    s = _Settings(name, images, _overrides(processor) if images is not processor else {})
    mode = MODES.get(_filter(s.get("resample"))) if s.get("do_resize") else "bicubic"
    if mode is None:
        raise s.refused("resample", "only bilinear and bicubic are reproduced")
    if not (s.get("do_rescale") or s.get("do_normalize")):
        raise s.refused(
            "do_normalize", "without rescaling its pixels stay integers, which no model here takes"
        )
    common: dict[str, Any] = {
        "kind": kind,
        "name": name,
        "mode": mode,
        "scale": float(s.get("rescale_factor")) if s.get("do_rescale") else None,
    }
    if s.get("do_normalize"):
        common.update(mean=s.channels("image_mean"), std=s.channels("image_std"))
    if kind == "patches":
        return _patches(s, common)
    if kind != "tiles" and s.get("do_center_crop"):
        common["crop"] = s.square("crop_size")
    if kind == "tiles":
        if s.get("crop_to_patches") and s.get("max_patches") > 1:
            common["tiles"] = (int(s.get("min_patches")), int(s.get("max_patches")))
        if s.get("do_resize") or "tiles" in common:
            common["size"] = s.square("size")
    elif s.get("do_resize"):
        common.update(s.edges("size"))
    if kind == "onevision":
        # Its own class pads with the mean it was made with, whatever a call says.
        common["pad"] = tuple(int(x * 255) for x in images.image_mean)
    elif s.get("do_pad") and kind == "plain":
        if not name.startswith("Llava"):
            raise s.refused("do_pad", "padding to the largest picture is not reproduced")
        common["pad"] = tuple(int(x * 255) for x in s.channels("image_mean"))
    return Recipe(**common)


def _patches(s: _Settings, common: dict[str, Any]) -> Recipe:
    size = s.get("size")
    if s.get("do_resize"):
        fewest, most = _value(size, "shortest_edge"), _value(size, "longest_edge")
        if not fewest or not most:
            raise s.refused("size", "shortest_edge and longest_edge, in pixels of area, are needed")
        common["pixels"] = (int(fewest), int(most))
    patch = tuple(int(s.get(key)) for key in ("patch_size", "merge_size", "temporal_patch_size"))
    return Recipe(**common, patch=(patch[0], patch[1], patch[2]))


class _Settings:
    """An image processor's attributes, under a processor's overrides."""

    def __init__(self, name: str, images: Any, overrides: Mapping[str, Any]) -> None:
        self.name, self._images, self._overrides = name, images, overrides

    def get(self, key: str) -> Any:
        if key in self._overrides:
            return self._overrides[key]
        return getattr(self._images, key, None)

    def refused(self, key: str, why: str) -> PruneError:
        return PruneError(f"{self.name} with {key}={self.get(key)!r}: {why}. {_REMEDY}")

    def channels(self, key: str) -> tuple[float, ...]:
        value = self.get(key)
        if isinstance(value, int | float):
            value = (value,) * 3
        if value is None or len(value) != 3:
            raise self.refused(key, "three numbers are needed, one per channel")
        return tuple(float(x) for x in value)

    def square(self, key: str) -> tuple[int, int]:
        value = self.get(key)
        height, width = _value(value, "height"), _value(value, "width")
        if not height or not width:
            raise self.refused(key, "height and width are needed")
        return int(height), int(width)

    def edges(self, key: str) -> dict[str, Any]:
        value = self.get(key)
        if _value(value, "shortest_edge"):
            if _value(value, "longest_edge"):
                raise self.refused(key, "shortest_edge beside longest_edge is not reproduced")
            return {"shortest": int(_value(value, "shortest_edge"))}
        return {"size": self.square(key)}


def _value(size: Any, key: str) -> Any:
    """One number of a size, which is a mapping or has attributes, by the version of transformers."""
    return size.get(key) if isinstance(size, Mapping) else getattr(size, key, None)


def _filter(resample: Any) -> int:
    """PIL's number of a filter. Not set means bilinear, as in the stock resize."""
    if resample is None:
        return 2
    if isinstance(resample, int):
        return int(resample)
    names = {mode: number for number, mode in MODES.items()}
    return names.get(str(getattr(resample, "value", resample)), -1)


def _overrides(processor: Any) -> dict[str, Any]:
    """What a processor passes to its image processor in every call (InternVL's turns tiling on)."""
    kinds = getattr(type(processor), "valid_processor_kwargs", None)
    older = getattr(kinds, "_defaults", None) or {}
    return {**(getattr(processor, "images_kwargs", None) or {}), **older.get("images_kwargs", {})}
