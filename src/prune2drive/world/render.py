"""Scenes to six pinhole pictures, with object ids and depth per pixel, in batched tensors.

Every pixel is one ray from the cameras' common centre. Per camera the boxes that can be in view are
gathered, every ray meets every one of them in the box's own frame (slab test), and the nearest hit is
coloured. All rays of a batch go together, on whatever device; a rig's horizontal fields of view and
yaws are exact, its pictures are scaled to ``side`` x ``side`` pixels (so pixels are not square).

The same scene gives the same picture everywhere up to rounding: colours may differ by one level of
255, and a pixel whose ray grazes an edge may fall on the other side of it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..rig import NUSCENES, Rig
from .parts import BODY, BUILDING, BUS, COLUMNS, CONE, LAMP, RIDER, boxes
from .scene import EYE, LANE, WEATHERS, Road, Scene

SIDE = 144
FAR = 1e4
_HORIZON = 400.0

# Per weather: ambient light, sky at the horizon, sky above, and how far one sees (e-folding, metres).
_AIR = {
    "day": (1.0, (0.80, 0.88, 0.96), (0.40, 0.62, 0.92), 400.0),
    "dusk": (0.68, (0.95, 0.62, 0.42), (0.30, 0.28, 0.50), 250.0),
    "night": (0.36, (0.06, 0.07, 0.12), (0.01, 0.01, 0.04), 150.0),
    "rain": (0.72, (0.55, 0.58, 0.62), (0.40, 0.43, 0.48), 70.0),
    "fog": (0.85, (0.76, 0.78, 0.80), (0.72, 0.74, 0.77), 26.0),
}
_HEAD, _TAIL, _REST = (0.65, 1.0, 1.0), (1.0, 0.0, 0.35), (1.0, 0.72, 0.0)


@dataclass(frozen=True)
class Frames:
    """Pictures of ``B`` scenes by ``V`` cameras, and the truth behind every pixel.

    ``images``: uint8 (B, V, 3, side, side). ``ids``: int16 (B, V, side, side), the index of the thing in
    its scene, -1 where there is none. ``depth``: float32, metres along the camera's axis; the sky is at
    `FAR`. ``lamps``: bool, whether the pixel shows a lamp of a vehicle.
    """

    images: torch.Tensor
    ids: torch.Tensor
    depth: torch.Tensor
    lamps: torch.Tensor

    def visible(self, things: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Count pixels, and lamp pixels, of every thing: two int64 (B, V, things).

        Raises:
            ValueError: a thing with a higher index is in the pictures.
        """
        if self.ids.numel() and (last := int(self.ids.max())) >= things:
            raise ValueError(f"thing {last} is in the pictures; the first {things} cannot be counted alone")
        flat = self.ids.flatten(2).long() + 1
        pixels = flat.new_zeros(*flat.shape[:2], things + 1)
        lamps = pixels.clone()
        pixels.scatter_add_(2, flat, torch.ones_like(flat))
        lamps.scatter_add_(2, flat, self.lamps.flatten(2).long())
        return pixels[..., 1:], lamps[..., 1:]


