"""A street scene around the ego vehicle, as plain numbers.

Metres; x ahead, y to the left, z up; the ego stands at the origin on its lane's centre line, looking
along +x. Headings are radians, counter-clockwise from +x. Everything drawn and everything asked
(`render`, `questions`) follows from a `Scene`; `generate` makes one from a split and a number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

KINDS = ("car", "truck", "bus", "pedestrian", "cyclist", "cone", "light")
VEHICLES = ("car", "truck", "bus")
RIDDEN = (*VEHICLES, "cyclist")
"""Kinds that carry lamps: white ahead and crimson behind while moving, amber all round at rest."""

COLOURS = ("red", "blue", "green", "yellow", "white", "black", "orange")
LIGHT_COLOURS = ("red", "green")
WEATHERS = ("day", "dusk", "night", "rain", "fog")

SPEED = {"car": 7.0, "truck": 7.0, "bus": 7.0, "cyclist": 4.0, "pedestrian": 1.4, "cone": 0.0, "light": 0.0}
"""Speed of whatever moves, by kind, in m/s. One number per kind, so that a single picture, which shows
where an object is and where it heads, determines where it will be."""

SIZE = {
    "car": (4.4, 1.9, 1.5),
    "truck": (8.0, 2.5, 3.3),
    "bus": (11.0, 2.6, 3.2),
    "pedestrian": (0.6, 0.6, 1.75),
    "cyclist": (1.8, 0.6, 1.75),
    "cone": (0.5, 0.5, 0.9),
    "light": (0.5, 0.5, 3.9),
}
"""Length (along the heading), width and height of every kind, metres."""

LANE = 3.5
"""Width of a lane, metres."""

EYE = 1.6
"""Height of all six cameras above the road, metres; they share one centre, above the ego's."""


@dataclass(frozen=True)
class Thing:
    """One road user or object.

    ``kind``: one of `KINDS`. ``colour``: one of `COLOURS`; a light's is its lamp's, a cone's is orange.
    ``x``, ``y``: centre of the footprint, metres. ``heading``: radians. ``moving``: at `SPEED`.
    """

    kind: str
    colour: str
    x: float
    y: float
    heading: float = 0.0
    moving: bool = False

    @property
    def size(self) -> tuple[float, float, float]:
        """Length, width, height in metres."""
        return SIZE[self.kind]

    @property
    def velocity(self) -> tuple[float, float]:
        """Metres per second along x and y."""
        speed = SPEED[self.kind] if self.moving else 0.0
        return speed * math.cos(self.heading), speed * math.sin(self.heading)


@dataclass(frozen=True)
class Road:
    """The ego's road: the centre of the ego's lane is y = curvature * x**2 / 2.

    ``lanes_left``: oncoming lanes (at +1, +2, ... lane widths). ``lanes_right``: lanes to the right,
    in our direction. ``junction``: distance ahead to the near edge of a crossing road, or None.
    """

    curvature: float = 0.0
    lanes_left: int = 1
    lanes_right: int = 0
    junction: float | None = None

    JUNCTION_WIDTH = 9.0

    def centre(self, x: float) -> float:
        """y of the ego lane's centre line at x."""
        return self.curvature * x * x / 2

    def offset(self, x: float, y: float) -> float:
        """Signed distance in y from the ego lane's centre line (left positive)."""
        return y - self.centre(x)

    def direction(self, x: float) -> float:
        """Heading of the lane at x, radians."""
        return math.atan(self.curvature * x)

    @property
    def left_edge(self) -> float:
        """Offset of the road's left edge."""
        return LANE * (self.lanes_left + 0.5)

    @property
    def right_edge(self) -> float:
        """Offset of the road's right edge (negative)."""
        return -LANE * (self.lanes_right + 0.5)


@dataclass(frozen=True)
class Block:
    """A building: centre, heading, size, and grey level; never asked about."""

    x: float
    y: float
    heading: float
    size: tuple[float, float, float]
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """Everything there is. ``name`` ("split/number") seeds what only the pixels need (rain)."""

    name: str
    weather: str
    road: Road
    things: tuple[Thing, ...]
    blocks: tuple[Block, ...] = ()
