"""Samples of the world benchmark: drawn scenes, their questions, and which tokens show which things."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..rig import NUSCENES
from ..world.generate import check_split, scenes
from ..world.labels import GRID, coverage, owners
from ..world.questions import MIN_PIXELS, TYPES, Question, all_questions, check_types, choose
from ..world.render import Frames, render
from ..world.scene import Scene

LARGE = 0.25
"""A thing that covers at least this share of a picture is large."""

SIZES: dict[str, int] = {"small": 3, "medium": 15, "big": GRID * GRID}
"""The most tokens of a picture that show a thing of each size, smallest first."""

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


@dataclass(frozen=True)
class Shown:
    """A thing clearly in a picture, and the patches that show it more than any other; never none."""

    camera: str
    kind: str
    patches: tuple[int, ...]

    @property
    def size(self) -> str:
        """Which of `SIZES`."""
        return next(name for name, most in SIZES.items() if len(self.patches) <= most)


@dataclass(frozen=True, eq=False)
class Sample:
    """One scene with everything that is asked and measured about it.

    ``images``: uint8 (V, 3, side, side), cameras in the order of the nuScenes rig. ``large``, ``shown``:
    things that fill a view, and all that are clearly in one.
    """

    scene: Scene
    images: Tensor
    questions: list[Question]
    large: list[Large]
    shown: list[Shown]

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
            ids = frames.ids[number]
            yield Sample(
                scene, frames.images[number], asked, large_things(scene, ids), shown_things(scene, ids)
            )


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
    each = (side // GRID) ** 2
    for camera, cover in zip(NUSCENES.names, coverage(ids[None], len(scene.things))[0], strict=True):
        for thing, pixels in zip(scene.things, cover.T, strict=True):
            share = int(pixels.sum()) / side**2
            patches = (2 * pixels >= each).nonzero().flatten().tolist()
            if share >= LARGE and patches:
                found.append(Large(camera, thing.kind, thing.colour, share, tuple(patches)))
    return found


def shown_things(scene: Scene, ids: Tensor) -> list[Shown]:
    """Everything with at least `MIN_PIXELS` pixels in a picture and a patch of its own; order and
    argument as `large_things`."""
    found: list[Shown] = []
    if not scene.things:
        return found
    for camera, cover in zip(NUSCENES.names, coverage(ids[None], len(scene.things))[0], strict=True):
        owner = owners(cover)
        for number, thing in enumerate(scene.things):
            patches = (owner == number).nonzero().flatten().tolist()
            if patches and int(cover[:, number].sum()) >= MIN_PIXELS:
                found.append(Shown(camera, thing.kind, tuple(patches)))
    return found
