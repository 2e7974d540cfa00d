"""What every visual token shows: dense targets for training the vision half.

A picture of `SIDE` pixels is cut into `GRID` x `GRID` patches, one visual token each. A patch is
labelled by the thing that covers most of it. The heads that read these labels are thrown away after
training; they only make a small model see within minutes what answers alone would take hours to teach.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence

import torch

from ..rig import NUSCENES, Rig
from .geometry import WIDE, crossing, next_cameras, on_path, sectors
from .render import Frames, directions
from .scene import COLOURS, EYE, KINDS, LANE, RIDDEN, Scene

GRID = 12
"""Patches per side of a picture: 144 visual tokens per camera."""

MOTIONS = ("stopped", "away", "left", "towards", "right")
_LEAST_PIXELS, _LEAST_LAMPS, _LEAST_SEEN = 6, 6, 24

FIELDS = ("kind", "colour", "motion", "first", "nearest")
SIZES = {
    "kind": len(KINDS) + 1,
    "colour": len(COLOURS) + 1,
    "motion": len(MOTIONS) + 1,
    "first": 2,
    "nearest": 2,
}
"""Classes per label, 0 for none. first: the nearest of its kind in this camera; nearest: of all kinds."""


def motion(x: float, y: float, heading: float) -> str:
    """The quadrant of a heading as seen from the ego: away, left, towards or right."""
    turn = cmath.phase(cmath.exp(1j * heading) * complex(x, -y)) / (math.pi / 2)
    return MOTIONS[1 + round(turn) % 4]


def patch_labels(scenes: Sequence[Scene], frames: Frames) -> tuple[torch.Tensor, torch.Tensor]:
    """Label every patch of every picture.

    Returns:
        ``labels`` int64 (B, V, GRID**2, len(FIELDS)), and ``centres`` float32 (B, V, GRID**2, kinds):
        how many things of each kind have the middle of their visible part in the patch.
    """
    most = max((len(scene.things) for scene in scenes), default=0)
    cover = coverage(frames.ids, most)
    count, views, patches, _ = cover.shape
    pixels, lamps = frames.visible(most)
    clear = pixels >= _LEAST_SEEN

    table = torch.zeros(count, views, most + 1, len(FIELDS), dtype=torch.long)  # the last row: no thing
    sorts = torch.zeros(count, most, dtype=torch.long)
    for b, scene in enumerate(scenes):
        far = torch.tensor([math.hypot(t.x, t.y) for t in scene.things])
        for n, thing in enumerate(scene.things):
            sorts[b, n] = KINDS.index(thing.kind)
            table[b, :, n, 0] = 1 + KINDS.index(thing.kind)
            table[b, :, n, 1] = 1 + COLOURS.index(thing.colour)
            if thing.kind in RIDDEN:
                how = motion(thing.x, thing.y, thing.heading) if thing.moving else "stopped"
                table[b, :, n, 2] = (1 + MOTIONS.index(how)) * (lamps[b, :, n] >= _LEAST_LAMPS)
        for v in range(views):
            seen = clear[b, v, : len(scene.things)].nonzero().flatten().tolist()
            firsts: dict[str, int] = {}
            for n in sorted(seen, key=lambda n: float(far[n])):
                firsts.setdefault(scene.things[n].kind, n)
            for n in firsts.values():
                table[b, v, n, 3] = 1
            if firsts:
                table[b, v, min(firsts.values(), key=lambda n: float(far[n])), 4] = 1
    if most == 0:
        return table[:, :, :1].expand(-1, -1, patches, -1), torch.zeros(count, views, patches, len(KINDS))
    owner = owners(cover)
    labels = table.gather(2, owner[..., None].expand(-1, -1, -1, len(FIELDS)))
    return labels, _centres(cover.float(), clear, sorts)


def coverage(ids: torch.Tensor, most: int) -> torch.Tensor:
    """Count the pixels of every thing in every patch: int64 (B, V, GRID**2, most), of `Frames.ids`."""
    count, views, side, _ = ids.shape
    if side % GRID:
        raise ValueError(f"pictures of {side} pixels do not divide into {GRID} patches a side")
    step, patches = side // GRID, GRID * GRID
    parts = ids.long().view(count, views, GRID, step, GRID, step).transpose(3, 4)
    parts = parts.reshape(count, views, patches, step * step) + 1
    cover = parts.new_zeros(count, views, patches, most + 1)
    cover.scatter_add_(3, parts, torch.ones_like(parts))
    return cover[..., 1:]


def owners(cover: torch.Tensor) -> torch.Tensor:
    """The thing that covers most of each patch, int64 (B, V, GRID**2); ``most`` where none covers enough."""
    top, owner = cover.max(-1)
    return owner.masked_fill(top < _LEAST_PIXELS, cover.shape[-1])


def place_labels(
    scenes: Sequence[Scene], frames: Frames, rig: Rig = NUSCENES
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a patch's thing will do: two int64 (B, V, GRID**2), -1 where that is not known or asked.

    First whether it crosses our path (0, 1), then the camera it appears in next (V: none).
    """
    most = max((len(scene.things) for scene in scenes), default=0)
    count, views = frames.ids.shape[:2]
    pixels, lamps = frames.visible(most)
    table = torch.full((count, views, most + 1, 2), -1)
    where = sectors(rig)
    for b, scene in enumerate(scenes):
        shown = (pixels[b] > 0).T.tolist()
        for n, thing in enumerate(scene.things):
            if thing.kind not in RIDDEN:
                continue
            clear = (pixels[b, :, n] >= _LEAST_SEEN) & (lamps[b, :, n] >= _LEAST_LAMPS)
            crosses = None if on_path(thing, scene.road, WIDE) else crossing(thing, scene.road)
            table[b, clear, n, 0] = -1 if crosses is None else int(crosses)
            unseen = sum(1 << v for v in range(views) if not shown[n][v])
            bits = next_cameras(thing, unseen, where)
            if bits is not None and bits.bit_count() <= 1:
                table[b, clear, n, 1] = bits.bit_length() - 1 if bits else views
    owner = owners(coverage(frames.ids, most)) if most else torch.zeros(count, views, GRID * GRID).long()
    out = table.gather(2, owner[..., None].expand(-1, -1, -1, 2))
    return out[..., 0], out[..., 1]


