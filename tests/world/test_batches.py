"""Training batches: they follow from their number, and what they ask is what the pictures answer."""

import random
from collections import Counter

import pytest
import torch
from PIL import Image

from prune2drive.prompts import build_inputs
from prune2drive.rig import NUSCENES
from prune2drive.world.batches import (
    QUESTION_LENGTH,
    SCARCE,
    TRAINING,
    TRAINING_ALL,
    AnswerBatches,
    SeeBatches,
    load,
)
from prune2drive.world.generate import scene, scenes
from prune2drive.world.labels import FIELDS, GRID, lane_labels, patch_labels, path_labels, place_labels
from prune2drive.world.model import IMAGE, build_processor, build_tokenizer, prefix_text
from prune2drive.world.questions import ANSWERS, KINDS, TEXTS, TYPES, all_questions, plural
from prune2drive.world.render import SIDE, render

V, TOKENS = len(NUSCENES), GRID * GRID


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def whole():
    """Two scenes, all six cameras in one row."""
    return AnswerBatches(2, 0, 1, 1)[0]


@pytest.fixture(scope="module")
def pairs():
    """Three batches of two scenes, two cameras in a row."""
    return [AnswerBatches(2, 0, 3, 3)[n] for n in range(3)]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_batch_depends_on_its_number_alone():
    for make in (lambda *part: SeeBatches(1, *part), lambda *part: AnswerBatches(1, *part, 3)):
        late, early = make(7, 9), make(5, 1000)
        assert len(late) == 2 and len(early) == 995
        random.seed(1)
        torch.manual_seed(1)
        expected = late[0]
        random.seed(2)
        torch.manual_seed(2)
        early[0]
        assert same(early[2], expected)
        assert not torch.equal(early[3]["images"], expected["images"])


@pytest.mark.parametrize("workers", [0, 1])
def test_load_yields_them_in_order(workers):
    data = SeeBatches(1, 3, 5)
    found = list(load(data, workers))
    assert len(found) == 2 and all(same(found[n], data[n]) for n in range(2))


def test_seeing_is_pictures_and_their_labels():
    batch = SeeBatches(2, 3, 4)[0]
    some = [scene("train", 6), scene("train", 7)]
    frames = render(some)
    labels, centres = patch_labels(some, frames)
    assert same(batch, {"images": frames.images, "labels": labels, "centres": centres})
    assert batch["images"].shape == (2, V, 3, SIDE, SIDE) and batch["labels"].shape[2:] == (
        TOKENS,
        len(FIELDS),
    )


@pytest.mark.parametrize("groups", [1, 3])
def test_rows_show_every_camera_once(groups, whole, pairs):
    some = list(scenes("train", 2))
    frames = render(some)
    labels, centres = patch_labels(some, frames)
    cross, following = place_labels(some, frames)
    lane = torch.full((2, V, TOKENS), -1)
    lane[:, 0] = lane_labels(some, frames)
    batch = whole if groups == 1 else pairs[0]
    rows, each = 2 * groups, V // groups
    asked = batch["text"].shape[1]
    assert {key: tuple(value.shape) for key, value in batch.items()} == {
        "images": (rows, each, 3, SIDE, SIDE),
        "labels": (rows, each, TOKENS, len(FIELDS)),
        "centres": (rows, each, TOKENS, len(KINDS)),
        "cross": (rows, each, TOKENS),
        "following": (rows, each, TOKENS),
        "path": (rows, each, TOKENS),
        "lane": (rows, each, TOKENS),
        "road": (rows, each),
        "choice": (rows, each),
        "views": (rows, each),
        "prefix": (rows, each * (TOKENS + 2)),
        "text": (rows, asked, QUESTION_LENGTH),
        "target": (rows, asked, QUESTION_LENGTH),
        "weight": (rows, asked),
        "look": (rows, asked, each * (TOKENS + 2)),
        "share": (rows, asked),
    }
    for b in range(2):
        shown = batch["views"][b * groups : (b + 1) * groups]
        assert sorted(shown.flatten().tolist()) == list(range(V))
        assert (shown.diff(dim=1) > 0).all()  # in the order of the prompt
        for n, views in enumerate(shown):
            row = b * groups + n
            assert torch.equal(batch["images"][row], frames.images[b, views])
            for key, value in (
                ("labels", labels),
                ("centres", centres),
                ("cross", cross),
                ("following", following),
                ("path", path_labels(some, frames)),
                ("lane", lane),
            ):
                assert torch.equal(batch[key][row], value[b, views]), key


def test_pairs_change_and_often_keep_the_front_together():
    splits = [AnswerBatches(1, 0, 1, 2)._partition(random.Random(n)) for n in range(200)]
    ahead = sum(split[0] == [0, 1, 2] for split in splits)
    assert 100 < ahead < 145 and len({str(split) for split in splits}) > 10
    assert AnswerBatches(1, 0, 1, 1)._partition(random.Random(0)) == [list(range(V))]


