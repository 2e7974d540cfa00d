"""A drawn street, seen by six cameras: pictures for `prune2drive demo` without any data.

The scene is one small 3-D world (metres; x ahead, y to the left, z up; the ego car at the origin)
projected through every camera, so that horizon, road and vehicles agree from picture to picture.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFilter

from .rig import NUSCENES, Camera, Rig

Point = tuple[float, float, float]
Colour = tuple[int, int, int]
Face = tuple[list[Point], Colour]

_EYE = 1.55  # height of the cameras above the road
_NEAR = 0.4  # nothing nearer than this is drawn
_HAZE: Colour = (214, 224, 233)


def draw_frame(seed: int = 0, rig: Rig = NUSCENES) -> dict[str, Image.Image]:
    """Draw the street once per camera of ``rig``: camera -> RGB picture of the camera's size.

    The same seed gives the same pixels. The seed moves buildings and colours; the orange bus (back
    left), the white van, the pedestrians and the traffic light always stand where they stand.
    """
    world = _world(random.Random(seed))
    return {camera.name: _draw(camera, world, seed) for camera in rig.cameras}


class _Scene:
    """Flat coloured polygons: the ground, and solids, which are drawn far to near, faces in order."""

    def __init__(self) -> None:
        self.ground: list[Face] = []
        self.solids: list[list[Face]] = []
        self.where: list[tuple[float, float]] = []

    def strip(self, x0: float, x1: float, y0: float, y1: float, colour: Colour) -> None:
        step = 6.0  # short pieces: each is clipped on its own, so long lines survive beside the camera
        while x0 < x1:
            end = min(x0 + step, x1)
            self.ground.append(([(x0, y0, 0), (end, y0, 0), (end, y1, 0), (x0, y1, 0)], colour))
            x0 = end

    def add(self, x: float, y: float, faces: list[Face]) -> None:
        self.solids.append(faces)
        self.where.append((x, y))


def _shade(colour: Colour, factor: float) -> Colour:
    r, g, b = (max(0, min(255, round(c * factor))) for c in colour)
    return r, g, b


def _seen(axis: int, at: float, outward: int) -> bool:
    """Whether a wall at x (axis 0), y (1) or z (2) equal to ``at``, looking ``outward``, faces the eye."""
    return outward * ((0.0, 0.0, _EYE)[axis] - at) > 0


def _box(x: float, y: float, z: float, size: Point, colour: Colour) -> list[Face]:
    """The faces of an upright block that can be seen: centre (x, y), bottom z."""
    (dx, dy), top = (size[0] / 2, size[1] / 2), z + size[2]
    faces = []
    for out in (-1, 1):
        if _seen(0, x + out * dx, out):
            light = 0.8 if out < 0 else 0.92
            faces.append(_pane(0, x + out * dx, (y - dy, y + dy), (z, top), _shade(colour, light)))
        if _seen(1, y + out * dy, out):
            light = 1.0 if out < 0 else 0.72
            faces.append(_pane(1, y + out * dy, (x - dx, x + dx), (z, top), _shade(colour, light)))
    if _seen(2, top, 1):
        corners: list[Point] = [
            (x + i * dx, y + j * dy, top) for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))
        ]
        faces.append((corners, _shade(colour, 1.12)))
    return faces


def _pane(axis: int, at: float, across: tuple[float, float], up: tuple[float, float], colour: Colour) -> Face:
    """An upright rectangle in the plane x = at (axis 0) or y = at (axis 1)."""
    corners = [(across[0], up[0]), (across[1], up[0]), (across[1], up[1]), (across[0], up[1])]
    return [(at, s, z) if axis == 0 else (s, at, z) for s, z in corners], colour


def _vehicle(scene: _Scene, x: float, y: float, size: Point, colour: Colour, ahead: bool = True) -> None:
    """Shadow, wheels, body, windows and lamps of a car, van or bus, lengthways on the road."""
    length, width, height = size
    tall = height > 1.9
    shadow = [
        (x + i * length * 0.54, y + j * width * 0.6, 0.0) for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))
    ]
    scene.ground.append((shadow, (62, 65, 70)))
    # Painted in this order: the body hides the upper half of the wheels, windows lie on the body.
    faces: list[Face] = []
    for i in (-0.31, 0.31):
        for j in (-0.47, 0.47):
            faces += _box(x + i * length, y + j * width, 0, (0.68, 0.2, 0.68), (28, 29, 32))
    body = height - 0.35 if tall else height * 0.46
    faces += _box(x, y, 0.3, (length, width, body), colour)
    if tall:
        panes = max(2, int(length / 1.6))
        low, high = 0.3 + body * 0.5, 0.3 + body * 0.86
        for side in (-1, 1):
            wall = y + side * width / 2
            if _seen(1, wall, side):
                for n in range(panes):
                    left = x - length / 2 + (n + 0.12) * length / panes
                    faces.append(
                        _pane(1, wall, (left, left + 0.76 * length / panes), (low, high), (52, 66, 82))
                    )
                stripe = (x - length / 2, x + length / 2)
                faces.append(
                    _pane(1, wall, stripe, (0.3 + body * 0.34, 0.3 + body * 0.4), _shade(colour, 1.3))
                )
        for end in (-1, 1):
            if _seen(0, x + end * length / 2, end):
                half = width * 0.42
                faces.append(_pane(0, x + end * length / 2, (y - half, y + half), (low, high), (60, 76, 94)))
    else:
        faces += _box(
            x - length * 0.04, y, 0.3 + body, (length * 0.54, width * 0.88, height * 0.36), (58, 72, 88)
        )
    for end in (-1, 1):
        if _seen(0, x + end * length / 2, end):
            lamp = (255, 246, 214) if (end > 0) == ahead else (214, 40, 40)
            for part in (-0.36, 0.36):
                w = y + part * width
                faces.append(_pane(0, x + end * length / 2, (w - 0.16, w + 0.16), (0.62, 0.84), lamp))
    scene.add(x, y, faces)


def _pedestrian(scene: _Scene, x: float, y: float, coat: Colour) -> None:
    legs = _box(x, y - 0.11, 0, (0.18, 0.16, 0.85), (42, 46, 60)) + _box(
        x, y + 0.11, 0, (0.18, 0.16, 0.85), (50, 54, 70)
    )
    head = _box(x, y, 1.5, (0.22, 0.22, 0.26), (224, 178, 146))
    scene.add(x, y, legs + _box(x, y, 0.82, (0.3, 0.52, 0.66), coat) + head)


def _building(scene: _Scene, rng: random.Random, x: float, y: float, size: Point, colour: Colour) -> None:
    faces = _box(x, y, 0, size, colour)
    toward = -1 if y > 0 else 1
    wall = y + toward * size[1] / 2
    glass = _shade(colour, 0.58)
    columns, floors = max(2, int(size[0] / 3.2)), max(1, int(size[2] / 3.4))
    for low in (1.1 + 3.3 * floor for floor in range(floors)):
        for column in range(columns):
            left = x - size[0] / 2 + (column + 0.25) * size[0] / columns
            tone = (250, 226, 160) if rng.random() < 0.08 else _shade(glass, rng.uniform(0.85, 1.1))
            faces.append(_pane(1, wall, (left, left + 0.5 * size[0] / columns), (low, low + 1.7), tone))
        for end in (-1, 1):  # windows in the gable that can be seen
            if _seen(0, x + end * size[0] / 2, end):
                for middle in (y - 0.3 * size[1], y, y + 0.3 * size[1]):
                    across = (middle - 0.7, middle + 0.7)
                    faces.append(_pane(0, x + end * size[0] / 2, across, (low, low + 1.7), glass))
    scene.add(x, y, faces)


def _tree(scene: _Scene, rng: random.Random, x: float, y: float) -> None:
    faces = _box(x, y, 0, (0.28, 0.28, 2.2), (96, 74, 56))
    green = _shade((84, 128, 76), rng.uniform(0.85, 1.15))
    for z, wide, high in ((1.9, 2.6, 1.1), (2.8, 3.0, 1.2), (3.8, 2.0, 1.0)):
        faces += _box(x, y, z, (wide, wide, high), _shade(green, 0.9 + 0.06 * z))
    scene.add(x, y, faces)


def _traffic_light(scene: _Scene, x: float, y: float, arm: float) -> None:
    """A pole beside the road with an arm over it; the light is red."""
    pole, head = (70, 74, 80), y + arm
    faces = _box(x, y, 0, (0.2, 0.2, 6.0), pole) + _box(x, y + arm / 2, 5.9, (0.16, abs(arm), 0.16), pole)
    faces += _box(x, head, 4.3, (0.4, 0.64, 1.9), (32, 34, 38))
    for z, lamp in ((5.8, (255, 54, 48)), (5.25, (96, 78, 36)), (4.7, (36, 82, 56))):
        turns = [t * math.tau / 12 for t in range(12)]
        faces.append(([(x - 0.2, head + 0.24 * math.cos(t), z + 0.24 * math.sin(t)) for t in turns], lamp))
    scene.add(x, y, faces)


def _world(rng: random.Random) -> _Scene:
    scene = _Scene()
    for x in range(-150, 150, 50):
        scene.strip(x, x + 50, -140, 140, (150, 160, 128))  # lawn
    scene.strip(-150, 150, -12.5, 9.5, (178, 176, 170))  # pavements
    scene.strip(-150, 150, -9, 6, (98, 102, 108))  # road
    for y in (-8.7, 5.6):
        scene.strip(-150, 150, y, y + 0.14, (226, 226, 220))
    scene.strip(-150, 150, -1.95, -1.81, (226, 178, 64))
    for x in range(-150, 150, 8):
        scene.strip(x, x + 3.5, 1.85, 1.99, (232, 232, 226))
        scene.strip(x, x + 3.5, -5.5, -5.36, (232, 232, 226))
    for k in range(12):
        scene.strip(16, 19, -8.6 + k * 1.25, -8.0 + k * 1.25, (236, 236, 230))  # crossing
    walls: Sequence[Colour] = (
        (196, 170, 146),
        (168, 178, 190),
        (206, 196, 176),
        (176, 140, 122),
        (150, 160, 168),
    )
    for side in (1, -1):
        end = -120.0
        while end < 125:
            length, depth, height = (
                rng.uniform(13, 24),
                rng.uniform(10, 15),
                rng.choice((7.5, 10.8, 14.1, 20.7)),
            )
            edge = 17 if side > 0 else 20
            _building(
                scene,
                rng,
                end + length / 2,
                side * (edge + depth / 2),
                (length, depth, height),
                rng.choice(walls),
            )
            end += length + rng.choice((0.6, 3.0, 9.0))
        for x in range(-90, 100, 15):
            if rng.random() < 0.75:
                _tree(scene, rng, x + rng.uniform(-3, 3), side * (12.8 if side > 0 else 15.4))
    scene.strip(-13, 7, 6, 9.3, (106, 110, 116))  # bay of the bus stop
    _vehicle(scene, -3.7, 7.8, (8.8, 2.5, 3.1), (238, 124, 34))  # the orange bus, back left
    _vehicle(scene, 13, 3.9, (4.4, 1.8, 1.5), (64, 112, 178))
    _vehicle(scene, 24, 0, (4.6, 1.85, 1.5), (184, 48, 48))
    _vehicle(scene, 30, -3.7, (5.4, 2.0, 2.4), (240, 240, 236), ahead=False)
    _vehicle(scene, 9, -7.2, (4.3, 1.8, 1.45), (58, 64, 72), ahead=False)
    _vehicle(scene, -14, 0, (4.5, 1.8, 1.5), (232, 198, 72))
    _vehicle(scene, -9, -7.2, (4.4, 1.8, 1.5), (92, 142, 108), ahead=False)
    _vehicle(scene, -32, -3.7, (6.8, 2.3, 2.9), (70, 130, 150), ahead=False)
    _pedestrian(scene, 17.4, -6.6, (208, 60, 84))
    _pedestrian(scene, 17.6, -5.6, (62, 98, 170))
    _pedestrian(scene, 6.5, 8.0, (240, 200, 70))
    _pedestrian(scene, -6.0, -10.6, (60, 140, 120))
    _traffic_light(scene, 20, 7.2, -4.4)
    _traffic_light(scene, 20.5, -10.2, 5.0)
    return scene


def _draw(camera: Camera, scene: _Scene, seed: int) -> Image.Image:
    # Drawn at twice the size and halved: smooth edges without any other library.
    width, height = 2 * camera.size[0], 2 * camera.size[1]
    focal = width / 2 / math.tan(math.radians(min(camera.fov_deg, 150) / 2))
    yaw = math.radians(camera.yaw_deg)
    cos, sin = math.cos(yaw), math.sin(yaw)
    horizon = 0.5 * height
    picture = Image.new("RGB", (width, height), _HAZE)
    picture.paste(_sky(width, round(horizon), seed + round(camera.yaw_deg)), (0, 0))
    canvas = ImageDraw.Draw(picture)
    canvas.rectangle((0, horizon, width, height), fill=(176, 182, 164))

    def show(points: list[Point], colour: Colour) -> None:
        ahead = _clip([(x * cos + y * sin, -x * sin + y * cos, z) for x, y, z in points])
        if len(ahead) < 3:
            return
        depth = sum(p[0] for p in ahead) / len(ahead)
        mist = 1 - math.exp(-depth / 170)
        r, g, b = (round(c + (h - c) * mist) for c, h in zip(colour, _HAZE, strict=True))
        canvas.polygon(
            [(width / 2 - focal * y / x, horizon - focal * (z - _EYE) / x) for x, y, z in ahead],
            fill=(r, g, b),
        )

    for points, colour in scene.ground:
        show(points, colour)
    order = sorted(range(len(scene.solids)), key=lambda i: -math.hypot(*scene.where[i]))
    for i in order:
        for points, colour in scene.solids[i]:
            show(points, colour)
    return picture.reduce(2)


def _clip(points: list[Point]) -> list[Point]:
    """Cut a polygon at the near plane x = _NEAR (camera coordinates)."""
    out: list[Point] = []
    for p, q in zip(points, points[1:] + points[:1], strict=True):
        if p[0] >= _NEAR:
            out.append(p)
        if (p[0] >= _NEAR) != (q[0] >= _NEAR):
            t = (_NEAR - p[0]) / (q[0] - p[0])
            out.append((_NEAR, p[1] + t * (q[1] - p[1]), p[2] + t * (q[2] - p[2])))
    return out


def _sky(width: int, height: int, seed: int) -> Image.Image:
    """A gradient from blue to haze, with soft clouds."""
    rng = random.Random(seed)
    column = Image.new("RGB", (1, 64))
    for y in range(64):
        t = y / 63
        column.putpixel(
            (0, y), tuple(round(a + (b - a) * t**0.8) for a, b in zip((122, 166, 214), _HAZE, strict=True))
        )
    sky = column.resize((width, height), Image.Resampling.BICUBIC)
    small = Image.new("L", (width // 8, height // 8), 0)
    pen = ImageDraw.Draw(small)
    for _ in range(7):
        left, top = rng.uniform(0, small.width), rng.uniform(0.05, 0.7) * small.height
        for _ in range(9):
            dx, dy, r = rng.gauss(0, 24), rng.gauss(0, 3), rng.uniform(5, 11)
            pen.ellipse((left + dx - 2 * r, top + dy - r / 2, left + dx + 2 * r, top + dy + r / 2), fill=150)
    mask = small.filter(ImageFilter.GaussianBlur(5)).resize((width, height), Image.Resampling.BICUBIC)
    sky.paste((246, 248, 250), (0, 0), mask)
    return sky
