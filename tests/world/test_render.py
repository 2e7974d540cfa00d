"""Pictures against the pinhole model: analytic cases, and brute-force rays and hulls in float64."""

import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch

from prune2drive.rig import NUSCENES, Camera, Rig
from prune2drive.world.generate import scene as generated
from prune2drive.world.generate import scenes
from prune2drive.world.parts import boxes, thing_boxes
from prune2drive.world.render import FAR, SIDE, directions, render
from prune2drive.world.scene import EYE, RIDDEN, Road, Scene, Thing

SHAPE = 9 / 16
EACH = pytest.mark.parametrize("camera", NUSCENES.cameras, ids=lambda camera: camera.name)
ONE = Rig("one", (Camera("CAM_FRONT", 0.0, 70.0),))


def of(*things, weather="day", name="test/0", road=None):
    return Scene(name, weather, road or Road(), things)


def at(camera, distance, kind="bus", turn=0.0, colour="red", **more):
    """A thing whose centre is ``distance`` away along the camera's axis turned left by ``turn`` degrees."""
    bearing = math.radians(camera.yaw_deg + turn)
    x, y = distance * math.cos(bearing), distance * math.sin(bearing)
    return Thing(kind, colour, x, y, math.radians(camera.yaw_deg), **more)


def seen(camera, *things, side=SIDE, **more):
    """Ids, depth and colours (H, W, 3) of one camera's picture, numpy."""
    frames = render([of(*things, **more)], Rig("one", (camera,)), side)
    return frames.ids[0, 0].numpy(), frames.depth[0, 0].numpy(), frames.images[0, 0].permute(1, 2, 0).numpy()


