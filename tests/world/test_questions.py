"""Questions about scenes: brute-force answers on random scenes, every rule and every reason to skip."""

import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from prune2drive import PruneError
from prune2drive.rig import NUSCENES, Rig
from prune2drive.world.questions import (
    ANSWER_WEIGHTS,
    ANSWERS,
    COMMON,
    DECISIONS,
    PER_SCENE,
    STAGES,
    TYPES,
    VOCABULARY,
    Question,
    all_questions,
    check_types,
    choose,
)
from prune2drive.world.scene import COLOURS, KINDS, LIGHT_COLOURS, RIDDEN, SPEED, WEATHERS, Road, Scene, Thing

V = len(NUSCENES)
PLURAL = {kind: kind + "s" for kind in KINDS} | {"bus": "buses"}


# Scenes and what is visible of them, without a renderer.


def sees(camera, bearing_deg):
    turned = np.exp(1j * np.deg2rad(bearing_deg - camera.yaw_deg))
    return abs(np.rad2deg(np.angle(turned))) <= camera.fov_deg / 2


def bearing(thing):
    return math.degrees(math.atan2(thing.y, thing.x))


def in_full_view(things, lamps=50):
    """Tables as if nothing hid anything: 400 pixels where a centre's bearing is in the field of view."""
    pixels = [[400 if sees(camera, bearing(t)) else 0 for t in things] for camera in NUSCENES.cameras]
    return pixels, [[lamps if n else 0 for n in row] for row in pixels]


def random_scene(seed):
    rng = random.Random(seed)
    things = []
    for _ in range(rng.choice((0, 1, 2, 5, 12, 20))):
        kind = rng.choice(KINDS)
        colour = rng.choice(LIGHT_COLOURS if kind == "light" else COLOURS)
        near = rng.random() < 0.4
        x = rng.uniform(-2, 32) if near else rng.uniform(-40, 40)
        y = rng.gauss(0, 3) if near else rng.uniform(-30, 30)
        moving = SPEED[kind] > 0 and rng.random() < 0.8
        things.append(Thing(kind, colour, x, y, rng.uniform(-7, 7), moving))
    road = Road(rng.choice((0.0, 0.012, -0.012)))
    pixels, lamps = in_full_view(things)
    if rng.random() < 0.8:
        for t in range(len(things)):
            state = rng.choice("hdccccc")
            for v in range(V):
                seen = pixels[v][t] > 0 or rng.random() < 0.05
                most = {"h": (0, 0), "d": (0, 30), "c": (20, 500)}[state]
                pixels[v][t] = rng.randint(*most) if seen else 0
                lamps[v][t] = pixels[v][t] // rng.choice((3, 6))
    return Scene(f"test/{seed}", rng.choice(WEATHERS), road, tuple(things)), pixels, lamps


def asked(scene, pixels, lamps):
    questions = all_questions(scene, pixels, lamps)
    return {(q.type, q.camera, q.kind): q.answer for q in questions}


# The oracle: complex numbers, arrays of moments, and every variation of every threshold spelled out.


def positions(thing, times, speed=1.0):
    step = SPEED[thing.kind] * speed * np.exp(1j * thing.heading) if thing.moving else 0
    return thing.x + 1j * thing.y + step * times


def oracle_motion(thing):
    if not thing.moving:
        return "stopped"
    place = complex(thing.x, thing.y)
    relative = np.exp(1j * thing.heading) * place.conjugate() / abs(place)
    degrees = np.rad2deg(np.angle(relative))
    if min(abs(abs(degrees) - border) for border in (45, 135)) < 8:
        return None
    names = {1: "away", 1j: "left", -1: "towards", -1j: "right"}
    return names[max(names, key=lambda way: (relative * np.conj(way)).real)]


def oracle_next(thing, t, pixels):
    answers = set()
    for speed in (0.8, 1.0, 1.25):
        at = positions(thing, np.linspace(0, 4, 41), speed)
        first, close = {}, abs(at) < 2
        for v, camera in enumerate(NUSCENES.cameras):
            inside = [sees(camera, math.degrees(np.angle(p))) and abs(p) <= 40 for p in at]
            if not pixels[v][t] and any(inside):
                first[camera.name] = inside.index(True)
        end = min(first.values(), default=len(at) - 1)
        if thing.moving and close[: end + 1].any():
            answers.add(None)
        elif not thing.moving or not first:
            answers.add("nowhere")
        else:
            answers.update(name for name, step in first.items() if step == min(first.values()))
    return answers.pop() if len(answers) == 1 else None


