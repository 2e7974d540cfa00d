"""Files: JSON is read, and text written, with errors that name the file and the remedy."""

import os
import stat
import threading

import pytest

from prune2drive import PruneError
from prune2drive.files import read_json, write_atomically


def test_json_comes_back(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"é": [1, {"a": 2}]}', encoding="utf-8")
    assert read_json(path, "rig") == read_json(str(path), "rig") == {"é": [1, {"a": 2}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xd8\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a": 1, "a": 2}', "a: written twice in"),
        (b'[{"b": {"a": 1, "a": 1}}]', "a: written twice in"),
    ],
)
def test_unreadable_json_names_file_kind_and_remedy(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(PruneError, match=message) as caught:
        read_json(path, "preset", "Bring another.")
    assert f"the preset file '{path}'" in str(caught.value)
    assert str(caught.value).endswith("Keep one of them." if "twice" in message else "Bring another.")


def test_files_of_others_may_hold_a_key_twice(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1, "a": 2}')
    assert read_json(path, "model", unique=False) == {"a": 2}


def test_missing_json_is_named(tmp_path):
    with pytest.raises(PruneError, match=r"cannot read the rig file '.*none\.json': No such file.*another"):
        read_json(tmp_path / "none.json", "rig")
    with pytest.raises(PruneError, match="cannot read the rig file"):
        read_json(tmp_path, "rig")


def test_written_text_replaces_the_old_and_leaves_nothing_else(tmp_path):
    path = tmp_path / ("n" * 251 + ".txt")  # as long as a name may be
    for text in ("one\n", "zwei \u00e9\n", "three \ud800\n"):
        write_atomically(path, text)
        assert path.read_text(encoding="utf-8") == text.replace("\ud800", "?")
    write_atomically(str(tmp_path / "b"), "")
    assert sorted(os.listdir(tmp_path)) == ["b", path.name]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "a", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in" / "real")
    for text in ("one", "two"):
        write_atomically(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "in" / "real").read_text() == text


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read = []
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    write_atomically(path, "text")
    reader.join(10)
    assert read == ["text"]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    for path in (tmp_path / "no" / "a.json", tmp_path / "folder", tmp_path / "file" / "a"):
        with pytest.raises(PruneError, match=r"cannot write .*Choose another file or folder"):
            write_atomically(path, "{}")

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(PruneError, match=r"cannot write .*file: No space left on device"):
        write_atomically(tmp_path / "file", "new")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old"
