"""Where things are and go, seen from the ego: bearings, headings, the cameras ahead of a course, our path.

The ego stands still at the origin; whatever moves keeps its velocity. Distances in metres, times in
seconds, headings in radians, bearings of cameras in degrees; all counter-clockwise from straight ahead.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from ..rig import Rig
from .scene import Road, Thing

REACH = 30.0
"""Length of the strip ahead that is our path."""

NARROW, WIDE = 1.2, 2.4
"""Half widths of our path; what crosses it must do so for both."""

ACROSS = math.radians(30.0)
"""Whoever heads along the lane, up to this angle, does not cross it."""

_CROSSING_SECONDS = 3.0
_BORDER = math.radians(8.0)
_SIGHT = 40.0
_CLOSE = 2.0
_STEP, _STEPS = 0.1, 40
_SPEEDS = (1.0, 0.8, 1.25)


def wrapped(angle: float) -> float:
    """Return ``angle`` (radians) turned into [-pi, pi)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi


def course(thing: Thing) -> str | None:
    """Return where ``thing`` goes as the ego sees it: stopped, away, towards, left or right.

    None within 8 degrees of the border between two of them: a picture does not tell which.
    """
    if not thing.moving:
        return "stopped"
    turn = wrapped(thing.heading - math.atan2(thing.y, thing.x))
    size = abs(turn)
    if min(abs(size - math.pi / 4), abs(size - 3 * math.pi / 4)) < _BORDER:
        return None
    if size < math.pi / 4:
        return "away"
    if size > 3 * math.pi / 4:
        return "towards"
    return "left" if turn > 0 else "right"


@dataclass(frozen=True)
class Sectors:
    """Which cameras of a rig see which bearings.

    ``edges``: bearings in degrees, ascending, in [-180, 180), where a camera begins or ends.
    ``cameras``: one more entry than ``edges``: the cameras between two edges, bit v for camera v.
    """

    edges: tuple[float, ...]
    cameras: tuple[int, ...]

    def at(self, bearing: float) -> int:
        """Return the cameras (bits) whose horizontal field of view holds ``bearing``, in radians."""
        return self.cameras[bisect_right(self.edges, math.degrees(bearing))]


@lru_cache(maxsize=16)
def sectors(rig: Rig) -> Sectors:
    """Return the `Sectors` of ``rig``."""
    edges = sorted(
        {
            (camera.yaw_deg + side * camera.fov_deg / 2 + 180) % 360 - 180
            for camera in rig.cameras
            for side in (-1, 1)
        }
    )
    bounds = [-180.0, *edges, 180.0]
    middles = [(low + high) / 2 for low, high in pairwise(bounds)]
    return Sectors(tuple(edges), tuple(_cameras_at(middle, rig) for middle in middles))


def _cameras_at(bearing_deg: float, rig: Rig) -> int:
    bits = 0
    for v, camera in enumerate(rig.cameras):
        if abs((bearing_deg - camera.yaw_deg + 180) % 360 - 180) <= camera.fov_deg / 2:
            bits |= 1 << v
    return bits


def next_cameras(thing: Thing, unseen: int, where: Sectors) -> int | None:
    """Return the cameras among ``unseen`` that the centre of ``thing`` reaches first within 4 s.

    Args:
        unseen: the cameras (bits) to look for, those that do not show the thing now.
        where: the rig's `sectors`.

    Returns:
        Bits, one of them unless two overlapping cameras come at once, 0 for none within 40 m; None if
        it hangs on the exact speed, which a picture does not show, or on which side a course that leads
        within 2 m of us passes.
    """
    if not thing.moving:
        return 0
    first = _reached(thing, unseen, where, _SPEEDS[0])
    if first is None:
        return None
    for speed in _SPEEDS[1:]:
        if _reached(thing, unseen, where, speed) != first:
            return None
    return first


def _reached(thing: Thing, unseen: int, where: Sectors, speed: float) -> int | None:
    vx, vy = thing.velocity
    x, y, dx, dy = thing.x, thing.y, vx * speed * _STEP, vy * speed * _STEP
    for step in range(_STEPS + 1):
        px, py = x + step * dx, y + step * dy
        far = px * px + py * py
        if far < _CLOSE * _CLOSE:
            return None
        if far <= _SIGHT * _SIGHT and (found := where.at(math.atan2(py, px)) & unseen):
            return found
    return 0


def on_path(thing: Thing, road: Road, half: float, reach: float = REACH) -> bool:
    """Whether the centre of ``thing`` is on our path, ``half`` wide to either side and ``reach`` long."""
    return 0 < thing.x < reach and abs(road.offset(thing.x, thing.y)) < half


def crossing(thing: Thing, road: Road) -> bool | None:
    """Whether ``thing``, now beside our path, enters it across the lane within 3 s.

    None if that hangs on how wide the path is, or if the thing is already on it and heads across.
    """
    if not thing.moving:
        return False
    if on_path(thing, road, WIDE):
        return None if _heads_across(thing, road, thing.x) else False
    narrow, wide = _enters(thing, road, NARROW), _enters(thing, road, WIDE)
    return narrow if narrow == wide else None


def _heads_across(thing: Thing, road: Road, x: float) -> bool:
    turn = (thing.heading - road.direction(x)) % math.pi
    return min(turn, math.pi - turn) > ACROSS


def _enters(thing: Thing, road: Road, half: float) -> bool:
    """Whether the thing, now off the path, comes onto it in time and heads across where it does.

    The offset is at most quadratic in time, so the moments at which the thing is on the path's outline
    are exact; between two of them it is on the path throughout or not at all.
    """
    (vx, vy), bend = thing.velocity, road.curvature
    moments = {0.0, _CROSSING_SECONDS}
    moments.update(_roots(0.0, vx, thing.x), _roots(0.0, vx, thing.x - REACH))
    square, slope = -bend * vx * vx / 2, vy - bend * thing.x * vx
    for side in (-half, half):
        moments.update(_roots(square, slope, road.offset(thing.x, thing.y) - side))
    times = sorted(time for time in moments if 0 <= time <= _CROSSING_SECONDS)
    for start, end in pairwise(times):
        middle = (start + end) / 2
        x, y = thing.x + middle * vx, thing.y + middle * vy
        if 0 < x < REACH and abs(road.offset(x, y)) < half:
            return _heads_across(thing, road, thing.x + start * vx)
    return False


def _roots(a: float, b: float, c: float) -> tuple[float, ...]:
    """Real roots of a t^2 + b t + c."""
    if abs(a) < 1e-12:
        return () if abs(b) < 1e-12 else (-c / b,)
    inside = b * b - 4 * a * c
    if inside < 0:
        return ()
    # The textbook formula cancels for a nearly straight road, where a is tiny.
    far = -(b + math.copysign(math.sqrt(inside), b)) / 2
    return (far / a, c / far) if far else (0.0,)
