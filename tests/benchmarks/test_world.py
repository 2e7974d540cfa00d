"""Samples: reproducible questions, and the large things of each picture."""

from types import SimpleNamespace

import pytest
import torch

from prune2drive.benchmarks.guess import Guess
from prune2drive.benchmarks.world import Shown, large_things, samples, shown_things
from prune2drive.errors import PruneError
from prune2drive.rig import NUSCENES
from prune2drive.world.questions import ANSWERS, Question
from prune2drive.world.scene import Thing


def test_questions_depend_on_scene_and_seed_only():
    whole = list(samples("test", 3))
    assert [s.name for s in whole] == ["test/0", "test/1", "test/2"]
    later = list(samples("test", 1, start=2))
    assert later[0].questions == whole[2].questions
    assert torch.equal(later[0].images, whole[2].images)
    assert next(samples("test", 1, seed=1)).questions != whole[0].questions
    some = next(samples("test", 1, types=["count", "exists"]))
    assert some.questions == [q for q in whole[0].questions if q.type in ("count", "exists")]


def test_unknown_split_and_type():
    with pytest.raises(PruneError, match=r"no split 'tset'.*Did you mean 'test'"):
        next(samples("tset", 1))
    with pytest.raises(PruneError, match="Did you mean 'count'"):
        next(samples("test", 1, types=["conut"]))


def test_large_things():
    scene = SimpleNamespace(things=(Thing("bus", "red", 0, 9), Thing("car", "blue", 9, 0)))
    ids = torch.full((6, 144, 144), -1, dtype=torch.int16)
    ids[1, :, :72] = 0  # half of the second camera: six columns of patches
    ids[1, :, 72:79] = 0  # 7 of the next column's 12 pixels
    ids[2, :36] = 1  # exactly a quarter
    ids[3, :35] = 1  # a little less
    bus, car = large_things(scene, ids)
    assert (bus.camera, bus.kind, bus.colour) == (NUSCENES.names[1], "bus", "red")
    assert bus.share == 79 / 144
    assert bus.patches == tuple(12 * row + column for row in range(12) for column in range(7))
    assert (car.camera, car.share, len(car.patches)) == (NUSCENES.names[2], 0.25, 36)


def test_things_spread_too_thin_are_not_large():
    scene = SimpleNamespace(things=(Thing("bus", "red", 0, 9),))
    ids = torch.full((6, 144, 144), -1, dtype=torch.int16)
    ids[0, :, ::3] = 0  # a third of the picture, and of every patch
    assert large_things(scene, ids) == []


def test_shown_things():
    things = (Thing("car", "red", 9, 0), Thing("bus", "blue", 9, 3), Thing("cone", "orange", 5, 0))
    scene = SimpleNamespace(things=things)
    ids = torch.full((6, 144, 144), -1, dtype=torch.int16)
    ids[0, 0:12, 0:2] = 0  # 24 pixels in one patch
    ids[0, 0:12, 2:4] = 2  # as many: the first of the two owns the patch
    ids[1, 0:12, 0:2] = 0
    ids[1, 11, 1] = -1  # one pixel short of clear
    ids[2, 0:48, 0:48] = 1  # sixteen patches
    ids[3, 0:12, 0:48], ids[4, 0:12, 0:36] = 1, 1
    front, second = shown_things(scene, ids)[:2]
    assert (front, front.size) == (Shown(NUSCENES.names[0], "car", (0,)), "small")
    assert second.patches == tuple(12 * row + column for row in range(4) for column in range(4))
    assert [(t.camera, t.kind, t.size) for t in shown_things(scene, ids)[1:]] == [
        (NUSCENES.names[2], "bus", "big"),
        (NUSCENES.names[3], "bus", "medium"),
        (NUSCENES.names[4], "bus", "small"),
    ]
    empty = SimpleNamespace(things=())
    assert shown_things(empty, torch.full_like(ids, -1)) == []
    assert large_things(empty, torch.full_like(ids, -1)) == []


def question(type_, camera, kind, answer):
    return Question("perception", type_, camera, kind, "", answer)


def test_guess_is_the_most_frequent_answer():
    front = [question("exists", "CAM_FRONT", "car", word) for word in ("yes", "yes", "no")]
    back = [question("exists", "CAM_BACK", "car", "no")] * 4
    guess = Guess([*front, *back])
    assert guess.answer(front[2]) == "yes"
    assert guess.answer(back[0]) == "no"
    assert guess.answer(question("exists", "CAM_BACK", "bus", "yes")) == "no"  # never asked: of its type
    assert guess.answer(question("steering", None, None, "left")) == ANSWERS["steering"][0]
    tie = Guess([question("exists", "CAM_BACK", "car", word) for word in ("no", "yes")])
    assert tie.answer(back[0]) == "yes"


def test_guess_is_counted_the_same_every_time():
    one, two = Guess.counted(3, 2), Guess.counted(3, 2)
    assert one._counts == two._counts
    assert sum(one._counts["steering", "*", "*"].values()) == 2 * 8