def offset(road, at):
    return at.imag - road.curvature * at.real**2 / 2


def lane_turn(road, thing, x):
    way = np.exp(1j * thing.heading) / np.exp(1j * np.arctan(road.curvature * x))
    degrees = abs(np.rad2deg(np.angle(way)))
    return min(degrees, 180 - degrees)


def oracle_crosses(thing, road, half):
    at = positions(thing, np.linspace(0, 3, 3001))
    inside = (abs(offset(road, at)) < half) & (at.real > 0) & (at.real < 30)
    if not thing.moving or inside[0] or not inside.any():
        return False
    return bool(lane_turn(road, thing, at[inside.argmax()].real) > 30)


def in_strip(thing, road, half, reach=30.0):
    return bool(0 < thing.x < reach and abs(offset(road, complex(thing.x, thing.y))) < half)


def oracle_cross(thing, road):
    if in_strip(thing, road, 2.4):
        return None
    answers = {oracle_crosses(thing, road, half) for half in (1.2, 2.4)}
    return None if len(answers) == 2 else "yes" if answers == {True} else "no"


def oracle_rule(scene, things, stretch, half, crosses):
    """``things``: (index, thing) pairs; ``crosses``: indices."""

    def any_on_path(kinds, reach):
        return any(t.kind in kinds and in_strip(t, scene.road, half, reach * stretch) for _, t in things)

    if any(t.kind == "light" and t.colour == "red" and 0 < t.x < 28 * stretch for _, t in things):
        return "stop", "light"
    if any_on_path(("pedestrian", "cyclist"), 20):
        return "stop", "person"
    if any_on_path(("car", "truck", "bus"), 18):
        return "brake", "vehicle"
    if crosses:
        return "yield", "crossing"
    return ("swerve", "cone") if any_on_path(("cone",), 20) else ("go", "clear")


def oracle_plan(scene, pixels, lamps):
    things = list(enumerate(scene.things))
    clear = [(t, thing) for t, thing in things if pixels[0][t] >= 24]
    lit = [t for t, _ in things if any(pixels[v][t] >= 24 and lamps[v][t] >= 6 for v in range(3))]
    sure, maybe = set(), set()
    for t, thing in things:
        if thing.kind in RIDDEN and thing.moving:
            both = [oracle_crosses(thing, scene.road, half) for half in (1.2, 2.4)]
            across = in_strip(thing, scene.road, 2.4) and lane_turn(scene.road, thing, thing.x) > 30
            if all(both):
                sure.add(t)
            if any(both) or across:
                maybe.add(t)
    plans = set()
    for stretch in (0.9, 1.0, 1.1):
        for half in (1.3, 1.75, 2.3):
            for crosses in (sure, maybe):
                plans.add(oracle_rule(scene, things, stretch, half, crosses))
                plans.add(oracle_rule(scene, clear, stretch, half, crosses & set(lit)))
    return plans.pop() if len(plans) == 1 else None


def oracle_nearest(scene, row, kinds, answer_of):
    """The answer of the nearest thing of ``kinds``, if every thing it may be confused with agrees."""
    distance = {t: abs(complex(thing.x, thing.y)) for t, thing in enumerate(scene.things)}
    of_kind = [t for t, thing in enumerate(scene.things) if thing.kind in kinds and row[t]]
    clear = [t for t in of_kind if row[t] >= 24]
    if not clear:
        return None
    nearest = min(distance[t] for t in clear)
    if any(distance[t] < nearest for t in of_kind if row[t] < 24):
        return None
    answers = {answer_of(t) for t in clear if distance[t] - nearest <= max(1, 0.08 * nearest)}
    return answers.pop() if len(answers) == 1 else None


