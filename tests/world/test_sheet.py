"""The contact sheet: which scenes, which column is which camera, and what goes wrong."""

import runpy
import sys

import numpy as np
import pytest
from PIL import Image

from prune2drive import PruneError
from prune2drive.rig import NUSCENES
from prune2drive.world import sheet as module
from prune2drive.world.generate import scene, scenes
from prune2drive.world.render import render
from prune2drive.world.scene import WEATHERS
from prune2drive.world.sheet import HEIGHT, WIDTH, main, pick, sheet

COLUMNS = ("CAM_BACK_LEFT", "CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK")


def size(rows):
    header, margin, gap = module._HEADER, module._MARGIN, module._GAP
    return margin + 6 * (WIDTH + gap), header + rows * (HEIGHT + gap)


def cell(page, row, column):
    left = module._MARGIN + column * (WIDTH + module._GAP)
    top = module._HEADER + row * (HEIGHT + module._GAP)
    return page.crop((left, top, left + WIDTH, top + HEIGHT))


def test_pick_takes_the_first_scenes_of_every_weather():
    picked = pick("train", WEATHERS, 2)
    assert [s.weather for s in picked] == [weather for weather in WEATHERS for _ in range(2)]
    some = list(scenes("train", 60))
    assert pick("train", ("fog",), 3) == [s for s in some if s.weather == "fog"][:3]
    with pytest.raises(PruneError, match="0 scenes"):
        pick("train", WEATHERS, 0)
    with pytest.raises(PruneError, match="no split 'trian'"):
        pick("trian", WEATHERS, 1)


def test_columns_are_the_cameras_from_left_to_back():
    drawn = [scene("validation", 3), scene("validation", 4)]
    page = sheet(drawn)
    assert page.mode == "RGB" and page.size == size(2) and pytest.approx(16 / 9) == WIDTH / HEIGHT
    frames = render(drawn)
    for row in range(2):
        for column, name in enumerate(COLUMNS):
            found = np.asarray(cell(page, row, column), float).mean((0, 1))
            image = frames.images[row, NUSCENES.names.index(name)].double()
            np.testing.assert_allclose(found, image.mean((1, 2)), atol=1.5)
    ink = np.asarray(page, int).sum(-1) > 300
    assert ink[: module._HEADER, module._MARGIN :].any()
    for row in range(2):
        top = module._HEADER + row * (HEIGHT + module._GAP)
        assert ink[top : top + HEIGHT, : module._MARGIN - 4].any()
        assert not ink[top : top + HEIGHT, module._MARGIN - 4 : module._MARGIN].any()  # the label fits


def test_command(tmp_path):
    out = tmp_path / "new" / "sheet.png"
    assert main(["--out", str(out), "--split", "test", "--scenes", "1", "--weather", "night"]) == 0
    with Image.open(out) as page:
        assert page.size == size(1)
        expected = sheet(pick("test", ("night",), 1))
        assert page.tobytes() == expected.tobytes()


def test_default_is_two_scenes_of_every_weather(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "sheet", lambda drawn: asked.extend(drawn) or Image.new("RGB", (2, 2)))
    assert main(["--out", str(tmp_path / "a.jpg")]) == 0
    assert asked == pick("train", WEATHERS, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scenes", "0"], "0 scenes make no sheet"),
        (["--split", "dev"], "invalid choice: 'dev'"),
        (["--weather", "snow"], "invalid choice: 'snow'"),
        (["--out", "sheet.xyz"], "end it in .png"),
    ],
)
def test_wrong_use(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as stopped:
        main(["--out", str(tmp_path / "sheet.png"), *options])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_unwritable_target(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "file" / "sheet.png"), "--scenes", "1", "--weather", "day"])
    assert "file" in capsys.readouterr().err


def test_it_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sheet", "--help"])
    monkeypatch.delitem(sys.modules, "prune2drive.world.sheet")
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("prune2drive.world.sheet", run_name="__main__")
    assert stopped.value.code == 0 and "--weather" in capsys.readouterr().out
