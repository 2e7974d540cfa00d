"""Records: whole lines, nothing lost or doubled, one kind of run per folder."""

import json
import subprocess
import sys

import pytest

from prune2drive.benchmarks.records import Records
from prune2drive.errors import PruneError

ABOUT = {"split": "test", "seed": 0}


def row(setting, number, **more):
    return {"setting": setting, "sample": f"test/{number}", **more}


def fill(folder, *rows):
    with Records(folder, ABOUT) as records:
        records.add(rows)


def lines(folder):
    return (folder / "records.jsonl").read_text().splitlines()


def test_rows_are_kept_and_not_doubled(tmp_path):
    folder = tmp_path / "new" / "out"
    fill(folder, row("a", 0), row("a", 1))
    fill(folder, row("a", 1), row("b", 1))
    assert [json.loads(line) for line in lines(folder)] == [row("a", 0), row("a", 1), row("b", 1)]
    assert set(Records(folder, ABOUT).rows) == {("a", "test/0"), ("a", "test/1"), ("b", "test/1")}
    assert json.loads((folder / "run.json").read_text()) == ABOUT


def test_a_torn_last_line_is_dropped(tmp_path):
    fill(tmp_path, row("a", 0), row("a", 1))
    path = tmp_path / "records.jsonl"
    whole = path.read_bytes()
    for cut in (1, 10):
        path.write_bytes(whole[:-cut])
        assert set(Records(tmp_path, ABOUT).rows) == {("a", "test/0")}
        fill(tmp_path, row("a", 1))
        assert path.read_bytes() == whole


def test_looking_changes_nothing(tmp_path):
    fill(tmp_path, row("a", 0))
    path = tmp_path / "records.jsonl"
    path.write_bytes(path.read_bytes() + b'{"sett')
    before = path.read_bytes()
    Records(tmp_path, ABOUT)
    assert path.read_bytes() == before


def test_damage_in_the_middle_is_named(tmp_path):
    fill(tmp_path, row("a", 0), row("a", 1), row("a", 2))
    found = lines(tmp_path)
    found[1] = found[1][:9]
    (tmp_path / "records.jsonl").write_text("\n".join(found) + "\n")
    with pytest.raises(PruneError, match=r"line 2 of .* is damaged"):
        Records(tmp_path, ABOUT)


def test_other_runs_are_refused(tmp_path):
    fill(tmp_path, row("a", 0))
    with pytest.raises(PruneError, match="another seed: 0 there, 1 now"):
        Records(tmp_path, {**ABOUT, "seed": 1})
    with pytest.raises(PruneError, match="another dtype: None there"):
        Records(tmp_path, {**ABOUT, "dtype": "float32"})
    (tmp_path / "run.json").unlink()
    with pytest.raises(PruneError, match=r"no run\.json"):
        Records(tmp_path, ABOUT)


def test_folders_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PruneError, match="cannot make the folder"):
        Records(tmp_path / "file", ABOUT)


def test_two_writers_are_one_too_many(tmp_path):
    code = (
        "import sys; from prune2drive.benchmarks.records import Records\n"
        f"try:\n with Records(sys.argv[1], {ABOUT!r}): pass\n"
        "except ValueError as error: print(error)"
    )
    with Records(tmp_path, ABOUT):
        out = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert "another run is writing" in out.stdout


def test_a_folder_that_was_taken_meanwhile_is_refused(tmp_path):
    late = Records(tmp_path, {**ABOUT, "seed": 1})
    fill(tmp_path, row("a", 0))
    with pytest.raises(PruneError, match="another seed: 0 there, 1 now"), late:
        pass
    fill(tmp_path, row("a", 1))  # the lock is free again
    assert len(lines(tmp_path)) == 2


def test_a_full_disk_is_said_once(tmp_path):
    class Full:
        def write(self, data):
            return len(data)

        def flush(self):
            raise OSError(28, "No space left on device")

        close = flush

    records = Records(tmp_path, ABOUT)

    def add():
        with records:
            records._file.close()
            records._file = Full()
            records.add([row("a", 0)])

    with pytest.raises(PruneError, match=r"No space left on device\. Make room"):
        add()
    assert Records(tmp_path, ABOUT).rows == {}
