"""The boxes that things are built of: they fill the thing's size, turn with it, and keep its colour."""

import math

import numpy as np
import pytest

from prune2drive.world.generate import scene
from prune2drive.world.parts import BODY, BUILDING, BUS, COLUMNS, LAMP, RGB, RIDER, boxes, thing_boxes
from prune2drive.world.scene import COLOURS, KINDS, LIGHT_COLOURS, RIDDEN, SIZE, Thing


def of(kind, **more):
    return np.array(thing_boxes(Thing(kind, "red", 0, 0, **more), 3))


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_stay_inside_the_footprint_and_reach_the_height(kind):
    rows = of(kind)
    low, high = (rows[:, :3] - rows[:, 5:8]).min(0), (rows[:, :3] + rows[:, 5:8]).max(0)
    length, width, height = SIZE[kind]
    np.testing.assert_allclose(high[:2], -low[:2], atol=1e-9)
    assert high[1] == pytest.approx(width / 2)
    # A pedestrian is drawn 0.4 m deep on a footprint of 0.6 m; everybody else is as long as said.
    assert high[0] == pytest.approx(0.2 if kind == "pedestrian" else length / 2)
    assert high[2] == pytest.approx(height, abs=0.05)  # a cyclist's head ends 3 cm above
    assert 0 <= low[2] <= 0.45


@pytest.mark.parametrize("kind", RIDDEN)
def test_no_two_boxes_share_an_upright_face(kind):
    """Which of two faces in one plane is seen would hang on rounding; a truck's cab once hid its lamps."""
    rows = of(kind)
    for n, one in enumerate(rows):
        for other in rows[:n]:
            for axis in (0, 1):
                across = 1 - axis
                gap = (
                    abs(one[[across, 2]] - other[[across, 2]]) - one[[5 + across, 7]] - other[[5 + across, 7]]
                )
                for sign in (-1, 1):
                    faces = [box[axis] + sign * box[5 + axis] for box in (one, other)]
                    assert abs(faces[0] - faces[1]) > 1e-3 or gap.max() > -1e-9, (n, axis, sign)


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_turn_and_move_with_the_thing(kind):
    turn = 0.7
    plain = of(kind)
    moved = np.array(thing_boxes(Thing(kind, "red", 5, -2, turn), 3))
    place = (plain[:, 0] + 1j * plain[:, 1]) * np.exp(1j * turn) + complex(5, -2)
    np.testing.assert_allclose(moved[:, 0] + 1j * moved[:, 1], place, atol=1e-12)
    np.testing.assert_allclose(moved[:, 3:5], [[math.cos(turn), math.sin(turn)]] * len(moved))
    np.testing.assert_array_equal(np.delete(moved, [0, 1, 3, 4], 1), np.delete(plain, [0, 1, 3, 4], 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moving", [False, True])
def test_rows_know_their_owner_and_whether_it_moves(kind, moving):
    rows = of(kind, moving=moving)
    assert rows.shape[1] == COLUMNS
    assert (rows[:, 12] == 3).all() and (rows[:, 13] == moving).all()
    assert (rows[:, 5:8] > 0).all() and (rows[:, 8:11] >= 0).all() and (rows[:, 8:11] <= 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_ridden_has_lamps(kind):
    patterns = set(of(kind)[:, 11])
    assert bool(patterns & {BODY, BUS, RIDER}) == (kind in RIDDEN)
    assert (LAMP in patterns) == (kind == "light")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "light"])
@pytest.mark.parametrize("colour", COLOURS)
def test_the_largest_coloured_box_has_the_colour(kind, colour):
    rows = np.array(thing_boxes(Thing(kind, colour, 0, 0), 0))
    assert any(tuple(row[8:11]) == RGB[colour] for row in rows)


def test_colours_can_be_told_apart():
    assert set(RGB) == set(COLOURS)
    table = np.array([RGB[colour] for colour in COLOURS])
    gaps = np.abs(table[:, None] - table[None]).max(-1) + 9 * np.eye(len(table))
    assert gaps.min() > 0.3
    lamps = [thing_boxes(Thing("light", colour, 0, 0), 0)[2][8:11] for colour in LIGHT_COLOURS]
    assert [max(range(3), key=lamp.__getitem__) for lamp in lamps] == [0, 1]


def test_a_scene_is_its_things_then_its_buildings():
    drawn = scene("validation", 5)
    rows = np.array(boxes(drawn))
    owners = rows[:, 12]
    things = owners >= 0
    assert set(owners[things]) == set(range(len(drawn.things)))
    assert (np.diff(owners[things]) >= 0).all() and not things[-len(drawn.blocks) :].any()
    assert (rows[~things, 11] == BUILDING).all() and (~things).sum() == len(drawn.blocks) > 0
    for row, block in zip(rows[~things], drawn.blocks, strict=True):
        np.testing.assert_allclose(row[[0, 1, 2]], (block.x, block.y, block.size[2] / 2))
        np.testing.assert_allclose(2 * row[5:8], block.size)
