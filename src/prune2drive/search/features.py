"""The encode-once cache: what the vision encoder made of each frame, kept on disk for every later trial.

A folder per key, a safetensors file per frame. The key is everything that features depend on (weights,
processor, number type, selector, data); its hash names the folder, so a changed key cannot meet old
files. Files appear whole or not at all and are read memory-mapped: a trial touches the pages it needs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from ..errors import PruneError
from ..files import read_json, write_atomically
from .data import digest

FORMAT = 1
"""Of the files; part of every key."""

KEY, LOCK, FILLING, SUFFIX, TRASH = "key.json", ".in-use", ".filling", ".safetensors", ".trash-"

MAPPED = 4096
"""Frames whose files are kept mapped; a process may map about 65,000 in all."""

LIMIT = 10 * 2**30
"""Bytes that all keys together may take, unless told otherwise."""

Item = dict[str, Tensor]
"""What is kept of one frame: named tensors."""


def default_folder() -> Path:
    """Where features lie unless told otherwise: ``$XDG_CACHE_HOME/prune2drive/features``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prune2drive" / "features"


class FeatureCache:
    """Features of the frames of one key. Use as a context manager: while inside, nobody evicts them.

    Args:
        folder: of all keys, made if need be; shared by any number of processes.
        key: what the features depend on, plain JSON data.
        limit: bytes that the folder may hold. Before it would hold more, the keys that were used
            longest ago and that no process uses are deleted.

    Raises:
        PruneError: the folder cannot be written; in `fill`, one key alone needs more than ``limit``.
    """

    def __init__(self, folder: str | Path, key: Mapping[str, Any], limit: int = LIMIT) -> None:
        self.root, self.limit = Path(folder).expanduser(), limit
        self.key = {"format": FORMAT, **key}
        self.folder = self.root / digest(self.key)[:32]
        self._items: dict[str, Item] = {}
        self._use: IO[bytes] | None = None

    def __enter__(self) -> FeatureCache:
        try:
            self._use = self._enter_folder()
            if not (self.folder / KEY).exists():
                write_atomically(self.folder / KEY, json.dumps(self.key, indent=2) + "\n")
            (self.folder / KEY).touch()  # when it was last used
        except OSError as error:
            raise PruneError(
                f"cannot write the feature cache {self.root}: {error.strerror or error}. "
                "Choose another folder."
            ) from error
        if read_json(self.folder / KEY, "cache key", "Delete its folder.") != self.key:
            raise PruneError(f"{self.folder} holds features of another key. Delete that folder.")
        return self

    def __exit__(self, *_: object) -> None:
        self._items.clear()
        if self._use is not None:
            self._use.close()
            self._use = None

    def fill(
        self,
        frames: Sequence[str],
        encode: Callable[[list[str]], Iterable[Item]],
        batch: int = 8,
        progress: Callable[[int], None] = lambda done: None,
    ) -> int:
        """Encode the frames that are not there yet; returns how many those were.

        One process fills a key at a time: others wait, and then find the work done.

        Args:
            frames: their ids, no two alike.
            encode: ids -> one item each, in order.
            batch: ids given at once.
            progress: told how many more frames are there.
        """
        missing = [frame for frame in frames if not self._whole(frame)]
        progress(len(frames) - len(missing))
        if not missing:
            return 0
        encoded = 0
        with open(self.folder / FILLING, "ab") as lock:
            _flock(lock, exclusive=True)
            for torn in self.folder.glob(".*.tmp"):  # of a process that was killed; nobody else writes now
                torn.unlink(missing_ok=True)
            there = [frame for frame in missing if self._whole(frame)]
            progress(len(there))
            missing = [frame for frame in missing if frame not in set(there)]
            for start in range(0, len(missing), batch):
                group = missing[start : start + batch]
                largest = 0
                for frame, item in zip(group, encode(group), strict=True):
                    # Anew for every batch: others fill their keys, and later frames may be larger.
                    if _size(item) > largest:
                        largest = _size(item)
                        self._make_room(largest, len(missing) - encoded, len(frames))
                    self._write(frame, item)
                    encoded += 1
                progress(len(group))
        return encoded

    def __getitem__(self, frame: str) -> Item:
        """The tensors of a frame, memory-mapped.

        Raises:
            PruneError: it was never encoded, or its file was deleted or damaged since.
        """
        if frame not in self._items:
            from safetensors import SafetensorError
            from safetensors.torch import load_file

            while len(self._items) >= MAPPED:
                del self._items[next(iter(self._items))]
            try:
                self._items[frame] = load_file(self._path(frame))
            except (OSError, SafetensorError) as error:
                raise PruneError(
                    f"no features of {frame} in {self.folder}: {error}. Delete that folder and run again."
                ) from error
        return self._items[frame]

    # -- files ----------------------------------------------------------------------------------

    def _enter_folder(self) -> IO[bytes]:
        """Make the folder and hold its lock, which whoever evicts would need."""
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # deleted between these two lines: once more
                file = open(self.folder / LOCK, "ab")  # noqa: SIM115 - held while in use
                _flock(file, exclusive=False)
                if (self.folder / LOCK).exists() and os.path.samestat(
                    os.fstat(file.fileno()), os.stat(self.folder / LOCK)
                ):
                    return file
                file.close()

    def _path(self, frame: str) -> Path:
        return self.folder / (hashlib.sha256(frame.encode()).hexdigest()[:32] + SUFFIX)

    def _whole(self, frame: str) -> bool:
        """Whether a frame's file is there and undamaged as far as its header tells (its length does)."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path(frame), "pt") as file:
                return bool(file.metadata() == {"frame": frame})
        except (OSError, SafetensorError):
            return False

    def _write(self, frame: str, item: Item) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = self._path(frame)
        temporary = self.folder / f".{secrets.token_hex(8)}.tmp"
        try:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in item.items()}
            save_file(tensors, temporary, metadata={"frame": frame})
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            raise PruneError(
                f"cannot write the feature cache {self.root}: {getattr(error, 'strerror', None) or error}. "
                "Make room and run again; it goes on from here."
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    # -- room -----------------------------------------------------------------------------------

    def _make_room(self, each: int, missing: int, frames: int) -> None:
        """Delete what was used longest ago until ``missing`` more files of ``each`` bytes fit."""
        there = _bytes_in(self.folder)
        own = there + each * missing
        if own > self.limit:
            more, have, limit = (size / 2**30 for size in (each * missing, there, self.limit))
            raise PruneError(
                f"the features of {missing} of {frames} frames take {more:.3g} GiB more, and those of this "
                f"model take {have:.3g} GiB already; the cache may hold {limit:.3g} GiB. Allow more, take "
                f"fewer frames, or delete {self.folder}."
            )
        for path in self.root.glob(TRASH + "*"):  # half deleted by a process that was killed
            shutil.rmtree(path, ignore_errors=True)
        others = [path for path in self.root.iterdir() if path != self.folder and (path / KEY).is_file()]
        others.sort(key=_last_used)
        room = self.limit - own - sum(_bytes_in(path) for path in others)
        for path in others:
            if room >= 0:
                break
            with _unused(path) as free:
                if free:
                    room += _bytes_in(path)
                    trash = self.root / f"{TRASH}{secrets.token_hex(8)}"
                    with contextlib.suppress(OSError):  # under a new name, so that no half of it is believed
                        os.rename(path, trash)
                        shutil.rmtree(trash, ignore_errors=True)
        if room < 0:
            raise PruneError(
                f"the feature cache {self.root} is full of what other runs use. Allow more, or wait for them."
            )


def _size(item: Item) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in item.values())


def _last_used(folder: Path) -> float:
    try:
        return (folder / KEY).stat().st_mtime
    except OSError:  # somebody else deletes it at this moment
        return 0.0


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.glob("*" + SUFFIX):
        with contextlib.suppress(OSError):  # somebody deletes it at this moment
            total += path.stat().st_size
    return total


@contextlib.contextmanager
def _unused(folder: Path) -> Iterator[bool]:
    """Whether no process uses a key's folder; nobody can begin to while inside."""
    try:
        file = open(folder / LOCK, "ab")  # noqa: SIM115 - closed below
    except OSError:  # gone already
        yield False
        return
    with file:
        try:
            _flock(file, exclusive=True, wait=False)
        except OSError:
            yield False
            return
        yield True


def _flock(file: IO[bytes], exclusive: bool, wait: bool = True) -> None:
    """Lock an open file until it is closed or the process ends."""
    try:
        import fcntl
    except ImportError:  # Windows, which has no such locks
        return
    fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
