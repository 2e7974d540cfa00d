"""The results of a run as they come: one JSON line per setting and scene, in a folder that one run owns.

Lines are written whole and reach the disk before the next batch begins. A run that was killed leaves at
most one torn line at the end, which the next one drops; what is there is not computed again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import PruneError
from ..files import read_json, write_atomically

RECORDS, RUN = "records.jsonl", "run.json"

Record = dict[str, Any]


class Records:
    """The records in ``folder``, which is made if need be. Use as a context manager to add to them.

    ``fingerprint``: what results depend on (model, split, seed, ...), plain JSON data. ``rows``: what is
    recorded, by (setting, sample).

    Raises:
        PruneError: the folder holds results with another fingerprint, a damaged file, or cannot be
            written; on entering, another process is writing there.
    """

    def __init__(self, folder: str | Path, fingerprint: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.fingerprint = dict(fingerprint)
        self.rows: dict[tuple[str, str], Record] = {}
        self._file: Any = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PruneError(
                f"cannot make the folder {self.folder}: {error.strerror}. Choose another."
            ) from error
        self._check()
        self._read()

    @property
    def path(self) -> Path:
        return self.folder / RECORDS

    def __enter__(self) -> Records:
        try:
            self._file = open(self.path, "ab")
        except OSError as error:
            raise PruneError(f"cannot write {self.path}: {error.strerror}. Choose another folder.") from error
        try:
            _lock(self._file, self.folder)
            self._check()  # another run may have taken the folder, or added to it, until now
            self._read()
            self._file.truncate(self._whole)
            if not (self.folder / RUN).exists():
                write_atomically(self.folder / RUN, json.dumps(self.fingerprint, indent=2) + "\n")
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError:  # what it could not write; the error that told so is on its way
            if kind is None:
                raise

    def add(self, rows: Iterable[Record]) -> None:
        """Append rows that are not there yet; returns when they are on the disk."""
        fresh = [row for row in rows if (row["setting"], row["sample"]) not in self.rows]
        if not fresh:
            return
        try:
            self._file.write("".join(json.dumps(row) + "\n" for row in fresh).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise PruneError(
                f"cannot write {self.path}: {error.strerror}. Make room and run again; it goes on from here."
            ) from error
        self.rows |= {(row["setting"], row["sample"]): row for row in fresh}

    def _check(self) -> None:
        path = self.folder / RUN
        if not path.exists():
            if self.path.exists() and self.path.stat().st_size:
                raise PruneError(f"{self.folder} holds {RECORDS} but no {RUN}. Choose another folder.")
            return
        found = read_json(path, "run", "Choose another folder.")
        found = found if isinstance(found, dict) else {}
        for key in {**self.fingerprint, **found}:
            if (old := found.get(key)) != (new := self.fingerprint.get(key)):
                raise PruneError(
                    f"{self.folder} holds results with another {key}: {old!r} there, {new!r} now. "
                    "Choose another folder, or the settings of that run."
                )

    def _read(self) -> None:
        """Fill ``rows`` from the whole lines of the file; a torn last one does not count."""
        try:
            data = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise PruneError(f"cannot read {self.path}: {error.strerror}. Choose another folder.") from error
        self._whole = data.rfind(b"\n") + 1
        self.rows = {}
        for number, line in enumerate(data[: self._whole].splitlines(), 1):
            try:
                row = json.loads(line)
                self.rows[row["setting"], row["sample"]] = row
            except (ValueError, KeyError, TypeError) as error:
                raise PruneError(
                    f"line {number} of {self.path} is damaged. Delete that line; it is computed again."
                ) from error


def _lock(file: Any, folder: Path) -> None:
    """Hold the file until it is closed or the process ends; two writers would record everything twice."""
    try:
        import fcntl
    except ImportError:  # Windows, which has no such locks
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise PruneError(f"another run is writing to {folder}. Wait for it, or choose another.") from error
