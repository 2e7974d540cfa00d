"""What every kind of thing is built of: a few boxes with a colour and a pattern.

A box row is (x, y, z, cos, sin, half length, half width, half height, red, green, blue, pattern,
owner, moving): centre in metres, heading, colours in [0, 1]; ``owner`` is the index of the thing in its
scene, -1 for a building.
"""

from __future__ import annotations

import math

from .scene import SIZE, Block, Scene, Thing

PLAIN, BODY, BUS, LAMP, CONE, BUILDING, RIDER = range(7)
"""Patterns. BODY: lamps at both ends. BUS: the same, with a band of windows. LAMP: shines at night.
CONE: a white stripe. BUILDING: windows. RIDER: lamps on a bicycle, larger for its size."""

COLUMNS = 14

RGB = {
    "red": (0.85, 0.10, 0.10),
    "blue": (0.12, 0.25, 0.85),
    "green": (0.10, 0.60, 0.20),
    "yellow": (0.95, 0.85, 0.10),
    "white": (0.93, 0.93, 0.95),
    "black": (0.08, 0.08, 0.09),
    "orange": (1.00, 0.48, 0.05),
}
_LIGHTS = {"red": (1.0, 0.05, 0.05), "green": (0.05, 1.0, 0.35)}
_SKIN = (0.85, 0.65, 0.50)
_DARK = (0.12, 0.13, 0.15)
_POLE = (0.35, 0.36, 0.38)
_GLASS = (0.16, 0.20, 0.26)

Row = tuple[float, ...]


def boxes(scene: Scene) -> list[Row]:
    """Every box of a scene, rows of `COLUMNS` numbers."""
    rows = [row for owner, thing in enumerate(scene.things) for row in thing_boxes(thing, owner)]
    return rows + [_building(block) for block in scene.blocks]


def thing_boxes(thing: Thing, owner: int) -> list[Row]:
    """The boxes of one thing, as large together as its `SIZE`.

    But for a pedestrian, 0.4 m deep, and a cyclist, whose head ends 3 cm above.
    """
    length, width, height = SIZE[thing.kind]
    colour = RGB[thing.colour]

    def part(
        size: tuple[float, float, float],
        at: tuple[float, float],
        rgb: tuple[float, float, float],
        pattern: int = PLAIN,
    ) -> Row:
        """A box of ``size`` whose centre is ``at[0]`` metres ahead of the thing's, bottom at ``at[1]``."""
        cos, sin = math.cos(thing.heading), math.sin(thing.heading)
        middle = (thing.x + at[0] * cos, thing.y + at[0] * sin, at[1] + size[2] / 2)
        half = (size[0] / 2, size[1] / 2, size[2] / 2)
        return (*middle, cos, sin, *half, *rgb, float(pattern), float(owner), float(thing.moving))

    if thing.kind == "car":
        return [
            part((length, width, 0.75), (0, 0.25), colour, BODY),
            part((2.2, width * 0.88, 0.5), (-0.2, 1.0), _GLASS),
            part((1.7, width * 0.8, 0.06), (-0.2, 1.44), colour),
        ]
    if thing.kind == "truck":
        return [
            part((2.0, width * 0.92, 1.55), (length / 2 - 1.0, 0.95), _GLASS),
            part((length, width * 0.8, 0.5), (0, 0.45), _DARK, BODY),
            part((5.7, width, height - 1.0), (-length / 2 + 2.85, 1.0), colour),
        ]
    if thing.kind == "bus":
        return [part((length, width, height - 0.25), (0, 0.25), colour, BUS)]
    if thing.kind == "pedestrian":
        return [
            part((0.34, 0.46, 0.75), (0, 0), _DARK),
            part((0.4, 0.6, 0.72), (0, 0.75), colour),
            part((0.28, 0.28, 0.28), (0, 1.47), _SKIN),
        ]
    if thing.kind == "cyclist":
        return [
            part((length, 0.3, 0.7), (0, 0.15), _DARK, RIDER),
            part((0.45, width, 0.65), (-0.1, 0.85), colour),
            part((0.28, 0.28, 0.28), (0, 1.5), _SKIN),
        ]
    if thing.kind == "cone":
        return [part((length, width, 0.12), (0, 0), _DARK), part((0.36, 0.36, height), (0, 0), colour, CONE)]
    return [
        part((0.2, 0.2, 2.5), (0, 0), _POLE),
        part((length, width, 0.3), (0, 2.5), _DARK),
        part((length, width, 0.9), (0, 2.7), _LIGHTS[thing.colour], LAMP),
        part((length, width, 0.3), (0, 3.6), _DARK),
    ]


def _building(block: Block) -> Row:
    length, width, height = block.size
    cos, sin = math.cos(block.heading), math.sin(block.heading)
    half = (length / 2, width / 2, height / 2)
    return (block.x, block.y, height / 2, cos, sin, *half, *block.colour, float(BUILDING), -1.0, 0.0)
