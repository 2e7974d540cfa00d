"""The profile command on a tiny size: arguments, table, JSON, and errors before any measurement."""

import argparse
import json
import os

import pytest
from PIL import Image
from tiny_size import TINY

from families_table import FAMILIES
from prune2drive.cli import main
from prune2drive.errors import PruneError
from prune2drive.profiling import command, room, shapes
from prune2drive.rig import NUSCENES


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    monkeypatch.setenv("COLUMNS", "160")


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["profile", *arguments])
    return args.run(args)


def test_table_and_json(tiny, tmp_path, capsys):
    path = tmp_path / "out.json"
    status = run(
        "--config", "tiny", "--device", "cpu", "--repeat", "1", "--new-tokens", "1", "--text-tokens", "14",
        "--retention", "0.25", "--positions", "reindex", "--layer-limit", "2", "--json", str(path),
    )  # fmt: skip
    assert status == 0
    captured = capsys.readouterr()
    for label in ("time to first token", "choosing", "KV cache", "unpruned", "pruned", "ratio"):
        assert label in captured.out
    assert "repetition 1/1: pruned" in captured.err
    data = json.loads(path.read_text())
    assert data["unpruned"]["tokens"] == 6 * 37 + 14
    assert data["pruned"]["tokens"] == 6 * (9 + 1) + 14
    assert data["settings"]["source"] == "tiny"
    assert data["settings"]["positions"] == "reindex"
    assert data["settings"]["layers"] == data["settings"]["layer_limit"] == 2


def test_layer_pruner_by_name(tiny, capsys):
    assert run("--config", "tiny", "--method", "tfps-layer", "--device", "cpu", "--repeat", "1") == 0
    assert "tokens, mean over layers" in capsys.readouterr().out


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frame")
    for i, camera in enumerate(NUSCENES.names):
        Image.effect_noise((48, 27), 40 + 10 * i).convert("RGB").save(folder / f"{camera}.png")
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    case = next(case for case in FAMILIES if case.name == "llava")
    case.model().save_pretrained(folder)
    case.processor().save_pretrained(folder)
    return folder


def test_a_saved_model(pictures, saved, tmp_path):
    path = tmp_path / "out.json"
    status = run(
        "--model", str(saved), "--images", str(pictures), "--device", "cpu", "--repeat", "1",
        "--json", str(path),
    )  # fmt: skip
    assert status == 0
    data = json.loads(path.read_text())
    assert list(data["pruned"]["tokens_per_camera"]) == list(NUSCENES.names)
    assert data["settings"]["random_weights"] is False
    assert data["ratio"]["tokens"] > 1


def test_some_cameras_of_one_frame_at_their_own_rates(pictures, saved, tmp_path, capsys):
    frames, path, preset = tmp_path / "frames.json", tmp_path / "out.json", tmp_path / "preset.json"
    files = {camera: f"{camera}.png" for camera in NUSCENES.names}
    for camera, file in files.items():
        (tmp_path / file).write_bytes((pictures / f"{camera}.png").read_bytes())
    frames.write_text(json.dumps({"frames": [{"id": "a", "images": {}}, {"id": "b", "images": files}]}))
    preset.write_text(json.dumps({"rates": {"CAM_FRONT": 0.5, "*": 0.25}}))
    for retention in ("CAM_FRONT=0.5,*=0.25", str(preset)):
        status = run(
            "--model", str(saved), "--images", str(frames), "--frame", "b", "--device", "cpu",
            "--cameras", "CAM_BACK,CAM_FRONT", "--retention", retention, "--repeat", "1",
            "--new-tokens", "0", "--dtype", "bf16", "--attn", "eager", "--batch", "2", "--json", str(path),
        )  # fmt: skip
        assert status == 0
        assert "at CAM_FRONT 0.5, * 0.25" in " ".join(capsys.readouterr().out.split())
        data = json.loads(path.read_text())
        assert list(data["pruned"]["tokens_per_camera"].items()) == [("CAM_BACK", 9), ("CAM_FRONT", 18)]
        assert data["settings"]["retention"] == {"CAM_FRONT": 0.5, "*": 0.25}
        assert data["settings"]["cameras"] == ["CAM_BACK", "CAM_FRONT"]
        assert data["settings"]["dtype"] == "bfloat16"
        assert data["settings"]["attn"] == "eager"
        assert data["settings"]["batch"] == 2