def path_labels(scenes: Sequence[Scene], frames: Frames) -> torch.Tensor:
    """Whether a patch's thing stands on our path near ahead: int64 (B, V, GRID**2), -1 where unknown."""
    most = max((len(scene.things) for scene in scenes), default=0)
    count, views = frames.ids.shape[:2]
    pixels, _ = frames.visible(most)
    table = torch.full((count, views, most + 1), -1)
    for b, scene in enumerate(scenes):
        for n, thing in enumerate(scene.things):
            seen = pixels[b, :, n] >= _LEAST_SEEN
            if on_path(thing, scene.road, 1.4, 19.0):
                table[b, seen, n] = 1
            elif not on_path(thing, scene.road, WIDE, 22.0):
                table[b, seen, n] = 0
    if most == 0:
        return table.expand(-1, -1, GRID * GRID)
    return table.gather(2, owners(coverage(frames.ids, most)))


LANES = ("none", "left", "oncoming", "ours", "right lane", "right", "crossing")
"""What the ground is in the middle of a patch of the front picture; none: no ground."""


def lane_labels(scenes: Sequence[Scene], frames: Frames) -> torch.Tensor:
    """The ground in the middle of every patch of the front picture, int64 (B, GRID**2), `LANES`.

    Only the rig's first camera, which looks straight ahead, is read.
    """
    side = frames.ids.shape[-1]
    middle = slice(side // GRID // 2, None, side // GRID)
    depth = frames.depth[:, 0, middle, middle].flatten(1).cpu()
    rays = directions(NUSCENES, side)[0].view(side, side, 3)[middle, middle].reshape(-1, 3)
    x, y, z = (depth * rays[:, axis] for axis in range(3))
    out = torch.zeros_like(depth, dtype=torch.long)
    for b, scene in enumerate(scenes):
        road = scene.road
        offset = y[b] - road.curvature * x[b] ** 2 / 2
        edges = torch.tensor([road.right_edge, -LANE / 2, LANE / 2, road.left_edge])
        kind = torch.tensor([5, 4, 3, 2, 1])[torch.bucketize(offset, edges)]
        if road.junction is not None:
            ahead = x[b] - road.junction
            kind[(ahead > 0) & (ahead < road.JUNCTION_WIDTH)] = 6
        ground = (z[b] + EYE).abs() < 0.05
        out[b] = torch.where(ground, kind, 0)
    return out


def _centres(cover: torch.Tensor, clear: torch.Tensor, sorts: torch.Tensor) -> torch.Tensor:
    count, views, patches, _ = cover.shape
    at = torch.arange(patches)
    share = cover / cover.sum(2, keepdim=True).clamp(min=1)
    row = torch.einsum("bvpt,p->bvt", share, (at // GRID).float()).round().long()
    column = torch.einsum("bvpt,p->bvt", share, (at % GRID).float()).round().long()
    slot = (row * GRID + column) * len(KINDS) + sorts[:, None]
    out = torch.zeros(count, views, patches * len(KINDS))
    out.scatter_add_(2, slot, clear.float())
    return out.view(count, views, patches, len(KINDS))
