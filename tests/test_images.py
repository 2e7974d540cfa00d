"""Reading frames: every doubt about which picture belongs to which camera is an error."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from prune2drive import PruneError
from prune2drive.images import load_frame
from prune2drive.rig import NUSCENES

CAMERAS = NUSCENES.names
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
real = pytest.mark.skipif(
    not (DATA / "frames.json").is_file(),
    reason="needs real frames in ../shared/data, which are not redistributed",
)


def picture(path: Path, colour=(10, 20, 30), size=(32, 18), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    for i, camera in enumerate(CAMERAS):
        picture(tmp_path / "six" / f"n008-2018__{camera}__15372910{i}.png", (40 * i, 0, 0))
    return tmp_path / "six"


def write(path: Path, data) -> Path:
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def refuse(match: str, path, rig="nuscenes", **options):
    with pytest.raises(PruneError, match=match):
        load_frame(path, rig, **options)


def test_folder_gives_each_camera_its_own_picture_in_rig_order(folder):
    (folder / "notes.txt").write_text("not a picture")
    frame = load_frame(folder, "nuscenes")
    assert tuple(frame) == CAMERAS
    assert frame.id == "six"
    assert [frame[c].getpixel((0, 0))[0] for c in CAMERAS] == [40 * i for i in range(6)]
    assert all(f"__{c}__" in frame.paths[c].name for c in CAMERAS)


@pytest.mark.parametrize(
    "name",
    ["CAM_FRONT.png", "cam_front.PNG", "17_CAM_FRONT.png", "x__CAM_FRONT_17.png", "a-1-CAM_FRONT.b.png"],
)
def test_names_that_carry_the_camera_as_a_part(tmp_path, name):
    picture(tmp_path / name, format="PNG")
    assert list(load_frame(tmp_path, ["CAM_FRONT"])) == ["CAM_FRONT"]


@pytest.mark.parametrize(
    "name", ["CAM_FRONT_LEFT.png", "CAM_FRONTAL.png", "XCAM_FRONT.png", "SIDE_CAM_FRONT.png"]
)
def test_names_that_only_look_like_the_camera(tmp_path, name):
    picture(tmp_path / name)
    refuse("belongs to no camera", tmp_path, rig=["CAM_FRONT"])


def test_one_folder_per_camera(tmp_path):
    for camera in CAMERAS:
        picture(tmp_path / camera / "1533280036187525.png")
    (tmp_path / "LIDAR_TOP").mkdir()
    assert tuple(load_frame(tmp_path, "nuscenes")) == CAMERAS
    picture(tmp_path / "CAM_BACK" / "1533280036187526.png")
    refuse("CAM_BACK: 2 pictures", tmp_path)


def test_missing_double_and_strange_pictures(folder):
    next(folder.glob("*__CAM_BACK__*")).rename(folder / "CAM_BACK_LEFT.png")
    refuse("CAM_BACK_LEFT: 2 pictures", folder)
    (folder / "CAM_BACK_LEFT.png").rename(folder / "CAM_TOP.png")
    refuse("'CAM_TOP.png'.*no camera of the rig", folder)
    (folder / "CAM_TOP.png").unlink()
    refuse("CAM_BACK: no picture.*5 of 6", folder)
    assert list(load_frame(folder, "nuscenes", cameras=["CAM_FRONT_LEFT", "CAM_FRONT"])) == [
        "CAM_FRONT_LEFT",
        "CAM_FRONT",
    ]


def test_one_file_with_two_cameras_in_its_name(tmp_path):
    picture(tmp_path / "CAM_FRONT__CAM_BACK.png")
    refuse("names of 2 cameras", tmp_path)


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: {"id": "frame", "images": d}])
def test_json_mapping(folder, wrap):
    files = {p.name.split("__")[1]: f"six/{p.name}" for p in folder.iterdir()}
    assert len(load_frame(write(folder.parent / "frame.json", wrap(files)), "nuscenes")) == 6
    assert load_frame(folder.parent / "frame.json", "nuscenes").id == "frame"


def test_frames_are_chosen_by_id_or_index(folder):
    files = {p.name.split("__")[1]: f"six/{p.name}" for p in folder.iterdir()}
    path = write(
        folder.parent / "f.json", {"frames": [{"id": "a", "images": files}, {"id": "b", "images": files}]}
    )
    assert load_frame(path, "nuscenes", frame="b").id == "b"
    assert load_frame(path, "nuscenes", frame=0).id == "a"
    assert load_frame(path, "nuscenes", frame="1").id == "b"
    refuse("holds 2 frames.*--frame", path)
    refuse("frame 'c' is not in", path, frame="c")
    refuse("frame 2 is not in", path, frame=2)
    refuse("frame '-1' is not in", path, frame="-1")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "holds a JSON list"),
        ('{"frames": [1]}', '"frames" must be a list'),
        ('{"frames": []}', '"frames" must be a list'),
        ('{"images": []}', "must map camera to path"),
        ('{"CAM_FRNT": "a.png"}', "camera 'CAM_FRNT' is not in the rig.*CAM_FRONT"),
        ('{"CAM_FRONT": "a.png", "CAM_FRONT": "b.png"}', "CAM_FRONT: written twice"),
        ('{"CAM_FRONT": 3}', "CAM_FRONT: 3 .* is not a path"),
        ('{"CAM_FRONT": "/etc/a.png"}', "CAM_FRONT: /etc/a.png is absolute"),
        ('{"CAM_FRONT": "../a.png"}', r"CAM_FRONT: .*\.\./a.png leads outside"),
        ('{"CAM_FRONT": "link/a.png"}', "CAM_FRONT: .*link/a.png leads outside"),
        ('{"CAM_FRONT": "none.png"}', "CAM_FRONT: no such file"),
    ],
)
def test_wrong_json(tmp_path, data, message):
    (tmp_path / "root").mkdir()
    picture(tmp_path / "a.png")
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    refuse(message, write(tmp_path / "root" / "f.json", data), cameras=["CAM_FRONT"])


def test_link_out_of_the_folder(tmp_path):
    picture(tmp_path / "secret.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "CAM_FRONT.png").symlink_to(tmp_path / "secret.png")
    refuse("CAM_FRONT: .* leads outside", tmp_path / "in", rig=["CAM_FRONT"])


@pytest.mark.parametrize(
    ("name", "keep"), [("CAM_FRONT.jpg", 0.6), ("CAM_FRONT.png", 0.6), ("CAM_FRONT.jpg", 0.99)]
)
def test_truncated_file_names_camera_and_remedy(tmp_path, name, keep):
    noise = Image.effect_noise((320, 180), 90).convert("RGB")
    noise.save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    cut = int(len(data) * keep)
    (tmp_path / name).write_bytes(data[:cut])
    refuse(
        rf"CAM_FRONT: .*{re.escape(name)} is truncated .* byte {cut} .*Re-export", tmp_path, rig=["CAM_FRONT"]
    )


@pytest.mark.parametrize(("content", "message"), [(b"", "an empty file"), (b"hello", "not a JPEG, PNG")])
def test_files_that_are_no_picture(tmp_path, content, message):
    (tmp_path / "CAM_FRONT.jpg").write_bytes(content)
    refuse(f"CAM_FRONT: .*CAM_FRONT.jpg is {message}", tmp_path, rig=["CAM_FRONT"])


def test_bombs_and_deep_pixels_are_refused(tmp_path):
    Image.new("1", (9000, 9000)).save(tmp_path / "CAM_FRONT.png")
    refuse("CAM_FRONT: .*9000x9000, more than 64 megapixels", tmp_path, rig=["CAM_FRONT"])
    Image.new("1", (10000, 10000)).save(tmp_path / "CAM_FRONT.png")  # Pillow's own limit speaks first
    refuse("CAM_FRONT: .*too large", tmp_path, rig=["CAM_FRONT"])
    Image.new("I;16", (4, 4)).save(tmp_path / "CAM_FRONT.png")
    refuse("more than 8 bits", tmp_path, rig=["CAM_FRONT"])


def test_grey_palette_and_rotated_pictures_become_upright_rgb(tmp_path):
    Image.new("P", (4, 2)).save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter turn clockwise
    Image.new("L", (8, 4)).save(tmp_path / "b.jpg", exif=exif)
    frame = load_frame(tmp_path, ["a", "b"])
    assert [(p.mode, p.size) for p in frame.values()] == [("RGB", (4, 2)), ("RGB", (4, 8))]


def test_wrong_arguments(tmp_path):
    refuse("no such folder or file", tmp_path / "nowhere")
    refuse("camera 'CAM_FRNT' is not in the rig", tmp_path, cameras=["CAM_FRNT"])
    refuse("frame=1 needs a JSON file", tmp_path, frame=1)


@real
@pytest.mark.parametrize("source", ["drivemm/six_cam", "mmdet3d", "frames.json"])
def test_real_frames(source):
    frame = load_frame(DATA / source, "nuscenes", frame=4 if source.endswith("json") else None)
    assert tuple(frame) == CAMERAS
    assert {p.size for p in frame.values()} == {(1600, 900)}
    assert all(f"__{c}__" in frame.paths[c].name for c in frame)


@real
def test_real_folder_with_several_moments():
    refuse("CAM_BACK: 9 pictures", DATA / "drivelm" / "nuscenes" / "samples")