def edges(mask):
    """First row, one past the last row, first column and one past the last column of a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def tangent(camera):
    return math.tan(math.radians(camera.fov_deg) / 2)


def column(camera, tan, side=SIDE):
    return side / 2 * (1 - tan / tangent(camera))


def row(camera, tan, side=SIDE):
    return side / 2 * (1 - tan / tangent(camera) / SHAPE)


# Analytic cases. A bus is one box, 11 m long and 2.6 m wide, from 0.25 m to 3.2 m.


@EACH
def test_a_box_straight_ahead_is_where_the_pinhole_model_puts_it(camera):
    near = 9.0
    ids, depth, _ = seen(camera, at(camera, near + 5.5))
    mask = ids == 0
    expected = (
        row(camera, (3.2 - EYE) / near),
        row(camera, (0.25 - EYE) / near),
        column(camera, 1.3 / near),
        column(camera, -1.3 / near),
    )
    np.testing.assert_allclose(edges(mask), expected, atol=1.0)
    top, bottom, left, right = edges(mask)
    assert mask[top:bottom, left:right].all()  # the front face hides all others
    np.testing.assert_allclose(depth[mask], near, rtol=1e-3)


@EACH
def test_twice_as_far_is_half_as_large(camera):
    for side in (SIDE, 48):
        sizes = []
        for near in (6.0, 12.0, 24.0):
            top, bottom, left, right = edges(seen(camera, at(camera, near + 5.5), side=side)[0] == 0)
            sizes.append((bottom - top, right - left))
        for large, small in pairwise(sizes):
            np.testing.assert_allclose(small, np.array(large) / 2, atol=1.0)


@EACH
@pytest.mark.parametrize("share", [-0.93, -0.5, -0.2, 0.3, 0.7, 0.93])
def test_columns_follow_the_tangent(camera, share):
    turn = share * camera.fov_deg / 2
    mask = seen(camera, at(camera, 12.0, "light", turn, "green"))[0] == 0
    pole = mask[edges(mask)[1] - 12 :]  # below the head
    middle = np.flatnonzero(pole.any(0)).mean() + 0.5
    assert middle == pytest.approx(column(camera, math.tan(math.radians(turn))), abs=1.0)


def test_the_back_camera_sees_110_degrees():
    back, side_on = NUSCENES.camera("CAM_BACK"), NUSCENES.camera("CAM_BACK_LEFT")
    for turn in (-54, -40, 40, 54):
        assert (seen(back, at(back, 12.0, "light", turn, "green"))[0] == 0).any()
    for camera, beyond in ((back, 57), (side_on, 37)):
        for turn in (-beyond, beyond):
            assert not (seen(camera, at(camera, 12.0, "light", turn, "green"))[0] == 0).any()
    widths = [np.ptp(edges(seen(c, at(c, 15.0))[0] == 0)[2:]) for c in (side_on, back)]
    ratio = math.tan(math.radians(35)) / math.tan(math.radians(55))
    assert widths[1] == pytest.approx(widths[0] * ratio, abs=1.5)


@pytest.mark.parametrize(
    ("bearing", "names"),
    [
        (0, {"CAM_FRONT"}),
        (27, {"CAM_FRONT", "CAM_FRONT_LEFT"}),
        (-27, {"CAM_FRONT", "CAM_FRONT_RIGHT"}),
        (82, {"CAM_FRONT_LEFT", "CAM_BACK_LEFT"}),
        (-82, {"CAM_FRONT_RIGHT", "CAM_BACK_RIGHT"}),
        (135, {"CAM_BACK_LEFT", "CAM_BACK"}),
        (-135, {"CAM_BACK_RIGHT", "CAM_BACK"}),
        (180, {"CAM_BACK"}),
    ],
)
def test_between_two_cameras_both_see_it(bearing, names):
    ahead = Camera("ahead", 0.0, 70.0)
    frames = render([of(at(ahead, 12.0, "pedestrian", bearing))], side=72)
    counts = frames.visible(1)[0][0, :, 0]
    assert {name for name, count in zip(NUSCENES.names, counts, strict=True) if count} == names


def test_left_of_the_ego_is_left_in_the_picture_ahead_and_right_behind():
    left = Thing("car", "red", 12, 4), Thing("car", "red", -12, 4)
    front, back = NUSCENES.camera("CAM_FRONT"), NUSCENES.camera("CAM_BACK")
    assert edges(seen(front, left[0])[0] == 0)[3] < SIDE / 2
    assert edges(seen(back, left[1])[0] == 0)[2] > SIDE / 2


@EACH
def test_depth_of_ground_and_sky(camera):
    for side in (SIDE, 40):
        ids, depth, _ = seen(camera, side=side)
        up = tangent(camera) * SHAPE * (1 - (2 * np.arange(side) + 1) / side)
        below = np.minimum(up, -1e-9)
        expected = np.where((up < 0) & (EYE / -below < 400), EYE / -below, FAR)
        np.testing.assert_allclose(depth, np.tile(expected[:, None], side), rtol=1e-4)
        assert (ids == -1).all()
        assert (depth[: side // 2] == FAR).all()


def test_depth_of_a_slanted_wall():
    """A long bus beside us, alongside a camera's axis: its side is the plane y = 2."""
    camera = NUSCENES.camera("CAM_FRONT")
    ids, depth, _ = seen(camera, Thing("bus", "red", 9, 2 + 1.3, 0.0))
    across = (tangent(camera) * (1 - (2 * np.arange(SIDE) + 1) / SIDE))[None].repeat(SIDE, 0)
    wall = (ids == 0) & (depth > 3.5 + 1e-3)  # without the end face
    assert wall.sum() > 500
    np.testing.assert_allclose(depth[wall], 2 / across[wall], rtol=1e-3)


def test_the_nearer_hides_the_farther():
    camera = NUSCENES.camera("CAM_FRONT")
    bus, car, beside = Thing("bus", "blue", 14, 0), Thing("car", "red", 30, 0), Thing("car", "red", 30, 5)
    for order in ((bus, car, beside), (beside, car, bus), (car, bus, beside)):
        ids, depth, _ = seen(camera, *order)
        assert set(np.unique(ids)) == {-1, order.index(bus), order.index(beside)}
        assert depth[ids == order.index(bus)].max() < depth[ids == order.index(beside)].min()
    ids, _, _ = seen(camera, car, beside)
    assert set(np.unique(ids)) == {-1, 0, 1}


# Brute force in float64.


def hull(points):
    """Corners of the convex hull of 2-D points, counter-clockwise (Andrew's monotone chain)."""
    points = sorted(map(tuple, points))

    def half(points):
        chain = []
        for p in points:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2:]
                if (bx - ax) * (p[1] - ay) - (by - ay) * (p[0] - ax) > 0:
                    break
                chain.pop()
            chain.append(p)
        return chain[:-1]

    return half(points) + half(points[::-1])


