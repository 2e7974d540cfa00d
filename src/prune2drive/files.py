"""Reading JSON and writing text: every error names the file and the remedy."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from .errors import PruneError


def read_json(
    path: str | Path, what: str, remedy: str = "Correct it, or give another file.", *, unique: bool = True
) -> Any:
    """Return the contents of a JSON file.

    Args:
        what: what the file is to the reader, such as "rig".
        remedy: what to do about a file that cannot be read, as a sentence.
        unique: refuse an object that holds a key twice (Python would quietly take the last value).

    Raises:
        PruneError: no such file, not JSON, nested too deeply, or a key written twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in pairs:
            if key in out:
                raise PruneError(f"{key}: written twice in the {what} file {str(path)!r}. Keep one of them.")
            out[key] = value
        return out

    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text, object_pairs_hook=once if unique else None)
    except PruneError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise PruneError(f"cannot read the {what} file {str(path)!r}: {reason}. {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise PruneError(f"the {what} file {str(path)!r} is not JSON: {error}. {remedy}") from error


def write_atomically(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8; a reader sees the old file or the whole new one, never a part.

    Permissions are those of any new file: the umask decides. A link stays a link. What is no file (a
    pipe, ``/dev/null``) is written to, not replaced.

    Raises:
        PruneError: the folder is missing, or the file cannot be written.
    """
    path = Path(path)
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_text(text, encoding="utf-8", errors="replace")
            return
        with open(temporary, "x", encoding="utf-8", errors="replace") as file:
            file.write(text)
        os.replace(temporary, target)
    except OSError as error:
        reason = error.strerror or error
        raise PruneError(f"cannot write {path}: {reason}. Choose another file or folder.") from error
    finally:
        with contextlib.suppress(OSError):  # most of all: it is not there any more
            temporary.unlink()
