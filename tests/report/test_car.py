"""The car from above: wedges are true to the rates and the cameras, and labels stand apart."""

import math

import pytest
from svg_helpers import SVG, assert_apart_and_inside, classed, drawn, outline

from prune2drive.report.car import rates_svg
from prune2drive.rig import NUSCENES, Camera, Rig

CAMERAS = list(NUSCENES.names)


def test_wedges_look_where_the_cameras_do_and_grow_with_the_rate():
    rates = dict(zip(CAMERAS, (0.3, 0.1, 0.2, 0.05, 0.0, 0.15), strict=True))
    root = drawn(rates_svg(rates, NUSCENES, 0.1))
    fans = classed(root, "path", "fan")
    assert [fan[0].text for fan in fans] == [f"{n}: {100 * r:.1f}%" for n, r in rates.items()]
    reach = [max(math.hypot(*corner) for corner in outline(fan)) for fan in fans]
    assert sorted(rates.values()) == [r for _, r in sorted(zip(reach, rates.values(), strict=True))]
    grown = [r - min(reach) for r in reach]
    assert grown[0] / grown[1] == pytest.approx(3, rel=0.02)  # as long as the rate is high
    assert float(classed(root, "circle", "ring")[0].get("r")) == pytest.approx(reach[1], abs=0.1)
    for fan, camera in zip(fans, NUSCENES.cameras, strict=True):
        (ax, ay), (bx, by) = outline(fan)[:2]
        ends = [math.degrees(math.atan2(-x, -y)) for x, y in ((ax, ay), (bx, by))]
        assert (ends[0] - ends[1]) % 360 == pytest.approx(camera.fov_deg, abs=0.3)
        assert (ends[0] - camera.fov_deg / 2 - camera.yaw_deg + 180) % 360 == pytest.approx(180, abs=0.3)
    assert "uniform 10.0%, outer edge 30.0%" in "".join(root.itertext())
    assert not classed(drawn(rates_svg(rates, NUSCENES)), "circle", "ring")


def test_six_cameras_have_labels_apart_inside_and_on_their_side():
    root = drawn(rates_svg(dict.fromkeys(CAMERAS, 1.0), NUSCENES, 1.0))
    assert_apart_and_inside(root)
    _, _, width, height = map(float, root.get("viewBox").split())
    assert width <= 410 and height <= 400  # readable on a phone
    at = {node.text: (float(node.get("x", 0)), float(node.get("y"))) for node in root.iter(f"{SVG}text")}
    assert at["CAM_FRONT"][1] < -110 and at["CAM_BACK"][1] > 110
    sides = [n for n in root.iter(f"{SVG}text") if n.text in ("LEFT", "RIGHT")]
    assert [(n.text, float(n.get("x")) < 0) for n in sides] == [("LEFT", True)] * 2 + [("RIGHT", False)] * 2


@pytest.mark.parametrize(
    "rig",
    [
        Rig("one", (Camera("all around", 0.0, 360.0),)),
        Rig("pair", (Camera("wide lens", 0.0, 120.0), Camera("tele lens", 0.0, 30.0))),
        Rig.from_names([f"A_LONG_NAME_OF_CAMERA_{i}" for i in range(12)]),
        Rig.from_names([f"c{i}" for i in range(30)]),
        Rig("crowd", tuple(Camera(f"CAM_{i}_LEFT_SIDE", 60.0 + i, 40.0) for i in range(9))),
    ],
)
def test_other_rigs_keep_their_labels_apart(rig):
    assert_apart_and_inside(drawn(rates_svg(dict.fromkeys(rig.names, 0.25), rig, 0.5)))


def test_cameras_of_no_rig_stand_evenly():
    for rig in (None, NUSCENES):
        root = drawn(rates_svg({"a": 0.2, "b": 0.2, "c": 0.2, "d": 0.2}, rig))
        middles = [
            [sum(axis) / 2 for axis in zip(*outline(fan)[:2], strict=True)]
            for fan in classed(root, "path", "fan")
        ]
        angles = [math.degrees(math.atan2(-x, -y)) % 360 for x, y in middles]
        assert angles == pytest.approx([0, 90, 180, 270], abs=0.2)
    drawn(rates_svg({}, None))
    drawn(rates_svg({"a": 0.0}, None, 0.0))
