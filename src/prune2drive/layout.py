"""Layouts: which token of a prompt belongs to which camera.

The map is geometric and per token, never "image i is camera i" or "tile t is camera c": a stitched
picture is cut into tiles wherever the model's tiling rule says, and one tile may hold two cameras.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .errors import PruneError, did_you_mean
from .rig import Rig, check_size, duplicates
from .tokens import Box, ImageTokens, View

THUMBNAIL = "THUMBNAIL"
"""Name of the pseudo-view that holds the thumbnail's tokens in ``Mosaic(thumbnail="own")``."""

Size = tuple[int, int]
Order = Literal["camera", "frame"]
ThumbnailRule = Literal["assign", "own"]

# Shares of a picture below this are rounding of float32 boxes, not distance: it is a hundredth of a
# pixel in a picture 10,000 wide.
_TIE = 1e-6


class Layout(ABC):
    """Maps the images of a sample to views.

    Views come from a cache and are shared between calls: treat their tensors as read-only.
    """

    @abstractmethod
    def assign(self, images: Sequence[ImageTokens], rig: Rig | None, sample: int) -> list[View]:
        """Return the views of one sample.

        Every token that a segment covers is in exactly one view; structure tokens are in none. A
        sample without images has no views.

        Args:
            images: the sample's images, in prompt order.
            rig: the cameras of the vehicle, or None.
            sample: the sample's place in the batch: picks its camera names, and names it in errors.
        """

    @abstractmethod
    def image_sizes(self, count: int, rig: Rig | None, sample: int) -> list[Size | None]:
        """Return width, height in pixels of each of ``count`` images as the layout expects them.

        None where it does not know. Families use it to guess how a picture was tiled.
        """


@dataclass(frozen=True)
class PerCamera(Layout):
    """One picture per camera, in any order, with any number of tiles; several frames if asked.

    ``cameras``: the camera of each image of the prompt, one name per camera; None means the rig's own
    order. A list of lists gives the names per sample, for batches that show different cameras.
    ``frames``: pictures per camera.
    ``order``: "camera" for c0f0 c0f1 ... c1f0 c1f1 ..., "frame" for f0c0 f0c1 ... f1c0 f1c1 ...

    Without a rig and without names every image is a view of its own: IMAGE_0, IMAGE_1, ...
    Names the rig does not know are kept: whether they may be pruned is the allocator's question.

    Raises:
        PruneError: a camera named twice, impossible ``frames`` or ``order``; in `assign` and
            `image_sizes`, a number of images that does not fit.
    """

    cameras: Sequence[str] | Sequence[Sequence[str]] | None = None
    frames: int = 1
    order: Order = "camera"

    def __post_init__(self) -> None:
        if isinstance(self.frames, bool) or not isinstance(self.frames, int) or self.frames < 1:
            raise PruneError(f"frames {self.frames!r} is not a whole number of at least 1")
        if self.order not in get_args(Order):
            raise PruneError(f"unknown order {self.order!r}.{did_you_mean(str(self.order), get_args(Order))}")
        # Tuples, so that a layout is hashable and nobody can change the names behind its back.
        object.__setattr__(self, "cameras", _freeze_names(self.cameras))

    def assign(self, images: Sequence[ImageTokens], rig: Rig | None, sample: int) -> list[View]:
        names = self._names(len(images), rig, sample)
        for at, (image, name) in enumerate(zip(images, self._image_names(names), strict=True)):
            if not image.segments:
                raise PruneError(f"sample {sample}: image {at} ({name}) has no visual tokens to prune")
        return list(_camera_views(tuple(images), names, self.frames, self.order))

    def image_sizes(self, count: int, rig: Rig | None, sample: int) -> list[Size | None]:
        names = self._image_names(self._names(count, rig, sample))
        return [rig.camera(name).size if rig is not None and name in rig else None for name in names]

    def _image_names(self, names: Sequence[str]) -> list[str]:
        if self.order == "frame":
            return list(names) * self.frames
        return [name for name in names for _ in range(self.frames)]

    def _names(self, count: int, rig: Rig | None, sample: int) -> tuple[str, ...]:
        """Return the sample's camera names, checked against its number of images."""
        if count == 0:
            return ()
        if self.cameras is None and rig is None:
            if self.frames != 1:
                raise PruneError(
                    f"frames={self.frames} without names does not say which images share a camera; "
                    "give a rig or cameras=[...]"
                )
            return tuple(f"IMAGE_{at}" for at in range(count))
        if self.cameras is None:
            assert rig is not None
            names, whose, remedy = (
                rig.names,
                f"rig {rig.name!r} has",
                "name the cameras you pass: cameras=[...]",
            )
        else:
            names, whose = self._sample_names(sample), "cameras= names"
            remedy = f"named are {', '.join(names) or 'none'}; name each once, and set frames= for more"
        if count != len(names) * self.frames:
            raise PruneError(
                f"sample {sample}: {_many(count, 'image')}, {whose} {_many(len(names), 'camera')} x "
                f"{_many(self.frames, 'frame')}; {remedy}"
            )
        return names

    def _sample_names(self, sample: int) -> tuple[str, ...]:
        cameras: Any = self.cameras
        if not cameras or isinstance(cameras[0], str):
            return cameras
        if sample >= len(cameras):
            raise PruneError(
                f"sample {sample}: cameras= lists camera names for {_many(len(cameras), 'sample')} only"
            )
        return cameras[sample]


