"""What can be asked about a scene, with the one word that answers it.

Eleven types over DriveLM's four stages. Every answer follows from the `Scene`, and every question is
one that the pictures can answer: where a thing is hardly visible, or an answer would flip with a
metre, a few degrees or a fraction of the speed, nothing is asked.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..errors import PruneError, did_you_mean
from ..rig import NUSCENES, Rig
from .geometry import WIDE, course, crossing, next_cameras, on_path, sectors
from .scene import COLOURS, KINDS, RIDDEN, VEHICLES, Scene, Thing

MIN_PIXELS = 24
"""A thing with at least so many visible pixels in a camera is in it; with fewer, but some, it is doubtful."""

MIN_LAMPS = 6
"""Lamp pixels it takes to tell how a thing moves."""

MAX_COUNT = 3

STAGES: dict[str, str] = {
    "exists": "perception",
    "count": "perception",
    "colour": "perception",
    "type": "perception",
    "motion": "perception",
    "next": "prediction",
    "cross": "prediction",
    "action": "planning",
    "reason": "planning",
    "steering": "behaviour",
    "speed": "behaviour",
}
"""Stage of every type of question."""

TYPES: tuple[str, ...] = tuple(STAGES)

TEXTS: dict[str, str] = {
    "exists": "Is there a {kind} in {camera} ?",
    "count": "How many {kinds} are in {camera} ?",
    "colour": "What colour is the nearest {kind} in {camera} ?",
    "type": "What is the nearest object in {camera} ?",
    "motion": "Where is the nearest {kind} in {camera} going ?",
    "next": "Where will the nearest {kind} in {camera} appear next ?",
    "cross": "Will the nearest {kind} in {camera} cross our path ?",
    "action": "What should we do ?",
    "reason": "Why should we do it ?",
    "steering": "How do we steer ?",
    "speed": "How fast do we go ?",
}

NOWHERE = "nowhere"

ANSWERS: dict[str, tuple[str, ...]] = {
    "exists": ("yes", "no"),
    "count": tuple(str(n) for n in range(MAX_COUNT + 1)),
    "colour": COLOURS,
    "type": KINDS,
    "motion": ("stopped", "away", "towards", "left", "right"),
    "next": (*NUSCENES.names, NOWHERE),
    "cross": ("yes", "no"),
    "action": ("stop", "brake", "yield", "swerve", "go"),
    "reason": ("light", "person", "vehicle", "crossing", "cone", "clear"),
    "steering": ("left", "right", "straight"),
    "speed": ("standing", "slowly", "fast"),
}
"""Every answer of every type; one word each."""

COLOURED = ("car", "truck", "bus", "pedestrian", "cyclist", "light")
"""Kinds whose colour is asked; cones are all orange."""

PER_SCENE: dict[str, int] = {
    "exists": 3,
    "count": 3,
    "colour": 2,
    "type": 1,
    "motion": 2,
    "next": 2,
    "cross": 2,
    "action": 1,
    "reason": 1,
    "steering": 1,
    "speed": 1,
}
"""How many questions of every type `choose` takes from a scene by default."""

ANSWER_WEIGHTS: dict[str, dict[str, float]] = {"count": {"0": 0.5}, "cross": {"no": 0.5}}
"""How likely `choose` draws an answer among those a scene offers, by type; 1 where nothing is said."""

COMMON: dict[str, tuple[str, float]] = {"next": (NOWHERE, 0.35), "cross": ("no", 0.1)}
"""Answers that are often the only ones left in a scene, and how likely `choose` then asks at all, by type:
asked every time, "no" would be right nine times in ten."""

CAMERA_WEIGHTS: dict[str, float] = {"CAM_FRONT": 2.0}
"""How likely `choose` draws a camera; 1 where nothing is said."""

FRONT = "CAM_FRONT"
FRONTS = (FRONT, "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT")

DIM = ("night", "rain", "fog")
"""Weathers in which a clear road is driven slowly."""

DECISIONS: tuple[tuple[str, str], ...] = (
    ("stop", "light"),
    ("stop", "person"),
    ("brake", "vehicle"),
    ("yield", "crossing"),
    ("swerve", "cone"),
    ("go", "clear"),
)
"""Action and reason of every rule of planning, in order; the first rule that applies decides."""


@dataclass(frozen=True)
class Question:
    """A question about a scene and its answer.

    ``stage``: perception, prediction, planning or behaviour. ``type``: one of `TYPES`. ``camera``,
    ``kind``: what is asked about, None where the text names none. ``text``: words separated by single
    spaces, " ?" last. ``answer``: one word of ``ANSWERS[type]``.
    """

    stage: str
    type: str
    camera: str | None
    kind: str | None
    text: str
    answer: str


def plural(kind: str) -> str:
    """Return the plural of a kind of thing."""
    return "buses" if kind == "bus" else f"{kind}s"


def _vocabulary() -> tuple[str, ...]:
    words = {*KINDS, *(plural(kind) for kind in KINDS), *NUSCENES.names}
    words.update(word for answers in ANSWERS.values() for word in answers)
    words.update(word for text in TEXTS.values() for word in text.split() if not word.startswith("{"))
    return tuple(sorted(words))


VOCABULARY: tuple[str, ...] = _vocabulary()
"""Every word of every question and answer, and the names of the cameras; sorted."""


def check_types(names: Iterable[str]) -> None:
    """Raise a PruneError with the nearest known name if one of ``names`` is no type of question."""
    for name in names:
        if name not in STAGES:
            raise PruneError(f"{name!r} is not a type of question.{did_you_mean(str(name), TYPES)}")


def all_questions(
    scene: Scene, pixels: Sequence[Sequence[int]], lamps: Sequence[Sequence[int]], rig: Rig = NUSCENES
) -> list[Question]:
    """Return every question that the pictures of ``scene`` can answer.

    Args:
        pixels: visible pixels of every thing in every camera, [camera][thing], cameras in the rig's
            order, in a picture of the reference size (144 x 144).
        lamps: its visible lamp pixels, likewise.

    Returns:
        Questions in the order of `TYPES`, then cameras, then kinds; no text twice.

    Raises:
        PruneError: a table does not fit the rig or the scene, or the rig has cameras unknown to nuScenes.
    """
    for name in rig.names:
        NUSCENES.camera(name)
    _check_table("pixels", pixels, scene, rig)
    _check_table("lamps", lamps, scene, rig)
    views = [
        _View.of(name, scene, row, lamp) for name, row, lamp in zip(rig.names, pixels, lamps, strict=True)
    ]
    facts = _facts(scene, pixels, lamps, rig)
    found: list[Question] = []
    for view in views:
        found += (_question("exists", answer, view.camera, kind) for kind, answer in _exists(view))
    for view in views:
        found += (_question("count", answer, view.camera, kind) for kind, answer in _count(view))
    found += _about_nearest("colour", views, COLOURED, lambda view, t: scene.things[t].colour)
    for view in views:
        if answer := _agreed(view, view.clear, view.doubtful, lambda view, t: scene.things[t].kind):
            found.append(_question("type", answer, view.camera))
    for type_, answers in facts.items():
        found += _about_nearest(type_, views, RIDDEN, _where_lamps_show(answers))
    decision = _decide(scene, views)
    if decision is not None:
        action, reason = decision
        found += [_question("action", action), _question("reason", reason)]
    found.append(_question("steering", _steering(scene.road.curvature)))
    if decision is not None:
        found.append(_question("speed", _speed(action, scene.weather)))
    return found


def choose(
    questions: Sequence[Question], rng: random.Random, per_type: Mapping[str, int] = PER_SCENE
) -> list[Question]:
    """Draw ``per_type`` questions of each type, without replacement; fewer where there are fewer.

    For each draw first an answer among those left, by `ANSWER_WEIGHTS`, so that frequent answers do
    not crowd out rare ones; then a question with this answer, by `CAMERA_WEIGHTS`.

    Returns:
        Questions in the order of `TYPES`; the same for the same questions and state of ``rng``.

    Raises:
        PruneError: ``per_type`` names an unknown type.
    """
    check_types(per_type)
    chosen: list[Question] = []
    for type_ in TYPES:
        pool: dict[str, list[Question]] = {}
        for question in questions:
            if question.type == type_:
                pool.setdefault(question.answer, []).append(question)
        weights = ANSWER_WEIGHTS.get(type_, {})
        for _ in range(per_type.get(type_, 0)):
            if not pool:
                break
            common, chance = COMMON.get(type_, (None, 1.0))
            if list(pool) == [common] and rng.random() >= chance:
                break
            answer = rng.choices(list(pool), [weights.get(answer, 1.0) for answer in pool])[0]
            left = pool[answer]
            odds = [CAMERA_WEIGHTS.get(question.camera or "", 1.0) for question in left]
            chosen.append(left.pop(rng.choices(range(len(left)), odds)[0]))
            if not left:
                del pool[answer]
    return chosen


def _check_table(name: str, table: Sequence[Sequence[int]], scene: Scene, rig: Rig) -> None:
    cameras, things = len(rig), len(scene.things)
    if len(table) != cameras or any(len(row) != things for row in table):
        raise PruneError(
            f"scene {scene.name}: {name} must have {cameras} rows (the cameras of rig {rig.name}) "
            f"of {things} numbers (the scene's things); got rows of {[len(row) for row in table]}"
        )


def _question(type_: str, answer: str, camera: str | None = None, kind: str | None = None) -> Question:
    text = TEXTS[type_]
    if camera is not None:
        text = text.format(camera=camera, kind=kind, kinds=plural(kind or ""))
    return Question(STAGES[type_], type_, camera, kind, text, answer)


@dataclass(frozen=True)
class _View:
    """What one camera shows: (distance, thing) pairs, nearest first, of what is clear or doubtful in it."""

    camera: str
    clear: list[tuple[float, int]]
    doubtful: list[tuple[float, int]]
    clear_of: dict[str, list[tuple[float, int]]]
    doubtful_of: dict[str, list[tuple[float, int]]]
    lamps: Sequence[int]

    @classmethod
    def of(cls, camera: str, scene: Scene, pixels: Sequence[int], lamps: Sequence[int]) -> _View:
        clear: list[tuple[float, int]] = []
        doubtful: list[tuple[float, int]] = []
        for t, thing in enumerate(scene.things):
            if pixels[t] > 0:
                (clear if pixels[t] >= MIN_PIXELS else doubtful).append((math.hypot(thing.x, thing.y), t))
        clear.sort()
        doubtful.sort()
        return cls(camera, clear, doubtful, _by_kind(clear, scene), _by_kind(doubtful, scene), lamps)


def _by_kind(pairs: list[tuple[float, int]], scene: Scene) -> dict[str, list[tuple[float, int]]]:
    kinds: dict[str, list[tuple[float, int]]] = {}
    for pair in pairs:
        kinds.setdefault(scene.things[pair[1]].kind, []).append(pair)
    return kinds


def _exists(view: _View) -> Iterator[tuple[str, str]]:
    for kind in KINDS:
        if kind in view.clear_of:
            yield kind, "yes"
        elif kind not in view.doubtful_of:
            yield kind, "no"


def _count(view: _View) -> Iterator[tuple[str, str]]:
    for kind in KINDS:
        number = len(view.clear_of.get(kind, ()))
        if kind not in view.doubtful_of and number <= MAX_COUNT:
            yield kind, str(number)


_Answer = Callable[[_View, int], "str | None"]
"""What a thing, seen in a view, answers to some type of question; None if it cannot be told."""


def _about_nearest(
    type_: str, views: list[_View], kinds: Sequence[str], answer_of: _Answer
) -> Iterator[Question]:
    for view in views:
        for kind in kinds:
            if kind in view.clear_of:
                clear, doubtful = view.clear_of[kind], view.doubtful_of.get(kind, [])
                if answer := _agreed(view, clear, doubtful, answer_of):
                    yield _question(type_, answer, view.camera, kind)


def _agreed(
    view: _View, clear: list[tuple[float, int]], doubtful: list[tuple[float, int]], answer_of: _Answer
) -> str | None:
    """The answer of the nearest clear thing; None if it has none or another may be the nearest.

    Another may be if it is doubtful and nearer, or clear, hardly farther and of another answer.
    """
    if not clear:
        return None
    nearest = clear[0][0]
    if doubtful and doubtful[0][0] < nearest:
        return None
    answer = answer_of(view, clear[0][1])
    limit = nearest + max(1.0, 0.08 * nearest)
    for distance, t in clear[1:]:
        if distance > limit:
            break
        if answer_of(view, t) != answer:
            return None
    return answer


def _where_lamps_show(answers: Sequence[str | None]) -> _Answer:
    return lambda view, t: answers[t] if view.lamps[t] >= MIN_LAMPS else None


def _facts(
    scene: Scene, pixels: Sequence[Sequence[int]], lamps: Sequence[Sequence[int]], rig: Rig
) -> dict[str, list[str | None]]:
    """What every thing answers to the types about its motion, once per scene; None if it cannot be told."""
    where = sectors(rig)
    facts: dict[str, list[str | None]] = {"motion": [], "next": [], "cross": []}
    for t, thing in enumerate(scene.things):
        told = thing.kind in RIDDEN and any(row[t] >= MIN_LAMPS for row in lamps)
        unseen = sum(1 << v for v, row in enumerate(pixels) if row[t] <= 0)
        facts["motion"].append(course(thing) if told else None)
        facts["next"].append(_next(next_cameras(thing, unseen, where), rig) if told else None)
        facts["cross"].append(_cross(thing, scene) if told else None)
    return facts


def _next(cameras: int | None, rig: Rig) -> str | None:
    if cameras is None or cameras.bit_count() > 1:
        return None
    return rig.names[cameras.bit_length() - 1] if cameras else NOWHERE


def _cross(thing: Thing, scene: Scene) -> str | None:
    if on_path(thing, scene.road, WIDE):
        return None
    crosses = crossing(thing, scene.road)
    return None if crosses is None else "yes" if crosses else "no"


def _decide(scene: Scene, views: Sequence[_View]) -> tuple[str, str] | None:
    """Return the action and its reason, or None if they hang on a threshold or on what is hard to see.

    The rules are asked twice: about all things with every limit at its widest, and about the clearly
    visible ones with every limit at its tightest. Wider limits and more things only make more rules
    apply, so if the same rule comes first in both, it does so for everything between.
    """
    front = {t for view in views if view.camera == FRONT for _, t in view.clear}
    lit = {t for view in views if view.camera in FRONTS for _, t in view.clear if view.lamps[t] >= MIN_LAMPS}
    loose = tight = _CLEAR
    for t, thing in enumerate(scene.things):
        crosses = crossing(thing, scene.road) if thing.kind in RIDDEN else False
        if crosses is not False:
            loose = min(loose, _CROSSING)
        if crosses and t in lit:
            tight = min(tight, _CROSSING)
        loose = min(loose, _rule(thing, scene, 1.1, 2.3))
        if t in front:
            tight = min(tight, _rule(thing, scene, 0.9, 1.3))
    return DECISIONS[loose] if loose == tight else None


_LIGHT, _PERSON, _VEHICLE, _CROSSING, _CONE, _CLEAR = range(len(DECISIONS))


def _rule(thing: Thing, scene: Scene, stretch: float, half: float) -> int:
    """Which of `DECISIONS` ``thing`` calls for by its place; x limits times ``stretch``."""
    kind = thing.kind
    if kind == "light":
        return _LIGHT if thing.colour == "red" and 0 < thing.x < 28 * stretch else _CLEAR
    if kind in VEHICLES:
        return _VEHICLE if on_path(thing, scene.road, half, 18 * stretch) else _CLEAR
    if on_path(thing, scene.road, half, 20 * stretch):
        return _CONE if kind == "cone" else _PERSON
    return _CLEAR


def _steering(curvature: float) -> str:
    return "left" if curvature > 0 else "right" if curvature < 0 else "straight"


def _speed(action: str, weather: str) -> str:
    if action == "stop":
        return "standing"
    return "fast" if action == "go" and weather not in DIM else "slowly"
