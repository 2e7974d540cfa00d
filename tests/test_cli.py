"""The command line: help, one red line for every mistake, and a whole run on a tiny model."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from families_table import FAMILIES
from prune2drive import PruneError
from prune2drive.cli import COMMANDS, build_parser, main
from prune2drive.commands.show import parse_retention
from prune2drive.rig import NUSCENES


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frame")
    for i, camera in enumerate(NUSCENES.names):
        Image.effect_noise((48, 27), 40 + 10 * i).convert("RGB").save(folder / f"{camera}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    case = next(case for case in FAMILIES if case.name == "llava")
    case.model().save_pretrained(folder)
    case.processor().save_pretrained(folder)
    return folder


def error_of(capsys, *argv) -> str:
    assert main([str(a) for a in argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def test_help_names_every_command_and_imports_none(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out and line in out for name, (_, line) in COMMANDS.items())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        build_parser(command).parse_args([command, "--help"])
    assert stop.value.code == 0
    assert f"prune2drive {command}" in capsys.readouterr().out


def test_module_and_version():
    out = subprocess.run(
        [sys.executable, "-m", "prune2drive", "--version"], capture_output=True, text=True, check=True
    )
    assert out.stdout.startswith("prune2drive 0.")


@pytest.mark.parametrize("argv", [[], ["nothing"], ["run"], ["run", "--model", "x"]])
def test_wrong_use_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_methods_lists_all(capsys):
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert "tfps" in out
    assert "random" in out


def test_mistakes_are_one_line(pictures, tmp_path, capsys):
    run = ["run", "--images", pictures, "--question", "why?", "--model"]
    assert "a hub id looks like org/name" in error_of(capsys, *run, "/nowhere")
    assert "--retention 'lots'" in error_of(capsys, *run, "m", "--retention", "lots")
    assert "no folder" in error_of(capsys, *run, "m", "--report", tmp_path / "no" / "r.html")
    assert "is a folder" in error_of(capsys, *run, "m", "--json", tmp_path)
    assert "CAM_FRONT" in error_of(capsys, *run, "m", "--cameras", "CAM_FRNT")
    assert "once" in error_of(capsys, *run, "m", "--cameras", "CAM_BACK,CAM_BACK")
    assert "unknown rig" in error_of(capsys, *run, "m", "--rig", "nuscens")
    assert "at least 1" in error_of(capsys, *run, "m", "--max-new-tokens", "0")
    assert "needs a JSON file" in error_of(capsys, *run, "m", "--frame", "3")
    assert "empty" in error_of(capsys, "run", "--images", pictures, "--model", "m", "--question", " ")


@pytest.mark.parametrize(
    ("text", "value"),
    [("0.1", 0.1), ("CAM_FRONT=0.25, *=0.08", {"CAM_FRONT": 0.25, "*": 0.08}), (__file__, __file__)],
)
def test_retention(text, value):
    assert parse_retention(text) == value


@pytest.mark.parametrize("text", ["", "CAM_FRONT", "CAM_FRONT=", "=0.1", "a=0.1,a=0.2", "a=0.1,", "a=x"])
def test_wrong_retention(text):
    with pytest.raises(PruneError, match="--retention"):
        parse_retention(text)


@pytest.mark.parametrize("compare", [[], ["--compare"]])
def test_run_answers_and_writes_page_and_json(model, pictures, tmp_path, capsys, compare):
    page, data = tmp_path / "r.html", tmp_path / "r.json"
    argv = ["run", "--model", model, "--images", pictures, "--question", "What is ahead?", "--device", "cpu"]
    argv += ["--retention", "CAM_FRONT=0.5,*=0.25", "--max-new-tokens", "3", "--report", page, "--json", data]
    assert main([str(a) for a in [*argv, *compare]]) == 0
    out = capsys.readouterr().out
    assert "Answer" in out
    assert "Choosing" in out
    result = json.loads(data.read_text())
    sample = result["record"]["samples"][0]
    assert list(sample) == list(NUSCENES.names)
    assert [sample[c]["kept"] for c in ("CAM_FRONT", "CAM_BACK")] == [18, 9]  # of 36 tokens
    assert (result["unpruned_answer"] is not None) == bool(compare)
    html = page.read_text()
    assert "18 of 36 kept (50%)" in html
    assert "What is ahead?" in html
    assert html.count("The model sees only the middle 57%.") == 6  # CLIP cuts 42x24 to its middle 24
    assert str(model.parent) not in html  # where things lie stays private


def test_run_with_some_cameras_in_another_order(model, pictures, tmp_path):
    data = tmp_path / "r.json"
    argv = [
        "run",
        "--model",
        model,
        "--images",
        pictures,
        "--question",
        "why?",
        "--device",
        "cpu",
        "--json",
        data,
    ]
    assert main([str(a) for a in [*argv, "--cameras", "CAM_BACK,CAM_FRONT", "--max-new-tokens", "1"]]) == 0
    assert list(json.loads(data.read_text())["record"]["samples"][0]) == ["CAM_BACK", "CAM_FRONT"]


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    assert main(["demo", "--report", str(tmp_path / "d.html"), "--max-new-tokens", "1"]) == 0
    out = capsys.readouterr().out
    assert "random" in out
    assert "438" in out
    assert "random" in (tmp_path / "d.html").read_text()