def inside_hull(points, side):
    v, u = np.mgrid[:side, :side] + 0.5
    corners = hull(points)
    mask = np.ones((side, side), bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        mask &= (bx - ax) * (v - ay) - (by - ay) * (u - ax) >= 0
    return mask


def projected(camera, box, side):
    """Column and row of a box's eight corners; None if one is behind the camera."""
    x, y, z, cos, sin, length, width, height = box[:8]
    yaw = math.radians(camera.yaw_deg)
    points = []
    for i, j, k in np.ndindex(2, 2, 2):
        along, across = (2 * i - 1) * length, (2 * j - 1) * width
        place = complex(x, y) + complex(cos, sin) * complex(along, across)
        turned = place * complex(math.cos(yaw), -math.sin(yaw))
        if turned.real < 0.2:
            return None
        up = (z + (2 * k - 1) * height - EYE) / turned.real
        points.append((column(camera, turned.imag / turned.real, side), row(camera, up, side)))
    return points


def test_silhouettes_are_convex_hulls_of_projected_corners():
    rng, checked, wrong, pixels = random.Random(1), 0, 0, 0
    side = 72
    for number in range(40):
        far, turn = rng.uniform(5, 25), rng.uniform(-math.pi, math.pi)
        thing = Thing(
            rng.choice(("bus", "pedestrian", "truck", "car", "light")),
            "green",
            far * math.cos(turn),
            far * math.sin(turn),
            rng.uniform(-4, 4),
        )
        frames = render([of(thing, name=f"test/{number}")], side=side)
        for v, camera in enumerate(NUSCENES.cameras):
            corners = [projected(camera, box, side) for box in thing_boxes(thing, 0)]
            if any(c is None for c in corners):
                continue
            expected = np.any([inside_hull(c, side) for c in corners], axis=0)
            found = frames.ids[0, v].numpy() == 0
            wrong += int((expected != found).sum())
            pixels += side * side
            checked += int(expected.any())
    assert checked > 40
    assert wrong <= 0.0005 * pixels


def traced(scene, camera, side):
    """Ids and depth by meeting every ray with all six faces of every box, one plane after another."""
    step = 1 - (2 * np.arange(side) + 1) / side
    up, across = np.meshgrid(tangent(camera) * SHAPE * step, tangent(camera) * step, indexing="ij")
    yaw = math.radians(camera.yaw_deg)
    ray = np.stack(
        [math.cos(yaw) - across * math.sin(yaw), math.sin(yaw) + across * math.cos(yaw), up], -1
    ).reshape(-1, 3)
    with np.errstate(divide="ignore", invalid="ignore"):
        best = np.where((ray[:, 2] < 0) & (EYE / -ray[:, 2] < 400), EYE / -ray[:, 2], FAR)
    ids = np.full(len(ray), -1)
    for box in boxes(scene):
        centre, half = np.array(box[:3]) - (0, 0, EYE), np.array(box[5:8])
        frame = np.array([[box[3], box[4], 0], [-box[4], box[3], 0], [0, 0, 1]])
        start, along = -frame @ centre, ray @ frame.T
        for axis in range(3):
            others = [n for n in range(3) if n != axis]
            for sign in (-1, 1):
                with np.errstate(divide="ignore", invalid="ignore"):
                    t = (sign * half[axis] - start[axis]) / along[:, axis]
                    spot = start[others] + t[:, None] * along[:, others]
                    on_face = (np.abs(spot) <= half[others]).all(1)
                    closer = on_face & (t > 0) & (t < best)
                best[closer], ids[closer] = t[closer], int(box[12])
    return ids.reshape(side, side), best.reshape(side, side)


@pytest.mark.parametrize("number", [0, 3, 7, 12])
def test_scenes_agree_with_brute_force_rays(number):
    scene, side = generated("validation", number), 64
    frames = render([scene], side=side)
    for v, camera in enumerate(NUSCENES.cameras):
        ids, depth = traced(scene, camera, side)
        same = frames.ids[0, v].numpy() == ids
        assert (~same).mean() <= 0.005, camera.name
        close = np.isclose(frames.depth[0, v].numpy(), depth, rtol=1e-3)
        assert (~close).mean() <= 0.005, camera.name


@EACH
def test_directions_are_unit_depth_rays(camera):
    v, side = NUSCENES.cameras.index(camera), 16
    rays = directions(NUSCENES, side)[v].double().numpy()
    yaw = math.radians(camera.yaw_deg)
    np.testing.assert_allclose(rays[:, :2] @ [math.cos(yaw), math.sin(yaw)], 1, rtol=1e-6)
    grid = rays.reshape(side, side, 3)
    left = grid @ [-math.sin(yaw), math.cos(yaw), 0]
    assert np.degrees(np.arctan(left[0, 0] / (1 - 1 / side))) == pytest.approx(camera.fov_deg / 2)
    np.testing.assert_allclose(grid[:, :, 2], -grid[::-1, :, 2], atol=1e-6)
    np.testing.assert_allclose(left, -left[:, ::-1], atol=1e-6)


# The same everywhere, in every company.


def same(a, b):
    return all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("images", "ids", "depth", "lamps")
    )