@dataclass(frozen=True)
class Mosaic(Layout):
    """One stitched picture of several cameras, however the model tiles it.

    A token belongs to the camera whose cell contains the centre of the token's rectangle. A centre
    exactly between two cells goes to the upper one, then to the left one; a centre in no cell (a
    margin) to the nearest. Each token's rectangle is then expressed in its camera's own picture and
    clipped to it, so it may be empty for tokens of a margin.

    ``cells``: where each camera lies, as shares of the mosaic; must not overlap.
    ``size``: width, height of the mosaic in pixels, or None if unknown.
    ``thumbnail``: "assign" shares the tokens of a thumbnail among the cameras like all others; "own"
    makes them a pseudo-view THUMBNAIL of their own, after the cameras.

    Several images are frames of the mosaic, in time order as given.

    Raises:
        PruneError: impossible cells; in `assign`, a camera whose cell holds no token centre.
    """

    cells: Mapping[str, Box] = field(hash=False)
    size: Size | None = None
    thumbnail: ThumbnailRule = "assign"

    def __post_init__(self) -> None:
        rules = get_args(ThumbnailRule)
        if self.thumbnail not in rules:
            raise PruneError(
                f"unknown thumbnail {self.thumbnail!r}.{did_you_mean(str(self.thumbnail), rules)}"
            )
        if not isinstance(self.cells, Mapping) or not self.cells:
            raise PruneError(f"a mosaic needs cells, {{camera: (x0, y0, x1, y1)}}; got {self.cells!r}")
        object.__setattr__(self, "cells", {name: _check_cell(name, box) for name, box in self.cells.items()})
        if self.size is not None:
            object.__setattr__(self, "size", check_size(self.size, "mosaic"))
        if self.thumbnail == "own" and THUMBNAIL in self.cells:
            raise PruneError(f"a cell named {THUMBNAIL} collides with thumbnail='own'; rename the camera")
        names = list(self.cells)
        for at, a in enumerate(names):
            for b in names[at + 1 :]:
                if _overlap(self.cells[a], self.cells[b]):
                    raise PruneError(f"the cells of {a} and {b} overlap: {self.cells[a]} and {self.cells[b]}")

    @classmethod
    def grid(
        cls, rows: Sequence[Sequence[str]], size: Size | None = None, thumbnail: ThumbnailRule = "assign"
    ) -> Mosaic:
        """Build a mosaic of equally high rows, each cut into equally wide cameras, read left to right."""
        if isinstance(rows, str) or any(isinstance(row, str) for row in rows):
            raise PruneError(f"a mosaic's rows are lists of camera names, one list per row; got {rows!r}")
        if twice := duplicates([name for row in rows for name in row]):
            raise PruneError(f"the mosaic names {', '.join(twice)} twice; every cell needs its own camera")
        high = len(rows)
        cells = {
            name: (x / len(row), y / high, (x + 1) / len(row), (y + 1) / high)
            for y, row in enumerate(rows)
            for x, name in enumerate(row)
        }
        return cls(cells, size, thumbnail)

    @classmethod
    def internvl_drivelm(cls, thumbnail: ThumbnailRule = "assign") -> Mosaic:
        """InternVL's DriveLM picture, 2688x896: front cameras above, back cameras below, left to right.

        Cut 6x2 by InternVL, so that a camera is exactly two tiles side by side, plus a thumbnail.
        """
        return cls.grid(_NUSCENES_ROWS, (2688, 896), thumbnail)

    @classmethod
    def drivelmm_o1(cls, thumbnail: ThumbnailRule = "assign") -> Mosaic:
        """DriveLMM-o1's stitched picture, taken as a raw 4800x1800 mosaic.

        The public description does not give the arrangement; this assumes InternVL's (front cameras
        above, back cameras below). Look at one picture of your data and use `grid` if it differs.
        """
        return cls.grid(_NUSCENES_ROWS, (4800, 1800), thumbnail)

    def assign(self, images: Sequence[ImageTokens], rig: Rig | None, sample: int) -> list[View]:
        if not images:
            return []
        views = _mosaic_views(tuple(images), tuple(self.cells.items()), self.size, self.thumbnail == "own")
        for view in views:
            if not len(view):
                raise PruneError(
                    f"sample {sample}: no token centre falls into the cell of {view.name}, "
                    f"{self.cells[view.name]}; cut the mosaic into more tiles, or drop the cell"
                )
        return list(views)

    def image_sizes(self, count: int, rig: Rig | None, sample: int) -> list[Size | None]:
        return [self.size] * count


