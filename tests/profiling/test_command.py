"""The profile command on a tiny size: arguments, table, JSON, and errors before any measurement."""

import argparse
import json

import pytest
from PIL import Image

from families_table import FAMILIES
from prune2drive.errors import PruneError
from prune2drive.profiling import command, shapes
from prune2drive.rig import NUSCENES

TINY = shapes.Shape(
    "llava_onevision",
    {"model_type": "siglip_vision_model", "vision_use_head": False, "hidden_size": 32,
     "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
     "image_size": 24, "patch_size": 4},
    {"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
     "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1200, "tie_word_embeddings": False,
     "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    37, "tiny", extra={"image_token_index": 1100, "video_token_index": 1101},
)  # fmt: skip


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


def test_a_saved_model(tmp_path, capsys):
    for i, camera in enumerate(NUSCENES.names):
        Image.effect_noise((48, 27), 40 + 10 * i).convert("RGB").save(tmp_path / f"{camera}.png")
    folder, path = tmp_path / "model", tmp_path / "out.json"
    case = next(case for case in FAMILIES if case.name == "llava")
    case.model().save_pretrained(folder)
    case.processor().save_pretrained(folder)
    status = run(
        "--model", str(folder), "--images", str(tmp_path), "--device", "cpu", "--repeat", "1",
        "--json", str(path),
    )  # fmt: skip
    assert status == 0
    data = json.loads(path.read_text())
    assert list(data["pruned"]["tokens_per_camera"]) == list(NUSCENES.names)
    assert data["settings"]["random_weights"] is False
    assert data["ratio"]["tokens"] > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "demoo"], "Did you mean 'demo'"),
        (["--config", "tiny", "--json", "/no/such/folder/x.json"], "folder does not exist"),
        (["--config", "tiny", "--device", "abacus"], "not a device"),
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


def test_weights_that_do_not_fit(tiny, monkeypatch):
    monkeypatch.setattr(command.Path, "read_text", lambda self, **k: "MemAvailable: 10 kB\n")
    with pytest.raises(PruneError, match="for weights alone"):
        run("--config", "tiny", "--device", "cpu")