def oracle(scene, pixels, lamps):
    found = {}
    things = scene.things
    motion = [oracle_motion(t) for t in things]
    after = [oracle_next(thing, t, pixels) for t, thing in enumerate(things)]
    cross = [oracle_cross(t, scene.road) for t in things]
    for v, camera in enumerate(NUSCENES.names):
        row = pixels[v]
        for kind in KINDS:
            sizes = [n for n, thing in zip(row, things, strict=True) if thing.kind == kind and n]
            clear = sum(n >= 24 for n in sizes)
            if clear or not sizes:
                found["exists", camera, kind] = "yes" if clear else "no"
            if clear == len(sizes) <= 3:
                found["count", camera, kind] = str(clear)
            if kind != "cone":
                found["colour", camera, kind] = oracle_nearest(scene, row, [kind], lambda t: things[t].colour)
            if kind in RIDDEN:
                for name, table in (("motion", motion), ("next", after), ("cross", cross)):
                    shown = [a if n >= 6 else None for a, n in zip(table, lamps[v], strict=True)]
                    found[name, camera, kind] = oracle_nearest(scene, row, [kind], shown.__getitem__)
        found["type", camera, None] = oracle_nearest(scene, row, KINDS, lambda t: things[t].kind)
    if plan := oracle_plan(scene, pixels, lamps):
        found["action", None, None], found["reason", None, None] = plan
        speed = {"stop": "standing", "go": "slowly" if scene.weather in ("night", "rain", "fog") else "fast"}
        found["speed", None, None] = speed.get(plan[0], "slowly")
    bend = scene.road.curvature
    found["steering", None, None] = "left" if bend > 0 else "right" if bend < 0 else "straight"
    return {key: answer for key, answer in found.items() if answer is not None}


@pytest.mark.parametrize("seeds", [range(0, 20), range(20, 40)], ids=str)
def test_random_scenes_agree_with_brute_force(seeds):
    for seed in seeds:
        scene, pixels, lamps = random_scene(seed)
        assert asked(scene, pixels, lamps) == oracle(scene, pixels, lamps), seed


def test_random_scenes_ask_everything():
    """The agreement above means little unless every type, and every answer, occurs."""
    answers = defaultdict(Counter)
    for seed in range(300):
        for question in all_questions(*random_scene(seed)):
            answers[question.type][question.answer] += 1
    assert set(answers) == set(TYPES)
    for type_, counts in answers.items():
        assert set(counts) == set(ANSWERS[type_]), (type_, counts)


def test_questions_are_words_of_the_vocabulary():
    assert list(VOCABULARY) == sorted(set(VOCABULARY))
    for seed in range(20):
        questions = all_questions(*random_scene(seed))
        assert len({q.text for q in questions}) == len(questions)
        for q in questions:
            assert q.stage == STAGES[q.type]
            assert q.answer in ANSWERS[q.type]
            assert q.text.endswith(" ?") and q.text == " ".join(q.text.split())
            assert {*q.text.split(), q.answer} <= set(VOCABULARY)
            assert q.camera is None or q.camera in q.text
            assert q.kind is None or q.kind in q.text or PLURAL[q.kind] in q.text
        assert [TYPES.index(q.type) for q in questions] == sorted(TYPES.index(q.type) for q in questions)
        assert questions == all_questions(*random_scene(seed))
    assert set(NUSCENES.names) <= set(VOCABULARY)


def test_stages_are_those_of_drivelm():
    assert list(dict.fromkeys(STAGES.values())) == ["perception", "prediction", "planning", "behaviour"]
    assert set(PER_SCENE) == set(TYPES) == set(ANSWERS)


def test_texts():
    things = (Thing("bus", "blue", -10, 4, 0.0, True),)
    texts = {q.text for q in all_questions(scene_of(*things), *in_full_view(things))}
    assert texts >= {
        "Is there a bus in CAM_BACK ?",
        "How many buses are in CAM_BACK ?",
        "What colour is the nearest bus in CAM_BACK ?",
        "What is the nearest object in CAM_BACK ?",
        "Where is the nearest bus in CAM_BACK going ?",
        "Where will the nearest bus in CAM_BACK appear next ?",
        "Will the nearest bus in CAM_BACK cross our path ?",
        "What should we do ?",
        "Why should we do it ?",
        "How do we steer ?",
        "How fast do we go ?",
    }


# Planning, rule by rule.


def scene_of(*things, curvature=0.0, weather="day"):
    return Scene("test/0", weather, Road(curvature), things)


def plan(*things, weather="day", curvature=0.0, hide=(), lamps=50):
    scene = scene_of(*things, weather=weather, curvature=curvature)
    pixels, lit = in_full_view(things, lamps)
    for t, n in hide:
        for row in pixels:
            row[t] = min(row[t], n)
    found = asked(scene, pixels, lit)
    return tuple(found.get((name, None, None)) for name in ("action", "reason", "speed"))


