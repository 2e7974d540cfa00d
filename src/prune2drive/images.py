"""Reading one surround-view frame from disk: a folder or a JSON file becomes one picture per camera.

A wrong picture under a right name is worse than an error, so every doubt is one: two files for a
camera, a name that only looks like a camera's, a file outside the folder, a truncated picture.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import PruneError, did_you_mean
from .files import read_json
from .rig import Rig, load_rig

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 64_000_000
"""Larger pictures are refused before they are decoded (a small file can decode to gigabytes)."""


@dataclass(frozen=True, eq=False)
class Frame(Mapping[str, Image.Image]):
    """One moment of a rig: camera name -> RGB picture, in the rig's order.

    ``id`` names the frame, ``paths`` says where each picture came from (empty for drawn ones).
    """

    id: str
    images: Mapping[str, Image.Image]
    paths: Mapping[str, Path]

    def __getitem__(self, camera: str) -> Image.Image:
        return self.images[camera]

    def __iter__(self) -> Iterator[str]:
        return iter(self.images)

    def __len__(self) -> int:
        return len(self.images)


def load_frame(
    path: str | Path,
    rig: str | Path | Rig | Mapping[str, Any] | Sequence[str],
    *,
    cameras: Iterable[str] | None = None,
    frame: str | int | None = None,
) -> Frame:
    """Read one frame and decode every picture.

    Args:
        path: one of

            - a folder with one picture per camera, named ``CAM_FRONT.jpg`` or holding the camera's
              name as a delimited part (``n008-...__CAM_FRONT__1537.jpg``), or with one sub-folder
              per camera holding exactly one picture;
            - a JSON file ``{camera: path}`` or ``{"images": {camera: path}}``;
            - a JSON file ``{"frames": [{"id": ..., "images": {camera: path}}, ...]}``.

            Paths in a JSON file are relative to its folder and never leave it.
        rig: what `load_rig` reads: a name, a file, a `Rig`, or a sequence of camera names.
        cameras: the ones to read, in this order; all of the rig's by default.
        frame: id or index (from 0) of a frame, for files with several.

    Returns:
        The frame: RGB pictures, decoded, upright (EXIF rotation applied).

    Raises:
        PruneError: a camera without picture or with two, a picture without camera, a path outside
            the folder, a file that is no picture, is truncated, or is larger than 64 megapixels.
    """
    path = Path(path).expanduser()
    found = load_rig(rig)
    if found is None:
        raise PruneError("rig=None: a frame needs camera names. Give a rig, or a list of names.")
    known = found.names
    wanted = tuple(cameras) if cameras is not None else known
    for camera in wanted:
        if camera not in known:
            raise PruneError(f"camera {camera!r} is not in the rig.{did_you_mean(camera, known)}")
    if path.is_dir():
        if frame is not None:
            raise PruneError(f"frame={frame!r} needs a JSON file with frames, but {path} is a folder.")
        name, root, files = path.resolve().name, path.resolve(), _scan(path.resolve(), known)
    elif path.is_file():
        root = path.resolve().parent
        name, files = _described(path, root, known, frame)
    else:
        raise PruneError(f"no such folder or file: {path}. Give a folder of pictures or a JSON file.")
    missing = [camera for camera in wanted if camera not in files]
    if missing:
        raise PruneError(
            f"{missing[0]}: no picture in {path} ({len(wanted) - len(missing)} of {len(wanted)} cameras "
            f"found; missing: {', '.join(missing)}). Name a file {missing[0]}.jpg, or choose other cameras."
        )
    return Frame(name, {c: open_picture(files[c], c) for c in wanted}, {c: files[c] for c in wanted})


def open_picture(path: Path, camera: str) -> Image.Image:
    """Decode one picture to RGB, upright.

    Raises:
        PruneError: naming camera and file, when it is no picture, is damaged, or is too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture: Image.Image = Image.open(path, formats=FORMATS)
    except FileNotFoundError:
        raise PruneError(f"{camera}: no such file: {path}. Correct the path.") from None
    except UnidentifiedImageError:
        size = path.stat().st_size
        what = "an empty file" if size == 0 else f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture"
        raise PruneError(f"{camera}: {path} is {what}. Export it again as JPEG or PNG.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PruneError(f"{camera}: {path} is too large ({error}). Scale it down first.") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise PruneError(f"{camera}: cannot read {path} ({error}). Export it again.") from None
    with picture:
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise PruneError(
                f"{camera}: {path} is {width}x{height}, more than {MAX_PIXELS // 10**6} megapixels. "
                "Scale it down first."
            )
        if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
            raise PruneError(
                f"{camera}: {path} holds {picture.mode!r} pixels (more than 8 bits per channel). "
                "Export it as 8-bit RGB."
            )
        try:
            picture.load()
            return ImageOps.exif_transpose(picture).convert("RGB")
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            # The decoder gives up where the data ends; its message holds the only position there is.
            raise PruneError(
                f"{camera}: {path} is truncated or damaged at or before byte {path.stat().st_size} "
                f"({error}). Re-export it."
            ) from None


def _scan(root: Path, known: tuple[str, ...]) -> dict[str, Path]:
    """Camera -> file for a folder of pictures, or of one folder per camera."""
    found: dict[str, list[Path]] = {}
    strangers = []
    for entry in sorted(root.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if entry.name in known:
                inside = [p for p in sorted(entry.iterdir()) if _is_picture(p)]
                found.setdefault(entry.name, []).extend(inside)
        elif _is_picture(entry):
            camera = _camera_of(entry, known)
            if camera is None:
                strangers.append(entry.name)
            else:
                found.setdefault(camera, []).append(entry)
    for camera, paths in found.items():
        if len(paths) > 1:
            names = ", ".join(p.relative_to(root).as_posix() for p in paths[:3])
            more = ", ..." if len(paths) > 3 else ""
            raise PruneError(
                f"{camera}: {len(paths)} pictures in {root} ({names}{more}). Keep one per camera, or list "
                "the frame's files in a JSON file."
            )
    if strangers:
        raise PruneError(
            f"{strangers[0]!r} in {root} belongs to no camera of the rig ({', '.join(known)}). Rename it to "
            "<camera>.jpg, move it away, or give the rig that has it."
        )
    return {camera: _inside(paths[0], root, camera) for camera, paths in found.items() if paths}


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def _camera_of(path: Path, known: tuple[str, ...]) -> str | None:
    """The camera a file is named after, or None.

    A name counts only as a whole: neither a letter nor a single "_" or "-" with a letter behind it
    may touch it, so that CAM_FRONT is not found in CAM_FRONT_LEFT even when the rig lacks the latter.
    """
    hits = []
    for camera in known:
        pattern = rf"(?<![a-z0-9])(?<![a-z][_-]){re.escape(camera)}(?![a-z0-9])(?![_-][a-z])"
        if re.search(pattern, path.stem, re.IGNORECASE):
            hits.append(camera)
    hits = [a for a in hits if not any(a != b and a in b for b in hits)]  # "front" inside "front left"
    if len(hits) > 1:
        raise PruneError(
            f"{path} carries the names of {len(hits)} cameras ({', '.join(hits)}). Rename it after one."
        )
    return hits[0] if hits else None


def _described(
    path: Path, root: Path, known: tuple[str, ...], frame: str | int | None
) -> tuple[str, dict[str, Path]]:
    """Frame id and camera -> file of a JSON description."""
    data = read_json(path, "frame", "Give a folder of pictures or a JSON file.")
    if not isinstance(data, dict):
        raise PruneError(f"{path} holds a JSON {type(data).__name__}; write {{camera: path}}.")
    name = path.stem
    if isinstance(data.get("frames"), list):
        name, data = _pick_frame(data["frames"], path, frame)
    elif frame is not None:
        raise PruneError(f'frame={frame!r}: {path} holds one frame only (no "frames" list).')
    images = data.get("images", data)
    files = described_files(images, path, root, known)
    return str(data.get("id", name)) if images is not data else name, files


def described_files(images: Any, path: Path, root: Path, known: tuple[str, ...]) -> dict[str, Path]:
    """Camera -> file of one frame's ``{camera: path}`` in the JSON file ``path``.

    Args:
        root: folder that paths are relative to and never leave; resolved.
        known: names of the rig's cameras. That each has a picture is not asked here.

    Raises:
        PruneError: not such a mapping, an unknown camera, or a path that is none or leads outside.
    """
    if not isinstance(images, dict):
        raise PruneError(f'{path}: "images" must map camera to path, not be a {type(images).__name__}.')
    files = {}
    for camera, value in images.items():
        if camera not in known:
            raise PruneError(f"{path}: camera {camera!r} is not in the rig.{did_you_mean(camera, known)}")
        if not isinstance(value, str) or not value or "\0" in value:
            raise PruneError(f"{camera}: {value!r} in {path} is not a path. Write one file per camera.")
        if Path(value).is_absolute():
            raise PruneError(f"{camera}: {value} is absolute. Write paths relative to {root}.")
        files[camera] = _inside(root / value, root, camera)
    return files


def _pick_frame(frames: list[Any], path: Path, frame: str | int | None) -> tuple[str, dict[str, Any]]:
    records = [f for f in frames if isinstance(f, dict)]
    if not records or len(records) != len(frames):
        raise PruneError(f'{path}: "frames" must be a list of {{"id": ..., "images": {{camera: path}}}}.')
    ids = [str(f.get("id", i)) for i, f in enumerate(records)]
    if frame is None:
        if len(records) > 1:
            raise PruneError(
                f"{path} holds {len(records)} frames. Choose one: --frame 0 ... {len(records) - 1}, or an id "
                f"such as {ids[0]}."
            )
        frame = 0
    if str(frame) in ids:
        index = ids.index(str(frame))
    elif str(frame).isdecimal() and int(frame) < len(records):
        index = int(frame)
    else:
        raise PruneError(
            f"frame {frame!r} is not in {path}: use 0 ... {len(records) - 1} or an id."
            f"{did_you_mean(str(frame), ids)}"
        )
    return ids[index], records[index]


def _inside(path: Path, root: Path, camera: str) -> Path:
    """Resolve links and ".."; refuse what ends outside ``root``."""
    try:
        real = path.resolve()
    except (OSError, RuntimeError) as error:
        raise PruneError(f"{camera}: cannot follow {path} ({error}).") from None
    if not real.is_relative_to(root):
        raise PruneError(f"{camera}: {path} leads outside {root}. Copy the picture into that folder.")
    return real
