"""The command: a preset that can be used, mistakes in one line, nothing overwritten."""

import json

import numpy as np
import pytest
from PIL import Image

import prune2drive as p2d
from prune2drive.cli import main
from prune2drive.commands.search import parse_score
from prune2drive.errors import PruneError
from prune2drive.rig import NUSCENES
from prune2drive.world.model import FOLDER


@pytest.fixture(scope="module")
def folder(tmp_path_factory, save_untrained):
    return save_untrained(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def arguments(folder, cache):
    def make(out, *more):
        options = ["--model", folder, "--out", out, "--device", "cpu", "--cache", cache]
        options += ["--samples", "8", "--held-out", "6", "--batch", "2", "--trials", "4"]
        return [str(word) for word in ("search", *options, *more)]

    return make


@pytest.fixture
def frames(tmp_path):
    """Six drawn frames of noise with two questions each, as a file of the user's own."""
    generator = np.random.default_rng(0)
    listed = []
    for number in range(6):
        images = {}
        for camera in NUSCENES.names:
            images[camera] = f"{number}_{camera}.png"
            noise = generator.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / images[camera])
        qa = [
            {"question": "What should we do ?", "answer": "go"},
            {"question": "Is there a car in CAM_BACK ?", "answer": "yes"},
        ]
        listed.append({"id": f"f{number}", "images": images, "qa": qa})
    path = tmp_path / "frames.json"
    path.write_text(json.dumps({"frames": listed}))
    return path


def error_of(capsys, arguments):
    assert main(arguments) == 2
    line = capsys.readouterr().err.splitlines()[-1]  # loading a model shows a bar before it
    assert line.startswith("error: ")
    return line