NOTHING = (None, None, None)
RED = Thing("light", "red", 15, -3)
PERSON = Thing("pedestrian", "blue", 10, 0.5)
CYCLIST = Thing("cyclist", "blue", 12, -1, 0.0, True)
CAR = Thing("car", "white", 14, 0, 0.0, True)
CROSSER = Thing("truck", "green", 15, -10, math.pi / 2, True)
CONE = Thing("cone", "orange", 8, 0)


@pytest.mark.parametrize(
    ("things", "expected"),
    [
        ((), ("go", "clear", "fast")),
        ((CONE,), ("swerve", "cone", "slowly")),
        ((CONE, CROSSER), ("yield", "crossing", "slowly")),
        ((CONE, CROSSER, CAR), ("brake", "vehicle", "slowly")),
        ((CONE, CROSSER, CAR, PERSON), ("stop", "person", "standing")),
        ((CONE, CROSSER, CAR, CYCLIST), ("stop", "person", "standing")),
        ((CONE, CROSSER, CAR, PERSON, RED), ("stop", "light", "standing")),
        ((Thing("light", "green", 15, -3),), ("go", "clear", "fast")),
        ((Thing("light", "red", 40, -3),), ("go", "clear", "fast")),
        ((Thing("light", "red", -15, -3),), ("go", "clear", "fast")),
        ((Thing("pedestrian", "blue", 10, 4),), ("go", "clear", "fast")),
        ((Thing("car", "white", 25, 0, 0.0, True),), ("go", "clear", "fast")),
        ((Thing("car", "white", 15, 3.5, math.pi, True),), ("go", "clear", "fast")),
        ((Thing("truck", "green", 15, -10, math.pi / 2, False),), ("go", "clear", "fast")),
        ((Thing("truck", "green", 15, -10, -math.pi / 2, True),), ("go", "clear", "fast")),
        ((Thing("pedestrian", "red", 15, -3, math.pi / 2, True),), ("go", "clear", "fast")),
    ],
)
def test_rules(things, expected):
    assert plan(*things) == expected
    assert plan(*reversed(things)) == expected


def test_the_path_bends_with_the_road():
    bent = Thing("cone", "orange", 16, 0.02 * 16**2 / 2)
    assert plan(bent, curvature=0.02) == ("swerve", "cone", "slowly")
    assert plan(bent) == ("go", "clear", "fast")


@pytest.mark.parametrize("weather", WEATHERS)
def test_speed_follows_the_weather_only_when_clear(weather):
    dim = weather in ("night", "rain", "fog")
    assert plan(weather=weather)[2] == ("slowly" if dim else "fast")
    assert plan(CONE, weather=weather)[2] == "slowly"
    assert plan(PERSON, weather=weather)[2] == "standing"


@pytest.mark.parametrize(
    "thing",
    [
        Thing("light", "red", 27, -3),
        Thing("light", "red", 29, -3),
        Thing("pedestrian", "blue", 19, 0),
        Thing("pedestrian", "blue", 21, 0),
        Thing("pedestrian", "blue", 10, 1.5),
        Thing("pedestrian", "blue", 10, -2.0),
        Thing("car", "white", 17, 0),
        Thing("car", "white", 19, 0),
        Thing("bus", "white", 12, 2.0),
        Thing("cone", "orange", 19, 0),
        Thing("cone", "orange", 10, -1.5),
        Thing("car", "white", 15, -22.8, math.pi / 2, True),  # in 3 s to 1.8 m beside the centre line
        Thing("car", "white", 25, -1.8, math.pi / 2, True),  # already half on the path
    ],
)
def test_no_planning_at_a_threshold(thing):
    assert plan(thing) == NOTHING


@pytest.mark.parametrize("thing", [RED, PERSON, CAR, CROSSER, CONE], ids=lambda thing: thing.kind)
@pytest.mark.parametrize("visible", [0, 23])
def test_no_planning_when_the_reason_is_hidden(thing, visible):
    assert plan(thing, hide=[(0, visible)]) == NOTHING
    assert plan(thing, hide=[(0, 24)]) != NOTHING


def test_a_hidden_thing_matters_only_before_the_deciding_rule():
    assert plan(PERSON, CONE, hide=[(1, 0)]) == ("stop", "person", "standing")
    assert plan(PERSON, CONE, hide=[(0, 0)]) == NOTHING
    assert plan(PERSON, CYCLIST, hide=[(1, 0)]) == ("stop", "person", "standing")