def test_a_failing_save_loses_no_figures(tiny, tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    arguments = ["--config", "tiny", "--device", "cpu", "--repeat", "1", "--new-tokens", "0"]
    assert main(["profile", *arguments, "--json", str(tmp_path / "out.json")]) == 2
    captured = capsys.readouterr()
    assert "time to first token" in captured.out
    assert "No space left" in captured.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", [["--config", "tiny"], ["--model", "somewhere", "--images", "."]])
@pytest.mark.parametrize(
    "mistake",
    [["--method", "tfsp"], ["--retention", "2"], ["--retention", "CAM_BACK=0.1"], ["--dtype", "f"],
     ["--device", "abacus"], ["--json", "/no/such/folder/x.json"], ["--cameras", "CAM"], ["--rig", "x"]],
)  # fmt: skip
def test_mistakes_come_before_models(tiny, monkeypatch, source, mistake):
    def touched(*args, **kwargs):
        raise AssertionError("a model was touched")

    monkeypatch.setattr(command, "load_model", touched)
    monkeypatch.setattr(command, "build_model", touched)
    monkeypatch.setattr(command, "build_inputs", touched)
    with pytest.raises(PruneError):
        run(*source, *mistake)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "demoo"], "Did you mean 'demo'"),
        (["--config", "tiny", "--json", "/no/such/folder/x.json"], "no folder /no/such/folder"),
        (["--config", "tiny", "--json", "."], "is a folder"),
        (["--config", "tiny", "--device", "abacus"], "device 'abacus' is unknown"),
        (["--config", "tiny", "--dtype", "int8"], "dtype 'int8' is unknown"),
        (["--config", "tiny", "--attn", "none-such"], "--attn none-such is not available"),
        (["--config", "tiny", "--retention", "nan"], "retention nan is not in"),
        (["--config", "tiny", "--retention", "CAM_FRNT=0.1,*=0.1"], "Did you mean 'CAM_FRONT'"),
        (["--config", "tiny", "--retention", "CAM_FRONT=0.1"], "has no rate"),
        (["--config", "tiny", "--cameras", "CAM_FRNT"], "Did you mean 'CAM_FRONT'"),
        (["--config", "tiny", "--rig", "nuscens"], "unknown rig"),
        (["--config", "tiny", "--batch", "0"], "--batch 0: give at least 1"),
        (["--config", "tiny", "--warmup", "0"], "--warmup 0: give at least 1"),
        (["--config", "tiny", "--images", "."], "--images works with --model only"),
        (["--config", "tiny", "--trust-remote-code"], "--trust-remote-code works with --model only"),
        (["--config", "tiny", "--text-tokens", "3"], "need at least 7"),
        (["--config", "tiny", "--layer-limit", "9"], "layers=9"),
        (["--config", "tiny", "--method", "tfsp"], "Did you mean 'tfps'"),
        (["--model", "somewhere"], "--images"),
        (["--model", "somewhere", "--images", ".", "--layer-limit", "1"], "--config only"),
    ],
)
def test_errors(tiny, arguments, message):
    with pytest.raises(PruneError, match=message):
        run(*arguments)


def test_weights_that_do_not_fit(tiny, monkeypatch, tmp_path):
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:       999999 kB\nMemAvailable:         10 kB\n")
    monkeypatch.setattr(room, "_MEMINFO", told)
    with pytest.raises(PruneError, match="for weights alone"):
        run("--config", "tiny", "--device", "cpu")
