"""Presets: written and read, found by name or path, and used like any retention."""

import json

import pytest
import torch

from families_table import BY_NAME
from prune2drive import prune
from prune2drive.allocators import Preset, Rates, count, list_presets, load_allocator, load_preset, preset
from prune2drive.benchmarks.runner import weights_hash
from prune2drive.errors import PruneError
from prune2drive.rig import NUSCENES
from prune2drive.world.model import FOLDER

CAMERAS = ["FRONT", "LEFT", "BACK"]
RATES = {"FRONT": 0.5, "LEFT": 0.07, "BACK": 0.3}
FULL = Preset(
    rates=RATES,
    name="mine",
    model={"name": "reference", "weights": "ab12"},
    method="tfps: TFPS()",
    tokens={"kept": 84, "of": 864},
    data={"source": "world", "ids": ["a", "b"]},
    objective={"words": "1 likelihood", "penalty": None},
    search={"sampler": "tpe", "trials": 100},
    score={"gain": {"exact": {"value": 0.01, "low": None, "high": 0.02}}},
    date="2026-01-31",
    version="0.1.0",
)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder of presets that come with the package; we stand in another, empty one."""
    folder, here = tmp_path / "shipped", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    monkeypatch.setattr(preset, "SHIPPED", folder)
    monkeypatch.chdir(here)
    Preset({"*": 0.1}, name="tenth").save(folder / "world-tenth.json")
    Preset({"*": 0.2}, name="fifth").save(folder / "world-fifth.json")
    return folder


def write(path, content):
    path.write_text(json.dumps(content))
    return path


# -- reading and writing ------------------------------------------------------------------------------


@pytest.mark.parametrize("one", [FULL, Preset({"*": 1})], ids=["full", "bare"])
def test_round_trip(one, tmp_path):
    assert Preset.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    assert load_preset(one.save(tmp_path / "mine.json")) == one
    assert load_preset(str(tmp_path / "mine.json")) == one


def test_rates_are_all_that_is_needed(tmp_path):
    found = load_preset(write(tmp_path / "bare.json", {"rates": RATES}))
    assert found.rates == RATES and found.score is None


def test_unknown_keys_are_left_out(tmp_path):
    found = load_preset(write(tmp_path / "p.json", {"rates": RATES, "name": "a", "colour": "red"}))
    assert found == Preset(RATES, name="a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"name": "mine"}, "'.*p.json' has no 'rates'"),
        ([], "has no 'rates'"),
        ("rates", "has no 'rates'"),
        ({"rates": {}}, "rates {} must be"),
        ({"rates": [0.1]}, "must be {camera: rate}"),
        ({"rates": {"FRONT": 10}}, r"retention of FRONT 10 is not in \(0, 1\]; for 10% write 0.10"),
        ({"rates": {"FRONT": 0.5, "BACK": 0}}, "retention of BACK 0 is not"),
        ({"rates": {"FRONT": "half"}}, "retention of FRONT 'half' is not a number"),
        ({"rates": {"FRONT": True}}, "retention of FRONT True is not a number"),
        ({"rates": RATES, "format": 2}, "format 2, this version reads 1. Update prune2drive"),
    ],
)
def test_what_is_refused(tmp_path, content, message):
    path = write(tmp_path / "p.json", content)
    for load in (load_preset, load_allocator):
        with pytest.raises(PruneError, match=message):
            load(path)


def test_rates_are_checked_when_made():
    with pytest.raises(PruneError, match=r"retention of FRONT 1\.5"):
        Preset({"FRONT": 1.5})


def test_damaged_and_missing_files(tmp_path):
    (tmp_path / "p.json").write_text("{")
    with pytest.raises(PruneError, match=r"preset file .* is not JSON"):
        load_preset(tmp_path / "p.json")
    for name in (tmp_path / "gone.json", str(tmp_path / "gone.json"), str(tmp_path / "gone")):
        with pytest.raises(PruneError, match=r"cannot read the preset file .*gone.*No such file"):
            load_preset(name)
    with pytest.raises(PruneError, match=r"cannot write .*folder"):
        FULL.save(tmp_path / "gone" / "p.json")


# -- by name ------------------------------------------------------------------------------------------


def test_every_shipped_preset_can_be_loaded():
    names = list_presets()
    assert names == sorted(set(names))
    for name in names:
        assert load_preset(name).rates and isinstance(load_allocator(name), Rates)


def test_names(shipped):
    assert list_presets() == ["world-fifth", "world-tenth"]
    assert load_preset("world-tenth").name == "tenth"
    assert load_allocator("world-fifth") == Rates({"*": 0.2})


def test_an_existing_file_wins(shipped, tmp_path):
    FULL.save("world-tenth")  # in the folder we stand in
    assert load_preset("world-tenth") == FULL
    assert load_preset("world-fifth").name == "fifth"


def test_a_path_object_is_never_a_name(shipped, tmp_path):
    with pytest.raises(PruneError, match="No such file"):
        load_preset(tmp_path / "here" / "world-tenth")


def test_a_folder_of_that_name_is_no_file(shipped, tmp_path):
    (tmp_path / "here" / "world-tenth").mkdir()
    assert load_preset("world-tenth").name == "tenth"


def test_unknown_names(shipped):
    with pytest.raises(
        PruneError, match=r"no preset 'world-tent' and no such file.*'world-tenth'.*world-fifth"
    ):
        load_preset("world-tent")
    with pytest.raises(PruneError, match="no preset"):
        load_allocator("x" * 5000)


def test_unknown_names_where_nothing_is_shipped(shipped):
    for path in shipped.iterdir():
        path.unlink()
    assert list_presets() == []
    with pytest.raises(PruneError, match=r"no preset 'mine'.*Shipped: none"):
        load_preset("mine")


# -- in use -------------------------------------------------------------------------------------------


def test_a_preset_is_an_allocator_of_its_rates(tmp_path):
    path = FULL.save(tmp_path / "mine.json")
    assert load_allocator(path) == load_allocator(str(path)) == Rates(RATES)


def test_pruning_by_a_preset_is_pruning_by_its_rates(tmp_path):
    case = BY_NAME["llava"]
    model, inputs = case.model("sdpa"), case.inputs([3])
    path = FULL.save(tmp_path / "mine.json")

    def pruned(retention):
        with torch.no_grad(), prune(model, retention=retention, rig=CAMERAS) as made:
            logits = model(**inputs).logits
        return logits, {name: cell.kept for name, cell in made.record.samples[0].items()}

    logits, kept = pruned(RATES)
    assert kept == {"FRONT": 18, "LEFT": 3, "BACK": 11}
    for given in (path, str(path)):
        mine, same = pruned(given)
        assert same == kept and torch.equal(mine, logits)


@pytest.mark.parametrize("share", [25, 10, 5])
def test_shipped_presets_keep_what_they_say(share):
    preset = load_preset(f"reference-{share}")
    counts = {camera: count(144, rate) for camera, rate in preset.rates.items()}
    assert list(counts) == list(NUSCENES.names)
    assert sum(counts.values()) == preset.tokens["kept"] == 6 * count(144, share / 100)
    assert preset.model["weights"] == weights_hash(FOLDER), "searched for the weights that ship with it"
    assert len(preset.data["ids"]) == preset.data["samples"] == 500
    assert preset.score["data"]["split"] != preset.data["split"]
    assert preset.score["gain"]["likelihood"]["value"] > 0