def test_no_planning_when_a_crossing_shows_no_lamps():
    assert plan(CROSSER, lamps=5) == NOTHING
    assert plan(CROSSER, lamps=6) == ("yield", "crossing", "slowly")
    assert plan(CAR, lamps=0) == ("brake", "vehicle", "slowly")


def test_a_crossing_may_show_in_a_side_camera_ahead():
    beside = Thing("car", "red", 4, -12, math.pi / 2, True)
    assert not sees(NUSCENES.camera("CAM_FRONT"), bearing(beside))
    assert plan(beside) == ("yield", "crossing", "slowly")


@pytest.mark.parametrize(("bend", "answer"), [(0.01, "left"), (-0.01, "right"), (0.0, "straight")])
def test_steering_is_always_asked(bend, answer):
    scene = scene_of(Thing("car", "white", 17, 0), curvature=bend)
    found = asked(scene, *in_full_view(scene.things))
    assert found["steering", None, None] == answer


# Perception and prediction: what is asked and what is not.


def front(*things, pixels=None, lamps=None):
    """Answers about CAM_FRONT, by type and kind."""
    full, lit = in_full_view(things)
    full[0] = list(pixels or full[0])
    lit[0] = list(lamps or lit[0])
    found = asked(scene_of(*things), full, lit)
    return {(type_, kind): answer for (type_, camera, kind), answer in found.items() if camera == "CAM_FRONT"}


def test_doubtful_things_are_neither_there_nor_absent():
    cars = [Thing("car", "red", 10, 0), Thing("car", "blue", 20, 0)]
    assert front(*cars)["count", "car"] == "2"
    one = front(*cars, pixels=(24, 23))
    assert one["exists", "car"] == "yes" and ("count", "car") not in one
    none = front(*cars, pixels=(1, 0))
    assert ("exists", "car") not in none and ("count", "car") not in none
    hidden = front(*cars, pixels=(0, 0))
    assert hidden["exists", "car"] == "no" and hidden["count", "car"] == "0"
    assert none["exists", "bus"] == "no"


def test_no_count_beyond_three():
    cars = [Thing("car", "red", 10 + 5 * n, 0) for n in range(4)]
    assert front(*cars[:3])["count", "car"] == "3"
    assert ("count", "car") not in front(*cars)


def test_nearest_is_not_asked_when_another_may_be_it():
    near, far = Thing("car", "red", 10, 0), Thing("car", "blue", 20, 0)
    assert front(near, far)["colour", "car"] == "red"
    assert front(near, far, pixels=(0, 100))["colour", "car"] == "blue"
    assert ("colour", "car") not in front(near, far, pixels=(5, 100))
    assert front(near, far, pixels=(100, 5))["colour", "car"] == "red"
    assert ("colour", "car") not in front(near, Thing("car", "blue", 10.9, 0))
    assert front(near, Thing("car", "red", 10.9, 0))["colour", "car"] == "red"
    assert front(near, Thing("car", "blue", 11.1, 0))["colour", "car"] == "red"
    assert ("colour", "car") not in front(far, Thing("car", "red", 21.5, 0))
    assert front(far, Thing("car", "red", 21.7, 0))["colour", "car"] == "blue"


def test_nearest_object_is_of_any_kind():
    car, cone = Thing("car", "red", 10, 0), Thing("cone", "orange", 8, 2)
    assert front(car, cone)["type", None] == "cone"
    assert ("type", None) not in front(car, cone, pixels=(100, 3))
    assert front(car, cone, pixels=(100, 0))["type", None] == "car"
    assert ("type", None) not in front(car, Thing("cone", "orange", 10.5, 0))


def test_cones_have_no_colour_and_only_ridden_things_move():
    things = [Thing(kind, "red", 10, 0) for kind in KINDS]
    for thing in things:
        found = front(thing)
        assert (("colour", thing.kind) in found) == (thing.kind != "cone")
        assert (("motion", thing.kind) in found) == (thing.kind in RIDDEN)


@pytest.mark.parametrize(
    ("turn", "answer"),
    [
        (0, "away"),
        (36, "away"),
        (38, None),
        (52, None),
        (54, "left"),
        (90, "left"),
        (126, "left"),
        (128, None),
        (144, "towards"),
        (180, "towards"),
        (-170, "towards"),
        (-90, "right"),
        (-50, None),
        (-30, "away"),
    ],
)
@pytest.mark.parametrize("sight", [0, 170, -90])
def test_motion_is_relative_to_the_line_of_sight(turn, answer, sight):
    at = 15 * np.exp(1j * np.deg2rad(sight))
    things = (Thing("car", "red", at.real, at.imag, math.radians(sight + turn), True),)
    found = asked(scene_of(*things), *in_full_view(things))
    assert {v for k, v in found.items() if k[0] == "motion"} == ({answer} if answer else set())


