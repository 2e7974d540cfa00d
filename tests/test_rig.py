"""Rigs: names, ring order, plain data, and errors that say what to do."""

import json

import pytest

from prune2drive.errors import PruneError
from prune2drive.rig import NUSCENES, Camera, Rig, load_rig


def test_nuscenes_is_in_drivelm_order():
    assert NUSCENES.names == (
        "CAM_FRONT",
        "CAM_FRONT_LEFT",
        "CAM_FRONT_RIGHT",
        "CAM_BACK",
        "CAM_BACK_LEFT",
        "CAM_BACK_RIGHT",
    )
    assert NUSCENES.camera("CAM_BACK").fov_deg == 110
    assert NUSCENES.camera("CAM_FRONT_RIGHT").yaw_deg == -55
    assert NUSCENES.camera("CAM_FRONT").size == (1600, 900)


def test_neighbours_close_the_ring():
    assert NUSCENES.neighbours("CAM_FRONT") == ("CAM_FRONT_LEFT", "CAM_FRONT_RIGHT")
    assert NUSCENES.neighbours("CAM_BACK_LEFT") == ("CAM_BACK", "CAM_FRONT_LEFT")
    assert NUSCENES.neighbours("CAM_BACK") == ("CAM_BACK_RIGHT", "CAM_BACK_LEFT")
    for name in NUSCENES.names:
        left, right = NUSCENES.neighbours(name)
        assert NUSCENES.neighbours(left)[1] == name == NUSCENES.neighbours(right)[0]


def test_neighbours_of_small_rigs():
    assert load_rig(["front", "back"]).neighbours("front") == ("back", "back")
    assert load_rig(["front"]).neighbours("front") == ("front", "front")


def test_round_trip_through_a_file(tmp_path):
    rig = Rig("van", (Camera("wide", 0, 120, (1920, 1080)), Camera("tele", 0, 30)))
    path = tmp_path / "van.json"
    path.write_text(json.dumps(rig.to_dict()))
    assert Rig.from_json(path) == load_rig(str(path)) == load_rig(path) == load_rig(rig.to_dict()) == rig
    assert hash(load_rig(path)) == hash(rig)


def test_load_rig_forms():
    assert load_rig(None) is None
    assert load_rig("nuscenes") is load_rig(NUSCENES) is NUSCENES
    ring = load_rig(["front", "left", "back", "right"])
    assert [camera.yaw_deg for camera in ring.cameras] == [0, 90, 180, -90]
    assert ring.neighbours("front") == ("left", "right")
    assert "left" in ring
    assert len(ring) == 4


@pytest.mark.parametrize(
    ("rig", "words"),
    [
        ("nuscene", ["'nuscene'", "Did you mean 'nuscenes'"]),
        ("missing.json", ["missing.json", "No such file"]),
        ([], ["no cameras"]),
        (["A", "B", "A"], ["names A twice"]),
        (7, ["7", "list of camera names"]),
        ({"name": "x"}, ["lacks 'cameras'"]),
        ({"name": "x", "cameras": []}, ["'x' has no cameras"]),
        ({"name": "x", "cameras": "A"}, ["list of dictionaries"]),
        ({"name": "x", "cameras": ["A"]}, ["camera 0", "dictionary"]),
        ({"name": "x", "cameras": [{"name": "A", "yaw": 0, "fov_deg": 70}]}, ["camera 0", "lacks 'yaw_deg'"]),
        (
            {"name": "x", "cameras": [{"name": "A", "yaw_deg": 0, "fov_deg": 70, "siz": 1}]},
            ["unknown key 'siz'", "Did you mean 'size'"],
        ),
        ({"name": "x", "cameras": [{"name": "A", "yaw_deg": 0, "fov_deg": 0}]}, ["A", "fov_deg 0"]),
        ({"name": "x", "cameras": [{"name": "A", "yaw_deg": "0", "fov_deg": 9}]}, ["A", "yaw_deg '0'"]),
        (
            {"name": "x", "cameras": [{"name": "A", "yaw_deg": 0, "fov_deg": 9, "size": [1600]}]},
            ["A", "[1600]", "(width, height)"],
        ),
    ],
)
def test_errors_name_the_thing(rig, words):
    with pytest.raises(PruneError) as error:
        load_rig(rig)
    for word in words:
        assert word in str(error.value)


def test_bad_json(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text("{")
    with pytest.raises(PruneError, match=r"broken\.json' is not JSON"):
        load_rig(path)


@pytest.mark.parametrize("ask", [NUSCENES.camera, NUSCENES.neighbours])
def test_unknown_camera(ask):
    with pytest.raises(PruneError, match=r"CAM_FORNT is not a camera of rig nuscenes.*'CAM_FRONT'"):
        ask("CAM_FORNT")
