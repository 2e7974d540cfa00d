"""What patches show, counted pixel by pixel."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from prune2drive.rig import NUSCENES, Rig
from prune2drive.world.generate import scenes
from prune2drive.world.geometry import course
from prune2drive.world.labels import (
    FIELDS,
    GRID,
    LANES,
    MOTIONS,
    SIZES,
    lane_labels,
    motion,
    patch_labels,
    path_labels,
    place_labels,
)
from prune2drive.world.questions import ANSWERS, MIN_LAMPS, MIN_PIXELS, all_questions
from prune2drive.world.render import SIDE, Frames, render
from prune2drive.world.scene import COLOURS, EYE, KINDS, LANE, RIDDEN, Road, Scene, Thing

STEP = SIDE // GRID
AT = {field: n for n, field in enumerate(FIELDS)}


@pytest.fixture(scope="module")
def seen():
    some = list(scenes("validation", 6))
    frames = render(some)
    return some, frames, *patch_labels(some, frames)


def shown(scene, ids, lamps):
    """Index of every thing clearly in a picture -> (distance, whether its lamps show)."""
    count, lit = Counter(ids.ravel().tolist()), Counter(ids[lamps].tolist())
    return {
        n: (math.hypot(thing.x, thing.y), lit[n] >= 6)
        for n, thing in enumerate(scene.things)
        if count[n] >= 24
    }


def oracle(scene, ids, lamps):
    """Labels (patches, fields) of one picture."""
    clear = shown(scene, ids, lamps)
    lit = Counter(ids[lamps].tolist())
    nearest = min(clear, key=lambda n: clear[n][0], default=None)
    out = []
    for row in range(GRID):
        for column in range(GRID):
            patch = ids[row * STEP : (row + 1) * STEP, column * STEP : (column + 1) * STEP]
            count = Counter(patch[patch >= 0].tolist())
            if not count or max(count.values()) < 6:
                out.append([0] * len(FIELDS))
                continue
            n = min(count, key=lambda n: (-count[n], n))
            thing = scene.things[n]
            how = motion(thing.x, thing.y, thing.heading) if thing.moving else "stopped"
            tells = thing.kind in RIDDEN and lit[n] >= 6
            rivals = [d for m, (d, _) in clear.items() if scene.things[m].kind == thing.kind]
            out.append(
                [
                    1 + KINDS.index(thing.kind),
                    1 + COLOURS.index(thing.colour),
                    1 + MOTIONS.index(how) if tells else 0,
                    int(n in clear and clear[n][0] == min(rivals)),
                    int(n == nearest),
                ]
            )
    return np.array(out)


def test_labels_agree_with_counting(seen):
    some, frames, labels, _ = seen
    assert labels.shape == (len(some), 6, GRID**2, len(FIELDS)) and labels.dtype == torch.int64
    for b, scene in enumerate(some):
        for v in range(6):
            expected = oracle(scene, frames.ids[b, v].numpy(), frames.lamps[b, v].numpy())
            np.testing.assert_array_equal(labels[b, v], expected)
    assert (labels.amax((0, 1, 2)) < torch.tensor([SIZES[field] for field in FIELDS])).all()
    assert labels.amin() == 0 and (labels.amax((0, 1, 2)) > 0).all()


def test_centres_count_what_is_clearly_visible(seen):
    some, frames, _, centres = seen
    assert centres.shape == (len(some), 6, GRID**2, len(KINDS)) and centres.dtype == torch.float32
    at = np.arange(SIDE) // STEP
    for b, scene in enumerate(some):
        for v, name in enumerate(NUSCENES.names):
            ids = frames.ids[b, v].numpy()
            clear = shown(scene, ids, frames.lamps[b, v].numpy())
            kinds = Counter(scene.things[n].kind for n in clear)
            assert centres[b, v].sum(0).tolist() == [kinds[kind] for kind in KINDS], name
            left = centres[b, v].clone()
            for n in clear:  # each is within half a patch of the middle of what it covers
                rows, columns = np.nonzero(ids == n)
                row, column = at[rows].mean(), at[columns].mean()
                kind = KINDS.index(scene.things[n].kind)
                near = [
                    p
                    for p in left[:, kind].nonzero().flatten().tolist()
                    if max(abs(p // GRID - row), abs(p % GRID - column)) <= 0.5 + 1e-4
                ]
                assert near, (scene.name, name, n)
                left[near[0], kind] -= 1


def test_a_large_thing_is_labelled_all_over():
    bus = Thing("bus", "orange", 0, 3.5, 0.0, True)
    scene = Scene("test/0", "day", Road(), (Thing("cone", "orange", -20, -9), bus))
    frames = render([scene])
    labels, centres = patch_labels([scene], frames)
    v = NUSCENES.names.index("CAM_FRONT_LEFT")
    whole = frames.ids[0, v].view(GRID, STEP, GRID, STEP).transpose(1, 2).reshape(GRID**2, -1).eq(1).all(1)
    assert whole.sum() > 20
    assert (labels[0, v][whole] == labels[0, v][whole][0]).all()
    kind, colour, _, first, nearest = labels[0, v][whole][0].tolist()
    assert (KINDS[kind - 1], COLOURS[colour - 1], first, nearest) == ("bus", "orange", 1, 1)
    assert centres[0, v].sum() == 1


@pytest.mark.parametrize("moving", [True, False])
def test_motion_is_the_course_away_from_its_borders(moving):
    compared = 0
    for turn in np.linspace(-7, 7, 61):
        for bearing in np.linspace(-math.pi, math.pi, 41):
            thing = Thing("car", "red", 9 * math.cos(bearing), 9 * math.sin(bearing), turn, moving)
            if (expected := course(thing)) is not None:
                found = motion(thing.x, thing.y, thing.heading) if moving else "stopped"
                assert found == expected
                compared += 1
    assert compared > 1500


@pytest.mark.parametrize(
    ("heading", "way"), [(0, "away"), (1.57, "left"), (-1.57, "right"), (3.1, "towards")]
)
def test_motion_labels_of_a_car(heading, way):
    for moving, expected in ((True, way), (False, "stopped")):
        scene = Scene("test/0", "day", Road(), (Thing("car", "blue", 8, 0, heading, moving),))
        labels, _ = patch_labels([scene], render([scene]))
        found = set(labels[0, 0][:, AT["motion"]].tolist()) - {0}
        assert {MOTIONS[n - 1] for n in found} == {expected}


def test_no_motion_without_lamps():
    scene = Scene("test/0", "day", Road(), (Thing("car", "blue", 8, 0, 0.0, True),))
    frames = render([scene])
    dark = Frames(frames.images, frames.ids, frames.depth, torch.zeros_like(frames.lamps))
    assert patch_labels([scene], frames)[0][..., AT["motion"]].any()
    assert not patch_labels([scene], dark)[0][..., AT["motion"]].any()


def test_thresholds_are_those_of_the_questions(seen):
    """What the labels call clear is what is asked about."""
    some, frames, _, centres = seen
    pixels, _ = frames.visible(max(len(scene.things) for scene in some))
    assert torch.equal(centres.sum((2, 3)).long(), (pixels >= MIN_PIXELS).sum(2))
    assert MIN_LAMPS == 6


def test_places_agree_with_the_questions(seen):
    """Patches of the nearest of a kind are told what the questions about it answer."""
    some, frames, labels, _ = seen
    cross, following = place_labels(some, frames)
    assert cross.shape == following.shape == labels.shape[:3]
    assert set(cross.unique().tolist()) == {-1, 0, 1}
    assert set(following.unique().tolist()) <= set(range(-1, 7))
    pixels, lamps = frames.visible(max(len(scene.things) for scene in some))
    compared = Counter()
    for b, scene in enumerate(some):
        here = slice(0, len(scene.things))
        for q in all_questions(scene, pixels[b, :, here].tolist(), lamps[b, :, here].tolist()):
            if q.type not in ("next", "cross"):
                continue
            v = NUSCENES.names.index(q.camera)
            kind, first = labels[b, v, :, AT["kind"]], labels[b, v, :, AT["first"]]
            patches = (kind == 1 + KINDS.index(q.kind)) & (first == 1)
            table, answers = (following, ANSWERS["next"]) if q.type == "next" else (cross, ("no", "yes"))
            assert set(table[b, v][patches].tolist()) <= {answers.index(q.answer)}, (scene.name, q)
            compared[q.type] += int(patches.any())
    assert min(compared["next"], compared["cross"]) > 15


@pytest.mark.parametrize("moving", [True, False])
@pytest.mark.parametrize("heading", [math.pi / 2, 0.0, 2.6])
def test_crossing_is_labelled_where_it_is_asked(heading, moving):
    """Over the whole width of the road: on our path, at its border and beside it."""
    places = [-16, -9, -5, -3, -2.5, -2.3, -1.3, 0, 1.5, 2.3, 2.5, 3.5, 7]
    some = [
        Scene(f"test/{n}", "day", Road(), (Thing("car", "red", 12, y, heading, moving),))
        for n, y in enumerate(places)
    ]
    frames = render(some)
    cross, following = place_labels(some, frames)
    pixels, lamps = frames.visible(1)
    told = Counter()
    for b, (y, scene) in enumerate(zip(places, some, strict=True)):
        questions = all_questions(scene, pixels[b].tolist(), lamps[b].tolist())
        for v, name in enumerate(NUSCENES.names):
            for table, type_, answers in (
                (cross, "cross", ("no", "yes")),
                (following, "next", ANSWERS["next"]),
            ):
                expected = {answers.index(q.answer) for q in questions if (q.type, q.camera) == (type_, name)}
                assert set(table[b, v].tolist()) - {-1} == expected, (y, name, type_)
                told[type_, *expected] += 1
        if abs(y) < 2.4:  # on our path
            assert (cross[b] == -1).all()
    assert told["cross", 0] >= 4 and (told["cross", 1] > 0) == (heading > 1 and moving)


@pytest.mark.parametrize("bend", [0.0, 0.02])
def test_path_is_labelled_away_from_its_borders(bend):
    """Within 1.4 m and 19 m: on it; beyond what `WIDE` and 22 m reach: not; between: not known."""
    offsets = [-6, -2.5, -2, -1.5, -1.3, 0, 1.3, 1.5, 2.3, 2.5, 5]
    cases = [(x, y) for x in (8, 18, 20.5, 23) for y in offsets]
    road = Road(bend)
    some = [
        Scene(f"test/{n}", "day", road, (Thing("pedestrian", "red", x, road.centre(x) + y),))
        for n, (x, y) in enumerate(cases)
    ]
    path = path_labels(some, render(some))
    for b, (x, y) in enumerate(cases):
        expected = 1 if x < 19 and abs(y) < 1.4 else 0 if x > 22 or abs(y) > 2.4 else -1
        assert set(path[b].flatten().tolist()) - {-1} == {expected} - {-1}, (x, y)
    empty = Scene("test/0", "fog", Road(), ())
    assert (path_labels([empty], render([empty], side=24)) == -1).all()


ROADS = [Road(0.0, 1, 0), Road(0.0, 2, 1), Road(0.02, 1, 1, 12.0), Road(-0.02, 2, 0)]


@pytest.mark.parametrize("road", ROADS)
def test_the_ground_ahead_is_labelled_by_its_lane(road):
    """Every patch against the pinhole camera: where the ray through its middle pixel meets the ground."""
    bare = [Scene("test/0", "day", road, ())]
    (labels,) = lane_labels(bare, render(bare))
    camera = NUSCENES.cameras[0]
    half = math.tan(math.radians(camera.fov_deg) / 2)
    found = Counter()
    for patch, label in enumerate(labels.tolist()):
        row, column = (STEP * n + STEP // 2 + 0.5 for n in divmod(patch, GRID))
        down = half * camera.size[1] / camera.size[0] * (2 * row / SIDE - 1)
        if down <= 0:  # at the horizon or above
            assert LANES[label] == "none"
            continue
        x = EYE / down
        offset = half * (1 - 2 * column / SIDE) * x - road.curvature * x**2 / 2
        borders = [abs(offset - edge * LANE) for edge in (-1.5, -0.5, 0.5, 1.5, 2.5)]
        if x > 100 or min(borders) < 0.01:
            continue
        if road.junction is not None and 0 < x - road.junction < road.JUNCTION_WIDTH:
            expected = "crossing"
        elif abs(offset) < LANE / 2:
            expected = "ours"
        elif offset > 0:
            expected = "oncoming" if offset < LANE * (road.lanes_left + 0.5) else "left"
        else:
            expected = "right lane" if offset > -LANE * (road.lanes_right + 0.5) else "right"
        assert LANES[label] == expected, (patch, x, offset)
        found[expected] += 1
    assert found["ours"] and found["oncoming"] and found["left"] and found["right"]
    assert bool(found["right lane"]) == bool(road.lanes_right)
    assert bool(found["crossing"]) == (road.junction is not None)


def test_what_stands_on_the_ground_hides_it():
    bus = Thing("bus", "orange", 10, 0)
    bare, full = (Scene("test/0", "day", Road(), things) for things in ((), (bus,)))
    frames = render([bare, full])
    labels = lane_labels([bare, full], frames)
    middle = slice(STEP // 2, None, STEP)
    hidden = (frames.ids[1, 0, middle, middle] == 0).flatten()
    assert hidden.sum() > 5 and (labels[1, hidden] == 0).all()
    assert torch.equal(labels[0, ~hidden], labels[1, ~hidden])


def test_scenes_of_unequal_length_and_without_things(seen):
    some, frames, labels, centres = seen
    for b in (0, 3):
        one = Frames(*(getattr(frames, name)[b : b + 1] for name in ("images", "ids", "depth", "lamps")))
        alone, middles = patch_labels(some[b : b + 1], one)
        assert torch.equal(alone[0], labels[b]) and torch.equal(middles[0], centres[b])
    empty = Scene("test/0", "fog", Road(), ())
    labels, centres = patch_labels([empty], render([empty], side=24))
    assert labels.shape == (1, 6, GRID**2, len(FIELDS)) and not labels.any()
    assert centres.shape == (1, 6, GRID**2, len(KINDS)) and not centres.any()
    both = [empty, some[0]]
    assert not patch_labels(both, render(both, side=24))[0][0].any()


def test_pictures_must_divide_into_patches():
    scene = Scene("test/0", "day", Road(), ())
    with pytest.raises(ValueError, match="50 pixels do not divide into 12 patches"):
        patch_labels([scene], render([scene], Rig("one", NUSCENES.cameras[:1]), 50))
