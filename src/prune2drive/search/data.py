"""Reading a person's own frames with questions: one JSON file, pictures beside it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PruneError
from ..files import read_json
from ..images import Frame, described_files, open_picture


@dataclass(frozen=True, eq=False)
class Asked:
    """One frame: where its pictures lie, in prompt order, and what is asked about them.

    ``qa``: pairs of question and reference answer, at least one. ``pictures``: SHA-256 of the
    pictures' names and bytes.
    """

    id: str
    files: Mapping[str, Path]
    qa: Sequence[tuple[str, str]]
    pictures: str

    @property
    def feature_id(self) -> str:
        """Another one when a picture changes."""
        return f"{self.id}/{self.pictures}"

    @property
    def prompt_id(self) -> str:
        """Another one when a picture, a question or an answer changes."""
        return f"{self.feature_id}/{digest(self.qa)}"

    def load(self) -> Frame:
        """Decode the pictures; PruneError naming frame and camera where one is damaged."""
        try:
            images = {camera: open_picture(path, camera) for camera, path in self.files.items()}
        except PruneError as error:
            raise PruneError(f"frame {self.id}: {error}") from None
        return Frame(self.id, images, self.files)


def read_frames(
    path: str | Path, known: Sequence[str], cameras: Sequence[str], start: int = 0, count: int | None = None
) -> list[Asked]:
    """Read frames ``start`` to ``start + count - 1`` of a file; pictures are hashed, not decoded.

    Args:
        path: ``{"frames": [{"id": ..., "images": {camera: path}, "qa": [{"question": ..., "answer":
            ...}, ...]}, ...]}``. Paths are relative to the file's folder and never leave it; a frame
            without "id" is called by its number.
        known: names a frame may have pictures of.
        cameras: those it must have, in prompt order.
        count: None for all that follow.

    Raises:
        PruneError: not such a file, no frames, two of one id, a frame without a picture of a camera
            or without questions, or a question or answer that is empty.
    """
    path = Path(path).expanduser()
    if start < 0 or (count is not None and count < 1):
        raise PruneError(f"{count} frames from {start}: give at least 1, from 0 on.")
    records = _records(path)
    ids = [str(record.get("id", number)) for number, record in enumerate(records)]
    if twice := [name for name, times in Counter(ids).items() if times > 1]:
        raise PruneError(f"frame {twice[0]}: written twice in {path}. Give each frame an id of its own.")
    chosen = list(zip(ids, records, strict=True))[start:][:count]
    if not chosen:
        raise PruneError(f"{path} holds {len(records)} frames, none from {start} on. Add frames to it.")
    return [_frame(name, record, path, tuple(known), cameras) for name, record in chosen]


def count_frames(path: str | Path) -> int:
    """How many frames a file lists; PruneError as `read_frames` for no such file."""
    return len(_records(Path(path).expanduser()))


def _records(path: Path) -> list[dict[str, Any]]:
    data = read_json(path, "frames", "Give a JSON file with frames and questions.")
    records = data.get("frames") if isinstance(data, dict) else None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise PruneError(
            f'{path}: "frames" must be a list of {{"id": ..., "images": {{camera: path}}, "qa": [...]}}.'
        )
    return records


def digest(value: Any) -> str:
    """SHA-256 of plain JSON data, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _frame(
    name: str, record: Mapping[str, Any], path: Path, known: tuple[str, ...], cameras: Sequence[str]
) -> Asked:
    """One frame, checked."""
    try:
        files = described_files(record.get("images"), path, path.resolve().parent, known)
        missing = [camera for camera in cameras if camera not in files]
        if missing:
            raise PruneError(
                f"{missing[0]}: no picture in {path} ({len(cameras) - len(missing)} of {len(cameras)} "
                f'cameras found; missing: {", ".join(missing)}). Add it to "images", or choose other cameras.'
            )
        wanted = {camera: files[camera] for camera in cameras}
        return Asked(name, wanted, _questions(record.get("qa"), path), digest(_hashes(wanted)))
    except PruneError as error:
        raise PruneError(f"frame {name}: {error}") from None


def _questions(qa: Any, path: Path) -> list[tuple[str, str]]:
    if not isinstance(qa, list) or not qa:
        raise PruneError(f'no "qa" in {path}. Write [{{"question": "...", "answer": "..."}}, ...].')
    pairs = []
    for number, one in enumerate(qa):
        pair = [one.get(part) if isinstance(one, dict) else None for part in ("question", "answer")]
        for part, text in zip(("question", "answer"), pair, strict=True):
            if not isinstance(text, str) or not text.strip():
                raise PruneError(f"qa {number} in {path} has no {part}. Write a text, or remove it.")
        pairs.append((str(pair[0]), str(pair[1])))
    return pairs


def _hashes(files: Mapping[str, Path]) -> list[tuple[str, str]]:
    """Camera and SHA-256 of its picture's bytes."""
    out = []
    for camera, path in files.items():
        try:
            with path.open("rb") as file:
                out.append((camera, hashlib.file_digest(file, "sha256").hexdigest()))
        except OSError as error:
            raise PruneError(f"{camera}: cannot read {path}: {error.strerror}. Correct the path.") from None
    return out