def test_a_picture_does_not_depend_on_its_batch():
    some = [*scenes("validation", 3), of(name="test/empty", weather="rain")]
    together = render(some, side=48)
    assert same(together, render(some, side=48))
    for b, scene in enumerate(some):
        alone = render([scene], side=48)
        for name in ("images", "ids", "depth", "lamps"):
            assert torch.equal(getattr(together, name)[b], getattr(alone, name)[0]), name
    for v, camera in enumerate(NUSCENES.cameras):  # nor what it shows on which other cameras there are
        alone = render(some[:1], Rig("one", (camera,)), 48)
        assert torch.equal(alone.ids[0, 0], together.ids[0, v]), camera.name


def test_frames_have_the_stated_types_and_shapes():
    frames = render(list(scenes("train", 2)), ONE, 24)
    assert (frames.images.shape, frames.images.dtype) == ((2, 1, 3, 24, 24), torch.uint8)
    assert (frames.ids.shape, frames.ids.dtype) == ((2, 1, 24, 24), torch.int16)
    assert (frames.depth.shape, frames.depth.dtype) == ((2, 1, 24, 24), torch.float32)
    assert (frames.lamps.shape, frames.lamps.dtype) == ((2, 1, 24, 24), torch.bool)
    assert render([], ONE, 24).images.shape == (0, 1, 3, 24, 24)


@pytest.mark.parametrize("side", [1, 5, 7, 9])
def test_tiny_pictures(side):
    assert render([of(weather="rain")], ONE, side).images.shape == (1, 1, 3, side, side)


FINGERPRINTS = {
    "train/0": (  # fog
        [
            [144.65, 148.20, 154.39],
            [131.91, 136.02, 140.86],
            [156.91, 158.50, 160.14],
            [130.07, 134.33, 135.83],
            [142.00, 144.34, 143.47],
            [146.60, 150.38, 151.67],
        ],
        [6, 0, 45, 76, 6, 4, 282, 15, 2, 9, 30, 55, 180, 62, 26, 35, 398, 0, 24],
        115,
    ),
    "validation/3": (  # dusk
        [
            [120.46, 100.78, 65.66],
            [91.96, 92.83, 74.78],
            [128.33, 105.28, 94.84],
            [69.13, 64.98, 92.95],
            [23.35, 41.25, 128.93],
            [103.94, 95.21, 86.68],
        ],
        [0, 0, 3727, 10, 2, 0, 0, 1, 13, 0, 0, 18, 7, 4, 0, 2225, 299, 8],
        147,
    ),
    "test/5": (  # rain
        [
            [97.59, 100.99, 104.70],
            [102.30, 99.58, 97.70],
            [106.80, 105.75, 104.48],
            [89.87, 89.18, 85.11],
            [105.37, 106.53, 102.12],
            [88.64, 87.03, 78.11],
        ],
        [741, 51, 0, 6, 4, 1, 7, 46, 76, 529, 25, 7, 7, 514, 168, 53, 1, 42, 42, 18],
        431,
    ),
}
"""Of three scenes, 48 pixels a side: mean red, green and blue of every camera, pixels of every thing over
all cameras, lamp pixels. Made on x86-64 with torch 2.13; whoever changes how things look makes them anew."""


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_pictures_do_not_drift(name):
    split, number = name.split("/")
    scene = generated(split, int(number))
    frames = render([scene], side=48)
    colours, pixels, lamps = FINGERPRINTS[name]
    np.testing.assert_allclose(frames.images[0].double().mean((2, 3)), colours, atol=0.5)
    found, lit = frames.visible(len(scene.things))
    np.testing.assert_allclose(found[0].sum(0), pixels, atol=4)
    assert int(lit.sum()) == pytest.approx(lamps, abs=4)


# Colours.


def mean_colour(*things, camera=ONE.cameras[0], lamps=False, **more):
    """Mean colour of thing 0 in [0, 255], with or without its lamps."""
    frames = render([of(*things, **more)], Rig("one", (camera,)))
    mask = (frames.ids[0, 0] == 0) & (frames.lamps[0, 0] if lamps else ~frames.lamps[0, 0])
    assert mask.sum() > 20
    return frames.images[0, 0].double()[:, mask].mean(1).numpy()