def test_the_prefix_is_the_processor_s_prompt(whole, pairs, tokenizer):
    processor = build_processor()
    grey = {name: Image.new("RGB", (SIDE, SIDE)) for name in NUSCENES.names}
    question = "What should we do ?"
    inputs = build_inputs(processor, None, [grey], question, NUSCENES.names)
    prompt = inputs["input_ids"][0, : -len(question.split())]
    assert (whole["prefix"] == prompt).all()
    text = prefix_text(NUSCENES).replace(IMAGE, IMAGE * TOKENS)
    assert whole["prefix"][0].tolist() == tokenizer(text).input_ids
    for batch in pairs:  # every camera stands as in the prompt of all of them
        segments = prompt.view(V, -1)
        assert torch.equal(batch["prefix"], segments[batch["views"]].flatten(1))


def possible(scene_, shown):
    """Question text -> answer, of all that a row of the scene may be asked."""
    frames = render([scene_])
    pixels, lamps = frames.visible(len(scene_.things))
    found = all_questions(scene_, pixels[0].tolist(), lamps[0].tolist())
    names = {NUSCENES.names[v] for v in shown}
    ahead = {"CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT"}
    need = {"steering": {"CAM_FRONT"}, "action": ahead, "reason": ahead, "speed": ahead}
    return {q.text: q for q in found if (need[q.type] if q.camera is None else {q.camera}) <= names}


def test_questions_are_those_of_the_shown_cameras(whole, pairs, tokenizer):
    """Ids of text and answer are the tokenizer's; '?' is followed by the answer, the answer by the end."""
    asked = Counter()
    for number, batch in [(0, whole), *enumerate(pairs)]:
        groups = len(batch["text"]) // 2
        for row in range(len(batch["text"])):
            drawn = scene("train", 2 * number + row // groups)
            known = possible(drawn, batch["views"][row].tolist())
            there = Counter()
            quotas = TRAINING_ALL if groups == 1 else TRAINING
            table = batch["text"][row], batch["target"][row], batch["weight"][row].tolist()
            for ids, target, weight in zip(*table, strict=True):
                if (target == -100).all():
                    assert (ids == tokenizer.pad_token_id).all()
                    continue
                mark = ids.tolist().index(tokenizer.convert_tokens_to_ids("?"))
                question = known.pop(" ".join(tokenizer.convert_ids_to_tokens(ids[: mark + 1])))
                words = tokenizer(question.text).input_ids
                (answer,) = tokenizer(question.answer).input_ids
                padding = [tokenizer.pad_token_id] * (QUESTION_LENGTH - mark - 2)
                assert ids.tolist() == [*words, answer, *padding]
                expected = torch.full_like(target, -100)
                expected[mark], expected[mark + 1] = answer, tokenizer.eos_token_id
                assert torch.equal(target, expected)
                assert weight == (SCARCE if question.camera is None else 1)
                there[question.type] += 1
            assert all(there[type_] <= quotas[type_] for type_ in there)
            assert there["exists"] == quotas["exists"]
            asked += there
    assert set(asked) == set(TYPES)


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_road_and_choice_are_what_is_asked_of_the_scene(groups):
    """The bend is told to the front camera, and mirrored to the one behind; the reason to the last ahead."""
    told = 0
    for number in range(6, 10):
        batch = AnswerBatches(1, number, number + 1, groups)[0]
        drawn = scene("train", number)
        found = {q.type: q.answer for q in possible(drawn, range(V)).values() if q.camera is None}
        road, choice = [-1] * V, [-1] * V
        bend = found["steering"]
        road[0] = ANSWERS["steering"].index(bend)
        road[3] = ANSWERS["steering"].index({"left": "right", "right": "left"}.get(bend, bend))
        if "reason" in found and [0, 1, 2] in [part[:3] for part in batch["views"].tolist()]:
            choice[2] = ANSWERS["reason"].index(found["reason"])
            told += 1
        for part, a, b in zip(*(batch[key].tolist() for key in ("views", "road", "choice")), strict=True):
            assert a == [road[v] for v in part] and b == [choice[v] for v in part]
    assert (told > 0) == (groups < 3)


def test_every_question_fits(tokenizer):
    longest = 0
    for type_, text in TEXTS.items():
        for name in NUSCENES.names:
            for kind in KINDS:
                ids = tokenizer(text.format(camera=name, kind=kind, kinds=plural(kind))).input_ids
                longest = max(longest, len(ids) + 1)
        assert all(len(tokenizer(answer).input_ids) == 1 for answer in ANSWERS[type_])
    assert longest == QUESTION_LENGTH
    assert set(TRAINING) == set(TRAINING_ALL) == set(TYPES)


def test_planning_is_asked_only_where_all_three_cameras_ahead_are_shown(tokenizer):
    """Two at a time never show them; three at a time often do."""
    should = tokenizer.convert_tokens_to_ids("should")

    def planned(groups, number):
        batch = AnswerBatches(1, number, number + 1, groups)[0]
        return batch["views"].tolist(), (batch["text"] == should).any(-1).any(-1).tolist()

    assert not any(any(planned(3, n)[1]) for n in range(4))
    found = [planned(2, n) for n in range(4, 10)]
    for views, rows in found:
        assert not any(row for part, row in zip(views, rows, strict=True) if part != [0, 1, 2])
    assert any(any(rows) for _, rows in found)