LAYOUTS = ("per-camera", "internvl-drivelm", "drivelmm-o1")
"""The names `load_layout` knows."""


def load_layout(
    layout: str | Layout | None = None, cameras: Sequence[str] | Sequence[Sequence[str]] | None = None
) -> Layout:
    """Return the layout that ``layout`` names.

    Args:
        layout: None or "per-camera", "internvl-drivelm", "drivelmm-o1", or a `Layout`.
        cameras: the camera of each image, for `PerCamera` only: a mosaic names its own.

    Raises:
        PruneError: unknown name, or ``cameras`` given twice or to a mosaic.
    """
    if layout is None or layout == "per-camera":
        return PerCamera(cameras)
    if layout == "internvl-drivelm":
        found: Layout = Mosaic.internvl_drivelm()
    elif layout == "drivelmm-o1":
        found = Mosaic.drivelmm_o1()
    elif isinstance(layout, Layout):
        found = layout
    elif isinstance(layout, str):
        raise PruneError(f"unknown layout {layout!r}.{did_you_mean(layout, LAYOUTS)} Or pass a Layout.")
    else:
        raise PruneError(f"layout {layout!r} is not a name or a Layout. Known: {', '.join(LAYOUTS)}.")
    if cameras is None:
        return found
    if isinstance(found, PerCamera) and found.cameras is None:
        return replace(found, cameras=cameras)
    raise PruneError(
        f"cameras={list(cameras)!r} given, but the layout names its cameras itself; drop one of them"
    )


_NUSCENES_ROWS = (
    ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"),
    ("CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"),
)


@lru_cache(maxsize=256)
def _camera_views(
    images: tuple[ImageTokens, ...], names: tuple[str, ...], frames: int, order: Order
) -> tuple[View, ...]:
    views = []
    for camera, name in enumerate(names):
        if order == "camera":
            places = range(camera * frames, (camera + 1) * frames)
        else:
            places = range(camera, len(images), len(names))
        index, boxes, part, frame, _ = _tokens([images[place] for place in places])
        views.append(_view(name, index, boxes, part, frame))
    return tuple(views)


@lru_cache(maxsize=256)
def _mosaic_views(
    images: tuple[ImageTokens, ...], cells: tuple[tuple[str, Box], ...], size: Size | None, own: bool
) -> tuple[View, ...]:
    index, boxes, part, frame, thumbnail = _tokens(images)
    owner = _owners(boxes, [box for _, box in cells], size)
    if own:
        owner[thumbnail] = -1
    views = []
    for cell, (name, box) in enumerate(cells):
        mine = owner == cell
        views.append(_view(name, index[mine], _within(boxes[mine], box), part[mine], frame[mine]))
    if own and bool(thumbnail.any()):
        views.append(_view(THUMBNAIL, index[thumbnail], boxes[thumbnail], part[thumbnail], frame[thumbnail]))
    return tuple(views)