def test_motion_and_prediction_need_lamps():
    car = Thing("car", "red", 15, 6, -math.pi / 2, True)
    about = {("motion", "car"), ("next", "car"), ("cross", "car")}
    assert about <= set(front(car, lamps=(6,)))
    assert not about & set(front(car, lamps=(5,)))
    parked = front(Thing("car", "red", 15, 6))
    assert [parked[key] for key in sorted(about)] == ["no", "stopped", "nowhere"]


def next_of(thing):
    found = asked(scene_of(thing), *in_full_view([thing]))
    return {answer for key, answer in found.items() if key[0] == "next"}


def test_next_camera():
    assert next_of(Thing("car", "red", 15, 3, math.pi / 2, True)) == {"CAM_FRONT_LEFT"}
    assert next_of(Thing("car", "red", 15, -3, -math.pi / 2, True)) == {"CAM_FRONT_RIGHT"}
    assert next_of(Thing("car", "red", -15, 6, 0.0, True)) == {"CAM_BACK_LEFT"}
    assert next_of(Thing("car", "red", 15, 0, 0.0, True)) == {"nowhere"}
    # It leaves our sight of 40 m before it comes to the left camera's field of view.
    assert next_of(Thing("car", "red", 39, -11.7, math.pi / 2, True)) == {"nowhere"}
    # Straight at us: on which side it would pass, half a metre decides.
    assert next_of(Thing("car", "red", -14.1, 0.25, 0.0, True)) == set()
    assert next_of(Thing("car", "red", -14.1, 1.2, 0.0, True)) == set()
    assert next_of(Thing("car", "red", -14.1, 2.1, 0.0, True)) == {"CAM_BACK_LEFT"}
    # At 7 m/s it comes into view after 3.6 s, at 5.6 m/s not within 4 s.
    assert next_of(Thing("car", "red", 30, -14.6, math.pi / 2, True)) == set()


def cross_of(thing, road=None):
    scene = Scene("test/0", "day", road or Road(), (thing,))
    found = asked(scene, *in_full_view([thing]))
    return {answer for key, answer in found.items() if key[0] == "cross"}


def test_cross():
    up = math.pi / 2
    assert cross_of(CROSSER) == {"yes"}
    assert cross_of(Thing("car", "red", 15, -30, up, True)) == {"no"}
    assert cross_of(Thing("car", "red", 15, -22.8, up, True)) == set()
    assert cross_of(Thing("car", "red", 15, -2.3, up, True)) == set()
    assert cross_of(Thing("car", "red", 15, -2.3)) == set()
    assert cross_of(Thing("car", "red", 35, -10, up, True)) == {"no"}
    assert cross_of(Thing("car", "red", -5, -10, up, True)) == {"no"}
    # Drifting into our lane along the road is no crossing; the same course over a bent road is.
    drift = Thing("car", "red", 2, -3, math.radians(25), True)
    assert cross_of(drift) == {"no"}
    assert cross_of(drift, Road(-0.03)) == {"yes"}


def test_choose_is_deterministic_and_within_quotas():
    for seed in range(10):
        questions = all_questions(*random_scene(seed))
        picked = choose(questions, random.Random(5))
        assert picked == choose(questions, random.Random(5))
        assert len(set(picked)) == len(picked) and set(picked) <= set(questions)
        there, taken = Counter(q.type for q in questions), Counter(q.type for q in picked)
        for type_ in TYPES:
            most = min(there[type_], PER_SCENE[type_])
            rare = sum(q.type == type_ and not usual(q) for q in questions)
            assert min(rare, most) <= taken[type_] <= most
            assert taken[type_] == most or type_ in COMMON
        everything = choose(questions, random.Random(1), dict.fromkeys(TYPES, 1000))
        assert len(set(everything)) == len(everything) and set(everything) <= set(questions)
        assert {q for q in questions if not usual(q)} <= set(everything)
        assert {q for q in questions if q.type not in COMMON} <= set(everything)
        assert choose(questions, random.Random(1), {}) == []


