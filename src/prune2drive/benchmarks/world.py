"""Samples of the world benchmark: drawn scenes, their questions, and the things that fill a view."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..rig import NUSCENES
from ..world.generate import check_split, scenes
from ..world.labels import GRID
from ..world.questions import TYPES, Question, all_questions, check_types, choose
from ..world.render import Frames, render
from ..world.scene import Scene

LARGE = 0.25
"""A thing that covers at least this share of a picture is large."""

_AT_ONCE = 8
"""Scenes rendered at a time; the frames of more would not be used sooner."""


@dataclass(frozen=True)
class Large:
    """A thing that fills much of a picture: the case in which a diverse choice may pass it over.

    ``share``: of the camera's pixels. ``patches``: indices of the patches it covers at least half of,
    which are the indices of the camera's visual tokens; ascending, never empty.
    """

    camera: str
    kind: str
    colour: str
    share: float
    patches: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Sample:
    """One scene with everything that is asked and measured about it.

    ``images``: uint8 (V, 3, side, side), cameras in the order of the nuScenes rig.
    """

    scene: Scene
    images: Tensor
    questions: list[Question]
    large: list[Large]

    @property
    def name(self) -> str:
        return self.scene.name


def samples(
    split: str, count: int, seed: int = 0, types: Iterable[str] = TYPES, start: int = 0
) -> Iterator[Sample]:
    """Yield scenes ``start`` to ``start + count - 1`` of a split with their questions.

    The questions of a scene depend on its name and ``seed`` alone; ``types`` filters them after the
    draw, so that a type is asked the same with and without the others.

    Raises:
        PruneError: an unknown split or type.
    """
    wanted = set(types)
    check_types(sorted(wanted))
    check_split(split)
    for at in range(start, start + count, _AT_ONCE):
        group = list(scenes(split, min(_AT_ONCE, start + count - at), at))
        frames = render(group)
        for number, (scene, offered) in enumerate(zip(group, offers(group, frames), strict=True)):
            drawn = choose(offered, random.Random(f"{seed}/{scene.name}"))
            asked = [question for question in drawn if question.type in wanted]
            yield Sample(scene, frames.images[number], asked, large_things(scene, frames.ids[number]))


def offers(group: Sequence[Scene], frames: Frames) -> Iterator[list[Question]]:
    """Every question that the pictures of each scene can answer."""
    pixels, lamps = frames.visible(max((len(scene.things) for scene in group), default=0))
    for number, scene in enumerate(group):
        things = slice(len(scene.things))
        yield all_questions(
            scene, pixels[number, :, things].tolist(), lamps[number, :, things].tolist(), NUSCENES
        )


def large_things(scene: Scene, ids: Tensor) -> list[Large]:
    """The large things in every picture: cameras in order, then things in the order of the scene.

    Args:
        ids: int16 (V, side, side), the index of the thing behind each pixel, -1 for none.
    """
    found = []
    side = ids.shape[-1]
    step = side // GRID
    for camera, picture in zip(NUSCENES.names, ids, strict=True):
        blocks = picture.reshape(GRID, step, GRID, step)
        for number, thing in enumerate(scene.things):
            cover = (blocks == number).sum((1, 3)).flatten()
            share = int(cover.sum()) / side**2
            patches = (2 * cover >= step**2).nonzero().flatten().tolist()
            if share >= LARGE and patches:
                found.append(Large(camera, thing.kind, thing.colour, share, tuple(patches)))
    return found