def _tokens(images: Sequence[ImageTokens]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """List the tokens of some images: position in the sample, box, segment, image, thumbnail or not."""
    segments = [(at, image.start, segment) for at, image in enumerate(images) for segment in image.segments]
    if not segments:
        none = torch.zeros(0, dtype=torch.int64)
        return none, torch.zeros(0, 4), none, none, none.bool()
    index = torch.cat([start + segment.offsets() for _, start, segment in segments])
    boxes = torch.cat([segment.boxes() for _, _, segment in segments])
    lengths = torch.tensor([segment.length for _, _, segment in segments])
    part = torch.arange(len(segments)).repeat_interleave(lengths)
    frame = torch.tensor([at for at, _, _ in segments]).repeat_interleave(lengths)
    thumbnail = torch.tensor([segment.thumbnail for _, _, segment in segments]).repeat_interleave(lengths)
    return index, boxes, part, frame, thumbnail


def _view(name: str, index: Tensor, boxes: Tensor, part: Tensor, frame: Tensor) -> View:
    """Put a view's tokens into sequence order and number its parts from 0."""
    index, order = index.sort()
    if part.numel():
        part = part.unique(return_inverse=True)[1]
    return View(name, index, boxes[order], part[order], frame[order])


def _owners(boxes: Tensor, cells: Sequence[Box], size: Size | None) -> Tensor:
    """Return the cell of each token box: int64 ``(n,)``. Nearest in pixels, ties upper, then left."""
    order = sorted(range(len(cells)), key=lambda cell: (cells[cell][1], cells[cell][0]))
    x0, y0, x1, y1 = torch.tensor([cells[cell] for cell in order], dtype=torch.float64).T[:, :, None]
    centre_x, centre_y = boxes.double()[:, 0::2].mean(1), boxes.double()[:, 1::2].mean(1)
    across = torch.maximum(x0 - centre_x, centre_x - x1)
    down = torch.maximum(y0 - centre_y, centre_y - y1)
    wide, high = size or (1, 1)
    across = torch.where(across < _TIE, 0.0, across) * wide
    down = torch.where(down < _TIE, 0.0, down) * high
    # argmin does not promise the first of equals, a stable sort does.
    nearest = (across.square() + down.square()).sort(dim=0, stable=True).indices[0]
    return torch.tensor(order)[nearest]


def _within(boxes: Tensor, cell: Box) -> Tensor:
    """Express boxes of the mosaic in the picture of one cell, clipped to it."""
    x0, y0, x1, y1 = cell
    origin = torch.tensor([x0, y0, x0, y0], dtype=torch.float64)
    extent = torch.tensor([x1 - x0, y1 - y0, x1 - x0, y1 - y0], dtype=torch.float64)
    return ((boxes.double() - origin) / extent).clamp(0.0, 1.0).float()


def _freeze_names(cameras: Any) -> tuple[Any, ...] | None:
    if cameras is None:
        return None
    if isinstance(cameras, str) or not isinstance(cameras, Sequence):
        raise PruneError(f"cameras {cameras!r} is not a list of names; write cameras=[{cameras!r}]")
    if cameras and all(not isinstance(names, str) and isinstance(names, Sequence) for names in cameras):
        return tuple(_freeze_names(names) for names in cameras)
    for name in cameras:
        if not isinstance(name, str) or not name:
            raise PruneError(f"cameras holds {name!r}, which is not a camera name (or mixes names and lists)")
    if twice := duplicates(cameras):
        raise PruneError(
            f"cameras names {', '.join(twice)} twice; name each camera once, and for several pictures of a "
            "camera set frames= (PerCamera(cameras, frames=2))"
        )
    return tuple(cameras)


def _check_cell(name: str, box: Any) -> Box:
    good = isinstance(box, Sequence) and not isinstance(box, str) and len(box) == 4
    low, high = 0.0, 1.0
    if not good or not (low <= box[0] < box[2] <= high + _TIE and low <= box[1] < box[3] <= high + _TIE):
        raise PruneError(
            f"the cell of {name}, {box!r}, is not (x0, y0, x1, y1) with 0 <= x0 < x1 <= 1 and "
            "0 <= y0 < y1 <= 1: shares of the mosaic, not pixels"
        )
    return float(box[0]), float(box[1]), float(box[2]), float(box[3])


def _overlap(a: Box, b: Box) -> bool:
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    return wide > _TIE and high > _TIE


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