def usual(question):
    return question.answer == COMMON.get(question.type, (None,))[0]


def made_up(type_, **answers):
    """Questions of a type: so many with each answer."""
    named = [(answer, n) for answer, count in answers.items() for n in range(count)]
    return [Question(STAGES[type_], type_, None, None, f"{answer} {n} ?", answer) for answer, n in named]


def shares(type_, questions, per, draws=4000):
    """How often `choose` takes the multisets of answers."""
    rng = random.Random(3)
    drawn = Counter(
        tuple(sorted(q.answer for q in choose(questions, rng, {type_: per}))) for _ in range(draws)
    )
    return {answers: count / draws for answers, count in drawn.items()}


def test_common_answers_alone_are_asked_sometimes():
    for type_, (answer, chance) in COMMON.items():
        assert answer in ANSWERS[type_] and 0 < chance < 1
        alone = made_up(type_, **{answer: 5})
        found = shares(type_, alone, 1)
        assert found[(answer,)] == pytest.approx(chance, abs=0.03) and found[()] == pytest.approx(
            1 - chance, abs=0.03
        )
        # Every further draw is asked as rarely again.
        assert shares(type_, alone, 2).get((answer, answer), 0) == pytest.approx(chance**2, abs=0.03)
    only_yes = made_up("cross", yes=3)
    assert shares("cross", only_yes, 2, 200) == {("yes", "yes"): 1.0}
    assert shares("motion", made_up("motion", stopped=3), 2, 200) == {("stopped", "stopped"): 1.0}


def test_common_answers_beside_others_are_drawn_by_weight():
    assert ANSWER_WEIGHTS["cross"] == {"no": 0.5}
    both = made_up("cross", yes=1, no=9)
    found = shares("cross", both, 1)
    assert found == {("yes",): pytest.approx(2 / 3, abs=0.03), ("no",): pytest.approx(1 / 3, abs=0.03)}
    # yes, then no in one of ten; no, then yes in two of three; no twice.
    chance = COMMON["cross"][1]
    found = shares("cross", both, 2)
    assert found["no", "yes"] == pytest.approx(2 / 3 * chance + 1 / 3 * 2 / 3, abs=0.03)
    assert found["no", "no"] == pytest.approx(1 / 9, abs=0.03)
    assert found[("yes",)] == pytest.approx(2 / 3 * (1 - chance), abs=0.03)
    found = shares("next", made_up("next", CAM_BACK=1, nowhere=9), 1)
    assert found[("CAM_BACK",)] == pytest.approx(1 / 2, abs=0.03)


def test_choose_balances_answers_and_prefers_the_front():
    things = (Thing("car", "red", 10, 0),)
    questions = all_questions(scene_of(*things), *in_full_view(things))
    rng = random.Random(0)
    drawn = [q for _ in range(2000) for q in choose(questions, rng, {"exists": 1, "count": 1})]
    answers = Counter((q.type, q.answer) for q in drawn)
    assert abs(answers["exists", "yes"] / 2000 - 1 / 2) < 0.05
    assert abs(answers["count", "0"] / 2000 - 1 / 3) < 0.05
    cameras = Counter(q.camera for q in drawn if q.answer == "no")
    # CAM_FRONT has 6 "no" of weight 2, the five others 7 of weight 1.
    assert abs(cameras["CAM_FRONT"] / sum(cameras.values()) - 12 / 47) < 0.06


def test_unknown_types_are_named():
    check_types(TYPES)
    with pytest.raises(PruneError, match="Did you mean 'colour'"):
        check_types(["exists", "color"])
    with pytest.raises(PruneError, match="'contains' is not a type of question"):
        choose([], random.Random(0), {"contains": 1})


def test_tables_must_fit():
    scene = scene_of(CAR, CONE)
    pixels, lamps = in_full_view(scene.things)
    with pytest.raises(PruneError, match="pixels must have 6 rows"):
        all_questions(scene, pixels[:5], lamps)
    with pytest.raises(PruneError, match="lamps must have 6 rows"):
        all_questions(scene, pixels, [row[:1] for row in lamps])
    with pytest.raises(PruneError, match="FRONT is not a camera"):
        all_questions(scene, pixels, lamps, Rig.from_names(["FRONT", *"abcde"]))


def test_every_decision_is_an_answer():
    for action, reason in DECISIONS:
        assert action in ANSWERS["action"] and reason in ANSWERS["reason"]
