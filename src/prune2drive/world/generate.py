"""Scenes from a split and a number: `scene("train", 17)` is the same scene everywhere, for ever.

The Mersenne Twister of Python's ``random``, seeded with the text "split/number" (hashed with
SHA-512), draws everything. Two splits share no seed text, so they cannot share a scene but by chance.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from ..errors import PruneError, did_you_mean
from .scene import COLOURS, LANE, LIGHT_COLOURS, SIZE, VEHICLES, WEATHERS, Block, Road, Scene, Thing

SPLITS = ("train", "calibration", "validation", "test")
"""train: the model's weights. calibration: choices of the user (rates). validation: choices made
while building the model. test: the figures that are reported, and nothing else."""

_EVENTS = ("none", "none", "light", "person", "vehicle", "crossing", "cone")
_EGO = Thing("car", "white", 0.0, 0.0)


def check_split(split: str) -> str:
    """Return ``split``, or raise a PruneError that lists the splits."""
    if split not in SPLITS:
        raise PruneError(
            f"no split {split!r} in the world benchmark; it has {', '.join(SPLITS)}."
            f"{did_you_mean(str(split), SPLITS)}"
        )
    return split


def scenes(split: str, count: int, start: int = 0) -> Iterator[Scene]:
    """Yield scenes ``start`` to ``start + count - 1`` of a split."""
    return (scene(split, number) for number in range(start, start + count))


def scene(split: str, number: int) -> Scene:
    """Draw scene ``number`` (0 or more) of ``split``.

    Raises:
        PruneError: an unknown split, or a negative number.
    """
    name = f"{check_split(split)}/{number}"
    if number < 0:
        raise PruneError(f"scene {name}: scenes are numbered from 0")
    rng = random.Random(f"prune2drive world 1: {name}")
    event = rng.choice(_EVENTS)
    builder = _Builder(rng, _road(rng, event))
    builder.event(event)
    builder.large()
    builder.traffic()
    rng.shuffle(builder.things)  # the order must not tell what was placed for a reason
    return Scene(name, rng.choice(WEATHERS), builder.road, tuple(builder.things), builder.blocks())


def _road(rng: random.Random, event: str) -> Road:
    curvature = rng.choice((0.0, 0.0, 1.0, -1.0)) * rng.uniform(0.012, 0.026)
    crossed = event in ("light", "crossing") or rng.random() < 0.3
    near = rng.uniform(9, 20) if event in ("light", "crossing") else rng.uniform(8, 26)
    return Road(curvature, rng.choice((1, 1, 2)), rng.choice((0, 1)), near if crossed else None)


class _Builder:
    """Places things one by one, each where it overlaps nothing placed before."""

    def __init__(self, rng: random.Random, road: Road) -> None:
        self.rng = rng
        self.road = road
        self.things: list[Thing] = []

    def add(self, thing: Thing) -> bool:
        """Place ``thing`` unless it overlaps another, or the ego."""
        if any(_overlap(thing, other) for other in (_EGO, *self.things)):
            return False
        self.things.append(thing)
        return True

    def colour(self) -> str:
        return self.rng.choice(COLOURS)

    def on_lane(self, kind: str, x: float, lane: int, moving: bool) -> Thing:
        """Something that drives along: lane 0 is the ego's, positive ones are oncoming."""
        turned = math.pi if lane > 0 else 0.0
        y = self.road.centre(x) + lane * LANE + self.rng.uniform(-0.3, 0.3)
        return Thing(kind, self.colour(), x, y, self.road.direction(x) + turned, moving)

    def crossing(self, kind: str, side: int, far: float, moving: bool) -> Thing | None:
        """Something on the crossing road, ``far`` metres beside us, driving on the right-hand side."""
        if self.road.junction is None:
            return None
        leftward = self.rng.random() < 0.5
        lane = 0.73 if leftward else 0.27
        x = self.road.junction + lane * Road.JUNCTION_WIDTH
        heading = math.pi / 2 if leftward else -math.pi / 2
        return Thing(kind, self.colour(), x, self.road.centre(x) + side * far, heading, moving)

    def event(self, event: str) -> None:
        """Place what decides the safe action."""
        rng = self.rng
        if self.road.junction is not None:
            colour = "red" if event == "light" else rng.choice(("green", "green", "red"))
            if event in ("crossing", "person", "vehicle", "cone"):
                colour = "green"
            x = self.road.junction - rng.uniform(0.8, 2.0)
            y = self.road.centre(x) + self.road.right_edge - rng.uniform(0.6, 1.2)
            self.add(Thing("light", colour, x, y))
        if event == "person":
            kind = rng.choice(("pedestrian", "pedestrian", "cyclist"))
            x = rng.uniform(5, 17)
            y = self.road.centre(x) + rng.uniform(-1.1, 1.1)
            heading = self.road.direction(x) + rng.choice((1, -1)) * math.pi / 2
            self.add(Thing(kind, self.colour(), x, y, heading, True))
        elif event == "vehicle":
            kind = rng.choice(VEHICLES)
            x = rng.uniform(6, 15) + SIZE[kind][0] / 2 - 2
            self.add(self.on_lane(kind, x, 0, rng.random() < 0.5))
        elif event == "cone":
            x = rng.uniform(5, 16)
            for _ in range(rng.randint(1, 2)):
                self.add(Thing("cone", "orange", x, self.road.centre(x) + rng.uniform(-1.1, 1.1)))
                x += rng.uniform(1.0, 2.0)
        elif event == "crossing":
            kind = rng.choice((*VEHICLES, "cyclist"))
            far = rng.uniform(5, 11 if kind == "cyclist" else 16)
            leftward = rng.random() < 0.5
            assert self.road.junction is not None  # `_road` gives this event one
            x = self.road.junction + (0.73 if leftward else 0.27) * Road.JUNCTION_WIDTH
            y = self.road.centre(x) + (-far if leftward else far)
            self.add(Thing(kind, self.colour(), x, y, math.pi / 2 * (1 if leftward else -1), True))

    def large(self) -> None:
        """Sometimes a bus or truck right beside us, one colour, filling most of a view."""
        rng = self.rng
        if rng.random() < 0.4:
            kind = rng.choice(("bus", "bus", "truck"))
            lane = rng.choice((1, -1)) if self.road.lanes_right else 1
            thing = self.on_lane(kind, rng.uniform(-5, 6), lane, rng.random() < 0.6)
            colour = "orange" if rng.random() < 0.4 else thing.colour
            self.add(Thing(kind, colour, thing.x, thing.y, thing.heading, thing.moving))

    def traffic(self) -> None:
        """Everything else, all around."""
        rng, road = self.rng, self.road
        lanes = [n for n in range(-road.lanes_right, road.lanes_left + 1) if n != 0]
        for _ in range(rng.randint(2, 6)):
            kind = rng.choice(("car", "car", "car", "truck", "bus", "cyclist"))
            self.add(self.on_lane(kind, rng.uniform(-32, 34), rng.choice(lanes), rng.random() < 0.7))
        if rng.random() < 0.6:  # behind us on our lane
            kind = rng.choice(("car", "truck", "bus", "cyclist"))
            self.add(self.on_lane(kind, rng.uniform(-28, -8), 0, rng.random() < 0.6))
        for _ in range(rng.randint(0, 5)):  # parked beside the road
            kind = rng.choice(("car", "car", "truck"))
            x, side = rng.uniform(-30, 32), rng.choice((1, -1))
            if not self._at_junction(x, 6.0):
                edge = road.left_edge if side > 0 else road.right_edge
                turned = math.pi if side > 0 else 0.0
                y = road.centre(x) + edge + side * (SIZE[kind][1] / 2 + 0.2)
                self.add(Thing(kind, self.colour(), x, y, road.direction(x) + turned, False))
        if road.junction is not None:
            for _ in range(rng.randint(0, 3)):
                side, far = rng.choice((1, -1)), rng.uniform(6, 28)
                thing = self.crossing(
                    rng.choice(("car", "truck", "bus", "cyclist")), side, far, rng.random() < 0.6
                )
                if thing is not None:
                    self.add(thing)
        for _ in range(rng.randint(1, 6)):
            x = rng.uniform(-20, 22)
            y, side = self._walk(x)
            heading = road.direction(x) + rng.choice((0.0, math.pi))
            self.add(Thing("pedestrian", self.colour(), x, y, heading, rng.random() < 0.5))
        for _ in range(rng.randint(0, 3)):
            x = rng.uniform(-18, 20)
            y, side = self._walk(x)
            self.add(
                Thing("cyclist", self.colour(), x, y, rng.uniform(-math.pi, math.pi), rng.random() < 0.6)
            )
        for _ in range(rng.randint(0, 2)):
            x, side = rng.uniform(-16, 18), rng.choice((1, -1))
            edge = road.left_edge if side > 0 else road.right_edge
            for _ in range(rng.randint(1, 3)):
                self.add(Thing("cone", "orange", x, road.centre(x) + edge + side * rng.uniform(-0.6, 0.4)))
                x += rng.uniform(1.2, 2.5)
        for _ in range(rng.randint(0, 3)):  # lights that are not ours: none ahead of us
            x, side = rng.uniform(-22, -2), rng.choice((1, -1))
            edge = road.left_edge if side > 0 else road.right_edge
            self.add(
                Thing("light", rng.choice(LIGHT_COLOURS), x, road.centre(x) + edge + side * rng.uniform(1, 4))
            )

    def blocks(self) -> tuple[Block, ...]:
        """Buildings on both sides, clear of everything placed."""
        rng, road = self.rng, self.road
        out = []
        for side in (1, -1):
            edge = road.left_edge if side > 0 else road.right_edge
            x = -50.0
            while x < 50:
                length, depth, height = rng.uniform(8, 18), rng.uniform(6, 10), rng.uniform(4, 14)
                middle = x + length / 2
                setback = rng.uniform(8, 13)
                y = road.centre(middle) + edge + side * (setback + depth / 2)
                grey = rng.uniform(0.35, 0.75)
                colour = (grey * rng.uniform(0.95, 1.1), grey, grey * rng.uniform(0.85, 1.0))
                clear = not self._at_junction(middle, length / 2 + 3)
                if clear and rng.random() < 0.75:
                    out.append(Block(middle, y, road.direction(middle), (length, depth, height), colour))
                x += length + rng.uniform(1, 8)
        return tuple(out)

    def _walk(self, x: float) -> tuple[float, int]:
        """A place on one of the pavements at x."""
        side = self.rng.choice((1, -1))
        edge = self.road.left_edge if side > 0 else self.road.right_edge
        return self.road.centre(x) + edge + side * self.rng.uniform(3.2, 6.5), side

    def _at_junction(self, x: float, margin: float) -> bool:
        near = self.road.junction
        return near is not None and near - margin < x < near + Road.JUNCTION_WIDTH + margin


def _overlap(a: Thing, b: Thing, gap: float = 0.3) -> bool:
    """Whether two footprints, grown by half of ``gap`` each, overlap (separating axes)."""
    dx, dy = b.x - a.x, b.y - a.y
    reach = (math.hypot(*a.size[:2]) + math.hypot(*b.size[:2])) / 2 + gap
    if dx * dx + dy * dy > reach * reach:
        return False
    for one, other in ((a, b), (b, a)):
        cos, sin = math.cos(one.heading), math.sin(one.heading)
        turn = other.heading - one.heading
        c, s = abs(math.cos(turn)), abs(math.sin(turn))
        along, across = abs(dx * cos + dy * sin), abs(-dx * sin + dy * cos)
        length, width = other.size[0], other.size[1]
        if along > (one.size[0] + c * length + s * width) / 2 + gap:
            return False
        if across > (one.size[1] + s * length + c * width) / 2 + gap:
            return False
    return True
