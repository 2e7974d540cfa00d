"""The command: results on disk, mistakes in one line, and a run that was killed goes on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from prune2drive.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory, save_untrained):
    return save_untrained(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(autouse=True)
def _small_guess(monkeypatch):
    monkeypatch.setattr("prune2drive.benchmarks.guess.SCENES", 2)


def arguments(folder, out, *more):
    options = ["--model", folder, "--out", out, "--device", "cpu", "--types", "exists,steering"]
    options += ["--scenes", "2", "--batch", "1", "--methods", "stride", "--retention", "0.1"]
    return [str(word) for word in ("evaluate", *options, "--where", "layer1", *more)]


def error_of(capsys, *argv):
    assert main([str(word) for word in argv]) == 2
    line = capsys.readouterr().err.splitlines()[-1]  # loading a model shows a bar before it
    assert line.startswith("error: ")
    return line


def test_killed_and_run_again(folder, tmp_path, capsys):
    code = (
        "import prune2drive.benchmarks.guess as guess; guess.SCENES = 2\n"
        "from prune2drive.cli import main; main()"
    )
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments(folder, out, "--scenes", "50")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    records = out / "records.jsonl"
    deadline = time.monotonic() + 120
    while not records.exists() or records.read_bytes().count(b"\n") < 3:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    left = records.read_bytes().count(b"\n")
    assert 3 <= left < 200
    assert not (out / "summary.json").exists()

    scenes = str(left // 4 + 1)
    assert main(arguments(folder, out, "--scenes", scenes)) == 0
    assert main(arguments(folder, tmp_path / "whole", "--scenes", scenes)) == 0
    assert records.read_bytes() == (tmp_path / "whole" / "records.jsonl").read_bytes()
    summary = json.loads((out / "summary.json").read_text())
    assert summary == json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["model"] == "tiny"
    assert [s["name"] for s in summary["settings"]] == ["unpruned", "blind", "guess", "stride-layer1@0.1"]
    assert all("stride" in (out / name).read_text() for name in ("report.html", "accuracy-layer1.svg"))
    assert "| stride |" in (out / "tables.md").read_text()

    # A finished folder is only summed up again, wherever the page goes.
    (out / "summary.json").unlink()
    page = tmp_path / "page.html"
    assert main(arguments(folder, out, "--scenes", scenes, "--report", page)) == 0
    assert json.loads((out / "summary.json").read_text()) == summary
    assert page.exists()

    capsys.readouterr()
    mistake = error_of(capsys, *arguments(folder, out, "--seed", "1"))
    assert "another seed: 0 there, 1 now" in mistake
    assert "another types" in error_of(capsys, *arguments(folder, out, "--types", "count"))


def test_mistakes(folder, tmp_path, capsys):
    def mistake(*more):
        return error_of(capsys, *arguments(folder, tmp_path / "out", *more))

    assert "Did you mean 'test'" in mistake("--split", "tets")
    assert "Did you mean 'exists'" in mistake("--types", "exist")
    assert "Did you mean 'stride'" in mistake("--methods", "strid")
    assert "duet works in several stages, evaluate takes a method of one" in mistake("--methods", "duet")
    assert "retention 0.0 is not in (0, 1]" in mistake("--retention", "0")
    assert "--retention 'x'" in mistake("--retention", "x")
    assert "'layer' is no place" in mistake("--where", "layer")
    assert "layer 9 asked" in mistake("--where", "layer9")
    assert "at least 1" in mistake("--scenes", "0")
    assert "each once" in mistake("--methods", "stride,stride")
    assert "dtype 'int8' is unknown" in mistake("--dtype", "int8")
    assert "no such folder" in mistake("--model", tmp_path / "none")
    assert "is a folder" in mistake("--report", tmp_path)


def test_weights_that_are_missing_or_damaged(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("prune2drive.world.model.FOLDER", tmp_path / "empty")
    argv = arguments(folder, tmp_path / "out")
    at = argv.index("--model")
    assert "no weights of the reference model" in error_of(capsys, *argv[:at], *argv[at + 2 :])
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "is damaged" in error_of(capsys, *arguments(copy, tmp_path / "out"))
    assert not (tmp_path / "out" / "run.json").exists()  # the folder stays free for the mended model
    weights.unlink()
    assert "holds no weights" in error_of(capsys, *arguments(copy, tmp_path / "out"))
