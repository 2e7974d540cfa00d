"""The command: files on disk, going on after it was stopped, mistakes in one line."""

import json

import pytest

from prune2drive.cli import main

DAYLIGHT = "test/19"
"""The first scene of the split by day."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, save_untrained):
    return save_untrained(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def _small_guess(monkeypatch):
    monkeypatch.setattr("prune2drive.benchmarks.guess.SCENES", 2)


def arguments(folder, out, *more):
    options = ["--model", folder, "--out", out, "--device", "cpu", "--scenes", "2", "--batch", "2"]
    options += ["--methods", "tfps,fastv", "--retention", "0.1", "--costs", "1"]
    return [str(word) for word in ("compare", *options, *more)]


def test_files_and_going_on(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(arguments(folder, out)) == 0
    printed = capsys.readouterr().out
    assert "T-FPS" in printed and "not possible: 1 row" in printed
    files = (
        "costs.json",
        "kept.json",
        "records.jsonl",
        "report.html",
        "run.json",
        "summary.json",
        "tables.md",
    )
    assert sorted(path.name for path in out.iterdir()) == list(files)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["model"] == "tiny" and summary["hardware"] and summary["versions"]
    rows = {row["name"]: row for row in summary["contenders"]}
    assert list(rows) == [
        *("unpruned", "blind", "guess", "random@avg0.1", "tfps@avg0.1"),
        *("random-layer@kept0.1", "fastv@kept0.1"),
    ]
    assert [row["name"] for row in summary["impossible"]] == ["fastv@avg0.1"]
    assert rows["tfps@avg0.1"]["costs"]["flops_ratio"] < 0.2 and rows["guess"]["costs"] is None
    kept = json.loads((out / "kept.json").read_text())
    assert kept["sample"] == DAYLIGHT and set(kept["contenders"]) == set(rows) - {
        "unpruned",
        "blind",
        "guess",
    }
    tables = (out / "tables.md").read_text()
    assert "| T-FPS |" in tables and "exists" in tables and "- `fastv@avg0.1`: fastv: 86.4 tokens" in tables

    records = out / "records.jsonl"
    whole = records.read_text().splitlines(keepends=True)
    records.write_text("".join(whole[:-3]))
    (out / "summary.json").unlink()
    assert main(arguments(folder, out)) == 0
    assert records.read_text().splitlines(keepends=True) == whole
    assert json.loads((out / "summary.json").read_text()) == summary
    # Costs are in a file of their own: without them the summary has none.
    assert main(arguments(folder, out, "--costs", "0")) == 0
    bare = json.loads((out / "summary.json").read_text())
    assert all(row["costs"] is None for row in bare["contenders"])

    capsys.readouterr()
    assert main(arguments(folder, out, "--layer", "2")) == 2
    assert "another layer: 1 there, 2 now" in capsys.readouterr().err


def test_mistakes(folder, tmp_path, capsys):
    def mistake(*more):
        assert main(arguments(folder, tmp_path / "out", *more)) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: ")
        return line

    assert "Did you mean 'test'" in mistake("--split", "tets")
    assert "Did you mean 'tfps'" in mistake("--methods", "tpfs")
    assert "each once" in mistake("--methods", "tfps,tfps")
    assert "retention 1.5 is not in (0, 1]" in mistake("--retention", "1.5")
    assert "--retention 'x'" in mistake("--retention", "x")
    assert "Did you mean 'reindex'" in mistake("--positions", "reindez")
    assert "layers 0 to 7" in mistake("--layer", "8")
    assert "at least 1" in mistake("--layer", "0")
    assert "at least 0" in mistake("--costs", "-1")
    assert "dtype 'int8' is unknown" in mistake("--dtype", "int8")
    assert "no such folder" in mistake("--model", tmp_path / "none")
    assert not (tmp_path / "out" / "run.json").exists()