def test_a_red_car_looks_red_and_darker_at_night():
    car = Thing("bus", "red", 14, 0), Thing("car", "red", 8, 3, math.pi / 2)
    for thing in car:
        r, g, b = mean_colour(thing)
        assert r > 2 * max(g, b)
        assert mean_colour(thing, weather="night").sum() < 0.6 * mean_colour(thing).sum()
        assert mean_colour(thing, weather="dusk").sum() < mean_colour(thing).sum()
    blue = mean_colour(Thing("bus", "blue", 14, 0))
    assert blue[2] > 1.8 * blue[0]


@pytest.mark.parametrize("kind", RIDDEN)
@pytest.mark.parametrize("weather", ["day", "night"])
def test_lamps_tell_ahead_behind_and_rest(kind, weather):
    x = 12 if kind == "bus" else 8
    towards = Thing(kind, "green", x, 0, math.pi, True)
    away = Thing(kind, "green", x, 0, 0.0, True)
    rest = Thing(kind, "green", x, 0)
    r, g, b = mean_colour(towards, lamps=True, weather=weather)  # white, a little blue
    assert min(r, g, b) > 100 and abs(g - b) < 12 and r < g
    r, g, b = mean_colour(away, lamps=True, weather=weather)  # crimson
    assert r > 150 and g < 70 and 60 < b < 130
    r, g, b = mean_colour(rest, lamps=True, weather=weather)  # amber, whichever way it stands
    assert r > 180 and 140 < g < 210 and b < 70
    turned = Thing(kind, "green", x, 0, math.pi)
    np.testing.assert_allclose(mean_colour(turned, lamps=True, weather=weather), (r, g, b), atol=3)