def directions(rig: Rig, side: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Rays of every pixel centre, float32 (V, side * side, 3), scaled so that their depth is 1.

    The pinhole model: column u and row v of a picture of w x h pixels look along
    (1, tan(fov/2) (1 - 2u/w), tan(fov/2) h/w (1 - 2v/h)), turned by the camera's yaw.
    """
    step = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    rays = []
    for camera in rig.cameras:
        half = math.tan(math.radians(camera.fov_deg) / 2)
        across = (half * (1 - 2 * step)).expand(side, side)
        up = (half * camera.size[1] / camera.size[0] * (1 - 2 * step))[:, None].expand(side, side)
        cos, sin = math.cos(math.radians(camera.yaw_deg)), math.sin(math.radians(camera.yaw_deg))
        rays.append(torch.stack([cos - across * sin, sin + across * cos, up], -1).reshape(-1, 3))
    return torch.stack(rays).float().to(device)


@torch.inference_mode()
def render(
    scenes: Sequence[Scene], rig: Rig = NUSCENES, side: int = SIDE, device: torch.device | str = "cpu"
) -> Frames:
    """Draw every scene with every camera of the rig.

    Args:
        scenes: any number.
        rig: pinhole cameras, each with a field of view below 180 degrees.
        side: height and width of the pictures in pixels.
        device: where to compute; the frames stay there.
    """
    rays = directions(rig, side, device)
    solids = _gather(scenes, rig).to(device)
    count, views, pixels = len(scenes), len(rig), side * side
    ids = torch.empty(count, views, pixels, dtype=torch.int16, device=device)
    depth = torch.empty(count, views, pixels, device=device)
    lamps = torch.empty(count, views, pixels, dtype=torch.bool, device=device)
    images = torch.empty(count, views, pixels, 3, device=device)
    chunk = 1 if rays.device.type == "cpu" else 64
    for v in range(views):  # one camera at a time keeps the intermediates in the cache of a CPU
        for b in range(0, count, chunk):
            part = slice(b, b + chunk)
            hit = _hits(solids[part, v], rays[v])
            colour, lamp, owner = _colours(scenes[part], v, rays[v], *hit)
            images[part, v], lamps[part, v], ids[part, v], depth[part, v] = colour, lamp, owner, hit[0]
    shape = (count, views, side, side)
    levels = (images * 255).round_().clamp_(0, 255).to(torch.uint8)
    return Frames(
        levels.transpose(2, 3).reshape(count, views, 3, side, side),
        ids.view(shape),
        depth.view(shape),
        lamps.view(shape),
    )


def _gather(scenes: Sequence[Scene], rig: Rig) -> torch.Tensor:
    """The boxes that camera v may see, (B, V, most, COLUMNS), padded with boxes of no size far below."""
    kept: list[list[torch.Tensor]] = []
    for scene in scenes:
        rows = torch.tensor(boxes(scene), dtype=torch.float64).reshape(-1, COLUMNS)
        reach = torch.linalg.vector_norm(rows[:, 5:7], dim=1)
        bearing = torch.atan2(rows[:, 1], rows[:, 0])
        far = torch.linalg.vector_norm(rows[:, :2], dim=1)
        # Half the angle that the box's circle covers; everything where the centre is inside it.
        covers = torch.where(far > reach, torch.asin((reach / far).clamp(max=1)), math.pi)
        per_view = []
        for camera in rig.cameras:
            off = torch.remainder(bearing - math.radians(camera.yaw_deg) + math.pi, 2 * math.pi) - math.pi
            per_view.append(rows[off.abs() <= math.radians(camera.fov_deg) / 2 + covers])
        kept.append(per_view)
    most = max((len(rows) for per_view in kept for rows in per_view), default=0) or 1
    out = torch.zeros(len(scenes), len(rig), most, COLUMNS)
    out[..., 2], out[..., 3], out[..., 12] = -1e6, 1.0, -1.0
    for b, per_view in enumerate(kept):
        for v, rows in enumerate(per_view):
            out[b, v, : len(rows)] = rows.float()
    return out


def _hits(solid: torch.Tensor, rays: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Nearest hit of every ray: depth (B, P), the box's row (B, P, COLUMNS), box-frame axis (B, P).

    Along a column of pixels all rays share x and y, along a row z; so a box's upright slabs are met
    once per column and its level ones once per row, and only their combination is made per pixel.
    The ground is z = 0. Axis 0/1/2: the face met is an end, a side, the top; 3 where nothing is hit.
    """
    side = math.isqrt(len(rays))
    x, y, z = rays[:side, 0], rays[:side, 1], rays[::side, 2]
    count = len(solid)
    cos, sin = solid[..., 3, None], solid[..., 4, None]
    ahead, beside = solid[..., 0, None], solid[..., 1, None]
    near0, far0 = _slab(cos * x + sin * y, cos * ahead + sin * beside, solid[..., 5, None])
    near1, far1 = _slab(cos * y - sin * x, cos * beside - sin * ahead, solid[..., 6, None])
    enter, leave = torch.maximum(near0, near1), torch.minimum(far0, far1)  # (B, boxes, side)
    low, high = _slab(z.expand(*enter.shape), solid[..., 2, None] - EYE, solid[..., 7, None])

    down = torch.where(z < 0, -EYE / z.clamp(max=-1e-9), FAR)
    down = torch.where(down < _HORIZON, down, FAR)
    best = down[:, None].expand(count, side, side).clone()
    which = torch.full_like(best, -1, dtype=torch.long)
    spans = _spans((enter < leave) & (leave > 0))
    for n, (start, stop) in enumerate(spans):
        across = slice(start, stop)
        first = torch.maximum(enter[:, n, None, across], low[:, n, :, None])
        last = torch.minimum(leave[:, n, None, across], high[:, n, :, None])
        part = best[:, :, across]
        closer = (first < last) & (first > 0) & (first < part)
        best[:, :, across] = torch.where(closer, first, part)
        which[:, :, across].masked_fill_(closer, n)
    hit = which.clamp(min=0)
    column = torch.arange(side, device=rays.device).expand_as(hit)
    batch = torch.arange(count, device=rays.device)[:, None, None].expand_as(hit)
    row = column.transpose(1, 2)
    face = torch.where(near1 > near0, 1, 0)[batch, hit, column]
    face = torch.where(low[batch, hit, row] > enter[batch, hit, column], 2, face)
    nothing = which < 0
    rows = solid[batch, hit].masked_fill(nothing[..., None], 0.0)
    rows[..., 12].masked_fill_(nothing, -1)
    face = face.masked_fill(nothing, 3)
    return best.flatten(1), rows.flatten(1, 2), face.flatten(1)


def _slab(along: torch.Tensor, centre: torch.Tensor, half: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Depths at which rays enter and leave a pair of parallel planes."""
    inverse = 1 / torch.where(along.abs() < 1e-7, 1e-7, along)
    middle, reach = centre * inverse, half * inverse.abs()
    return middle - reach, middle + reach


def _spans(seen: torch.Tensor) -> list[tuple[int, int]]:
    """Per box, first and last + 1 column in which the batch can show it; seen (B, boxes, side)."""
    boxes, side = seen.shape[1:]
    if seen.device.type != "cpu":  # finding out would wait for the device at every box
        return [(0, side)] * boxes
    some = seen.any(0).int()
    first, last = some.argmax(1), side - some.flip(1).argmax(1)
    found = some.any(1)
    return [(int(a), int(b)) if yes else (0, 0) for a, b, yes in zip(first, last, found, strict=True)]


def _colours(
    scenes: Sequence[Scene],
    view: int,
    rays: torch.Tensor,
    depth: torch.Tensor,
    rows: torch.Tensor,
    face: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shade every hit: colour (B, P, 3) in [0, 1], lamp (B, P), owner (B, P)."""
    device = rays.device
    point = rays * depth[..., None]
    point[..., 2] += EYE
    air = [_AIR[scene.weather] for scene in scenes]
    ambient = torch.tensor([a[0] for a in air], device=device)[:, None, None]
    low = torch.tensor([a[1] for a in air], device=device)[:, None, :]
    high = torch.tensor([a[2] for a in air], device=device)[:, None, :]
    clear = torch.tensor([a[3] for a in air], device=device)[:, None]

    colour, lamp, shines = _solid_colours(rows, point, face)
    ground = (face == 3) & (depth < FAR)
    colour = torch.where(ground[..., None], _ground(scenes, point), colour)
    lit = torch.where(shines[..., None], torch.ones_like(ambient), ambient)
    colour = colour * lit
    # Fog and rain hide what is far; what shines shows through half of it.
    haze = 1 - torch.exp(-depth / clear)
    haze = torch.where(shines, haze * 0.5, haze)
    colour = colour + (low - colour) * haze[..., None]
    above = (rays[:, 2] / torch.linalg.vector_norm(rays, dim=-1)).clamp(0, 1)[:, None] * 2.2
    sky = low + (high - low) * above.clamp(max=1)
    colour = torch.where((depth >= FAR)[..., None], sky, colour)
    return colour + _noise(scenes, view, rays.shape[0], device), lamp, rows[..., 12].to(torch.int16)


def _solid_colours(
    rows: torch.Tensor, point: torch.Tensor, face: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Colour, lamp and shining of hits on boxes, from where on the box the ray landed."""
    cos, sin, half = rows[..., 3], rows[..., 4], rows[..., 5:8]
    dx, dy = point[..., 0] - rows[..., 0], point[..., 1] - rows[..., 1]
    along, across, up = cos * dx + sin * dy, cos * dy - sin * dx, point[..., 2] - rows[..., 2]
    pattern, moving = rows[..., 11], rows[..., 13] > 0.5
    light = torch.where(face == 2, 1.08, torch.where(face == 0, 0.86, 1.0))
    colour = rows[..., 8:11] * light[..., None]
    upright = face != 2
    high = up / half[..., 2].clamp(min=1e-6)  # -1 at the bottom, 1 at the top

    def paint(where: torch.Tensor, rgb: tuple[float, float, float]) -> None:
        nonlocal colour
        colour = torch.where(where[..., None], torch.tensor(rgb, device=colour.device), colour)

    bus, body, rider = pattern == BUS, pattern == BODY, pattern == RIDER
    paint(bus & upright & (high > 0.35) & (high < 0.75), (0.16, 0.20, 0.26))
    paint((pattern == CONE) & upright & (high > -0.1) & (high < 0.4), (0.95, 0.95, 0.95))
    rows_of_windows = torch.remainder(point[..., 2], 3.0) > 1.6
    columns = torch.remainder(along + 2 * across, 3.0) > 1.5
    paint((pattern == BUILDING) & upright & rows_of_windows & columns, (0.22, 0.26, 0.32))

    # Lamps wrap around the ends, so that a heading shows from the side too. A dark frame sets them off.
    reach = torch.where(bus, 0.9, torch.where(rider, 0.5, 0.65))
    inward = half[..., 0] - along.abs()
    low, top = torch.where(bus, -0.95, -0.9), torch.where(bus, -0.45, 0.6)
    band = (bus | body | rider) & upright & (high > low) & (high < top)
    paint(band & (inward < reach * 1.3) & ~rider, (0.05, 0.05, 0.06))
    wide = torch.where(rider, 0.0, 0.3) * half[..., 1]
    inner = torch.where(bus, 0.12, 0.15)
    lamp = band & (inward < reach) & (across.abs() >= wide) & (high > low + inner) & (high < top - inner)
    paint(lamp & moving & (along > 0), _HEAD)
    paint(lamp & moving & (along <= 0), _TAIL)
    paint(lamp & ~moving, _REST)
    return colour, lamp, lamp | (pattern == LAMP)


def _ground(scenes: Sequence[Scene], point: torch.Tensor) -> torch.Tensor:
    """Road, markings, pavements and grass at points of the ground."""
    x, y = point[..., 0], point[..., 1]

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, device=point.device)[:, None]

    roads = [scene.road for scene in scenes]
    near = column([FAR if road.junction is None else road.junction for road in roads])
    offset = y - column([road.curvature for road in roads]) * x * x / 2
    left, right = column([r.left_edge for r in roads]), column([r.right_edge for r in roads])
    on_road = (offset < left) & (offset > right)
    on_crossing = (x > near) & (x < near + Road.JUNCTION_WIDTH)
    beside = torch.maximum(offset - left, right - offset)

    shade = torch.full_like(x, 0.0)
    colour = torch.stack([shade + 0.36, shade + 0.47, shade + 0.27], -1)

    def paint(where: torch.Tensor, rgb: tuple[float, float, float]) -> None:
        nonlocal colour
        colour = torch.where(where[..., None], torch.tensor(rgb, device=colour.device), colour)

    paint((beside > 0) & (beside < 7.5), (0.62, 0.60, 0.57))
    paint((beside > 0) & (beside < 2.8), (0.40, 0.38, 0.37))
    paint(on_road | on_crossing, (0.27, 0.28, 0.30))
    marked = on_road & ~on_crossing
    lanes = offset / LANE - 0.5
    between = (lanes - lanes.round()).abs() * LANE < 0.09
    inside = (offset < left - 0.5) & (offset > right + 0.5)
    dashed = torch.remainder(x, 6.0) < 3.0
    paint(marked & between & inside & dashed, (0.92, 0.92, 0.92))
    paint(marked & inside & ((offset - LANE / 2).abs() < 0.12), (0.95, 0.80, 0.20))
    edge = torch.minimum((offset - left).abs(), (offset - right).abs())
    paint(marked & (edge < 0.35) & (edge > 0.15), (0.92, 0.92, 0.92))
    stop = (x > near - 1.6) & (x < near - 1.0) & (offset < LANE / 2)
    paint(marked & stop, (0.95, 0.95, 0.95))
    return colour


def _noise(scenes: Sequence[Scene], view: int, pixels: int, device: torch.device) -> torch.Tensor:
    """A little grain in every picture, and streaks where it rains: (B, P, 1).

    Integer hashing, so that it is the same on every device and version.
    """
    side = math.isqrt(pixels)
    at = torch.arange(pixels, device=device, dtype=torch.int64)
    seeds = [zlib.crc32(f"{scene.name}/{view}".encode()) for scene in scenes]
    seed = torch.tensor(seeds, device=device, dtype=torch.int64)[:, None]
    grain = (_hash(at + seed) & 0xFF).float() / 255 - 0.5
    column, row = at % side, at // side
    drop = _hash((column + row // 3) * 7919 + row // max(side // 8, 1) * 104729 + seed * 31) & 0xFF
    wet = torch.tensor([scene.weather == "rain" for scene in scenes], device=device)[:, None]
    return (grain * 0.04 + ((drop < 14) & wet).float() * 0.16)[..., None]


def _hash(x: torch.Tensor) -> torch.Tensor:
    """Mix the low 31 bits of int64 (no overflow anywhere, so the same on every device)."""
    x = x & 0x7FFFFFFF
    for factor in (73244475, 40503):
        x = ((x ^ (x >> 15)) * factor) & 0x7FFFFFFF
    return x ^ (x >> 13)


assert len(_AIR) == len(WEATHERS)