def test_a_budget_end_to_end(arguments, folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(arguments(out, "--budget", "0.1", "--name", "mine")) == 0
    said = capsys.readouterr().out
    assert "CAM_BACK_LEFT" in said and "preset: " in said
    preset = p2d.load_preset(out / "preset.json")
    assert preset.name == "mine"
    assert preset.tokens == {"kept": 84, "of": 864}
    assert preset.data["split"] == "calibration" and len(preset.data["ids"]) == 8
    assert preset.score["data"]["split"] == "validation"
    assert preset.score["gain"]["exact"]["low"] is not None
    assert (out / "report.html").stat().st_size > 1000
    run = ["run", "--model", str(FOLDER), "--retention", str(out / "preset.json"), "--question", "x"]
    assert main([*run, "--images", str(tmp_path / "nothing")]) == 2  # refused for the pictures alone
    assert "nothing" in capsys.readouterr().err


def test_again_it_asks_nothing_more_and_can_go_on(arguments, tmp_path):
    out = tmp_path / "out"
    assert main(arguments(out)) == 0
    before = json.loads((out / "result.json").read_text())
    assert main(arguments(out)) == 0
    assert json.loads((out / "result.json").read_text()) == before
    assert main(arguments(out, "--trials", "6")) == 0
    after = json.loads((out / "result.json").read_text())
    assert after["trials"][:4] == before["trials"]
    assert len(after["trials"]) == 6


@pytest.mark.parametrize(
    "more",
    [
        ["--penalty", "0.03", "--score", "exact=0.5,probability=0.5", "--sampler", "random"],
        ["--budget", "0.05", "--sampler", "cmaes", "--pruner", "median"],
        ["--budget", "0.25", "--sampler", "grid", "--pruner", "none", "--held-out", "0"],
        ["--budget", "0.1", "--method", "stratified", "--trials", "2"],
        ["--budget", "0.1", "--method", "tfps-layer", "--trials", "2"],
    ],
)
def test_other_questions_and_samplers(arguments, tmp_path, more):
    assert main(arguments(tmp_path / "out", *more)) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["best"] is not None
    assert (result["held_out"] is None) == ("--held-out" in more)


def test_a_front(arguments, tmp_path, capsys):
    assert main(arguments(tmp_path / "out", "--front", "--trials", "8")) == 0
    points = sorted((tmp_path / "out" / "front").glob("*.json"))
    assert points
    assert all(p2d.load_preset(point).score for point in points)
    assert "front" in capsys.readouterr().out


def test_frames_of_ones_own(arguments, frames, tmp_path):
    more = ["--data", str(frames), "--samples", "4", "--held-out", "2", "--score", "likelihood=1,exact=1"]
    assert main(arguments(tmp_path / "out", *more)) == 0
    preset = p2d.load_preset(tmp_path / "out" / "preset.json")
    assert preset.data["ids"] == ["f0", "f1", "f2", "f3"]
    assert preset.score["data"]["samples"] == 2
    text = (tmp_path / "out" / "result.json").read_text() + (tmp_path / "out" / "report.html").read_text()
    assert str(tmp_path) not in text, "where things lie is not told"


def test_no_frames_left_to_judge_on(arguments, frames, tmp_path, capsys):
    line = error_of(capsys, arguments(tmp_path / "out", "--data", str(frames)))
    assert "all 6 frames" in line and "--samples 4" in line


def test_mistakes_in_ones_own_frames(arguments, frames, tmp_path, capsys):
    data = json.loads(frames.read_text())
    del data["frames"][3]["images"]["CAM_BACK"]
    frames.write_text(json.dumps(data))
    line = error_of(capsys, arguments(tmp_path / "out", "--data", str(frames)))
    assert "f3" in line and "CAM_BACK" in line
    assert "--model" in error_of(capsys, ["search", "--data", str(frames), "--out", str(tmp_path / "out")])
    assert "No such file" in error_of(
        capsys, arguments(tmp_path / "out", "--data", str(tmp_path / "none.json"))
    )


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--penalty", "-0.1"], "negative"),
        (["--budget", "10"], "for 10% write 0.10"),
        (["--budget", "0"], "not in (0, 1]"),
        (["--sampler", "tpee"], "tpe"),
        (["--score", "acuracy"], "Known: exact"),
        (["--score", "exact=much"], "exact=0.5"),
        (["--bounds", "0.5"], "two rates"),
        (["--trials", "0"], "at least 1"),
        (["--samples", "0"], "at least 1"),
        (["--method", "tfpss"], "tfps"),
        (["--method", "duet"], "duet works in several stages, a search of rates takes a method of one"),
        (["--cache-gib", "0"], "more than 0"),
        (["--cache-gib", "1e300"], "more than 0"),
        (["--seed", "99999999999999"], "seed"),
        (["--budget", "1.0"], "one way only"),
        (["--name", " "], "name"),
        (["--cameras", "CAM_FRONT"], "for files"),
        (["--storage", "postgresql://me:secret@127.0.0.1:1/x"], "cannot be used"),
    ],
)
def test_mistakes(arguments, tmp_path, capsys, more, words):
    line = error_of(capsys, arguments(tmp_path / "out", *more))
    assert words in line and "secret" not in line
    assert not (tmp_path / "out" / "preset.json").exists()


def test_too_small_a_cache(arguments, tmp_path, capsys):
    more = ["--cache", str(tmp_path / "cache"), "--cache-gib", "0.001"]
    assert "GiB" in error_of(capsys, arguments(tmp_path / "out", *more))


def test_another_model_under_the_same_name(arguments, tmp_path, capsys):
    assert main(arguments(tmp_path / "out")) == 0
    before = (tmp_path / "out" / "preset.json").read_bytes()
    line = error_of(capsys, arguments(tmp_path / "out", "--model", str(FOLDER)))
    assert "another model" in line and "Choose another folder" in line
    line = error_of(capsys, arguments(tmp_path / "out", "--budget", "0.2", "--name", "other"))
    assert "another name" in line and "Choose another folder" in line
    shared = ["--storage", f"sqlite:///{tmp_path}/out/study.db"]
    line = error_of(capsys, arguments(tmp_path / "new", "--model", str(FOLDER), *shared))
    assert "another model" in line and "Choose another --name" in line
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "out" / "preset.json").read_bytes() == before


def test_scores_are_read():
    assert parse_score("likelihood") == {"likelihood": 1.0}
    assert parse_score("exact=0.5, language=0.25") == {"exact": 0.5, "language": 0.25}
    for text in ("", "exact,exact", "=1", "exact=x"):
        with pytest.raises(PruneError):
            parse_score(text)