@pytest.mark.parametrize("kind", RIDDEN)
def test_lamps_show_from_the_side(kind):
    across = Thing(kind, "green", 12, 0, math.pi / 2, True)  # drives to the left
    frames = render([of(across)], ONE)
    lamps, picture = frames.lamps[0, 0].numpy(), frames.images[0, 0].int().numpy()
    left, right = lamps.copy(), lamps.copy()
    left[:, SIDE // 2 :] = right[:, : SIDE // 2] = False
    assert left.sum() > 3 and right.sum() > 3
    assert picture[1][left].mean() > 180 > 80 > picture[1][right].mean()


@pytest.mark.parametrize("kind", ["car", "truck", "bus"])
@pytest.mark.parametrize("end", [0.0, math.pi])
def test_two_equal_lamps_show_at_either_end(kind, end):
    """As many pixels left and right of the middle, and nothing of the thing hides a part of them."""
    thing = Thing(kind, "green", 12, 0, end, True)
    frames = render([of(thing)], ONE, 2 * SIDE)
    lamps, depth = frames.lamps[0, 0], frames.depth[0, 0]
    left, right = lamps[:, :SIDE], lamps[:, SIDE:]
    assert torch.equal(left, right.flip(1)) and left.sum() > 30
    rows, columns = (left & (depth[:, :SIDE] < 12 - thing.size[0] / 2 + 0.05)).nonzero(as_tuple=True)
    high, wide = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    assert len(rows) == high * wide  # a full rectangle


@pytest.mark.parametrize("turn", range(0, 360, 30))
def test_a_truck_shows_its_lamps_from_all_around(turn):
    truck = Thing("truck", "green", 14, 0, math.radians(turn), True)
    frames = render([of(truck)], ONE)
    lamps, red = frames.lamps[0, 0], frames.images[0, 0, 0].int() - frames.images[0, 0, 1].int()
    assert lamps.sum() >= 24
    crimson = lamps & (red > 100)
    assert (crimson.sum() > 6) == (turn not in (150, 180, 210))
    assert ((lamps & (red < 0)).sum() > 6) == (turn not in (330, 0, 30))


def test_only_vehicles_have_lamps():
    for kind in ("pedestrian", "cone", "light"):
        assert not render([of(Thing(kind, "red", 8, 0))], ONE).lamps.any()


def test_traffic_lights_shine_at_night():
    for colour, channel in (("red", 0), ("green", 1)):
        thing = Thing("light", colour, 10, 0)
        ids, _, picture = seen(ONE.cameras[0], thing, weather="night")
        assert picture[ids == 0][:, channel].max() > 200
        others = [n for n in range(3) if n != channel]
        brightest = picture[ids == 0][picture[ids == 0][:, channel].argmax()]
        assert brightest[others].max() < 130


def test_fog_fades_with_distance():
    def saturation(x, weather):
        colour = mean_colour(Thing("bus", "red", x, 0), weather=weather)
        return (colour.max() - colour.min()) / 255

    foggy = [saturation(x, "fog") for x in (8, 14, 22, 32)]
    assert all(b < 0.8 * a for a, b in pairwise(foggy))
    clear = [saturation(x, "day") for x in (8, 14, 22, 32)]
    assert clear[-1] > 0.8 * clear[0] > foggy[-1]


@pytest.mark.parametrize("weather", ["day", "dusk", "night", "rain", "fog"])
def test_streaks_fall_only_when_it_rains(weather):
    _, depth, picture = seen(NUSCENES.camera("CAM_BACK"), weather=weather)
    sky = picture[:20].astype(float).mean(-1)
    assert (depth[:20] == FAR).all()
    bright = (sky - np.median(sky, 1, keepdims=True) > 25).mean()
    assert (0.03 < bright < 0.09) if weather == "rain" else bright == 0


def test_streaks_are_their_own_in_every_scene():
    frames = render([of(name=f"test/{n}", weather="rain") for n in (1, 2)], ONE)
    skies = frames.images[:, 0, 0, :20].int()
    wet = skies - skies.float().median(-1, keepdim=True).values > 25
    assert (wet[0] & wet[1]).sum() < 0.5 * wet[0].sum()


def test_lamps_pierce_the_fog():
    thing = Thing("bus", "blue", 25, 0, 0.0, True)
    body, lamps = (np.ptp(mean_colour(thing, weather="fog", lamps=lit)) for lit in (False, True))
    clear_body, clear_lamps = (np.ptp(mean_colour(thing, lamps=lit)) for lit in (False, True))
    assert lamps / clear_lamps > 1.4 * body / clear_body


def test_grain_is_its_own_in_every_scene_and_camera():
    frames = render([of(name="test/1"), of(name="test/2")], side=48)
    skies = frames.images[:, :, :, :16].flatten(0, 1)
    assert len({sky.numpy().tobytes() for sky in skies}) == 12
    assert (frames.images[0, 0].int() - frames.images[1, 0].int()).abs().max() <= 11


def test_the_road_bends_and_is_marked():
    camera = NUSCENES.camera("CAM_FRONT")

    def grey(road):
        _, depth, picture = seen(camera, road=road)
        picture = picture.astype(int)
        line = np.flatnonzero(depth[:, 0] < 22)[0]
        dark = np.flatnonzero(np.ptp(picture[line], axis=-1) + picture[line].max(-1) < 110)
        return dark.mean()

    middle = grey(Road(0.0, 1, 1))
    assert grey(Road(0.02, 1, 1)) < middle - 10
    assert grey(Road(-0.02, 1, 1)) > middle + 10


# Counting.


def test_visible_counts_pixels():
    some = list(scenes("train", 3))
    frames = render(some, side=48)
    most = max(len(scene.things) for scene in some)
    pixels, lamps = frames.visible(most)
    assert pixels.dtype == lamps.dtype == torch.int64 and pixels.shape == lamps.shape == (3, 6, most)
    for b, v in np.ndindex(3, 6):
        ids, lit = frames.ids[b, v].numpy().ravel(), frames.lamps[b, v].numpy().ravel()
        np.testing.assert_array_equal(pixels[b, v], np.bincount(ids + 1, minlength=most + 1)[1:])
        np.testing.assert_array_equal(lamps[b, v], np.bincount(ids[lit] + 1, minlength=most + 1)[1:])
        assert (lamps[b, v] <= pixels[b, v]).all()
    assert lamps.sum() > 0
    assert not (frames.lamps & (frames.ids < 0)).any()
    assert render([of()], ONE, 24).visible(0)[0].shape == (1, 1, 0)
    assert render([], ONE, 24).visible(3)[0].shape == (0, 1, 3)


def test_visible_counts_all_or_none():
    things = Thing("car", "red", 8, 2), Thing("car", "blue", 8, -2)
    frames = render([of(*things)], ONE, 24)
    assert frames.visible(2)[0].min() > 0 and frames.visible(5)[0][..., 2:].sum() == 0
    for few in (0, 1):
        with pytest.raises(ValueError, match=f"thing 1 is in the pictures; the first {few} cannot"):
            frames.visible(few)
