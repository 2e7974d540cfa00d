"""Where questions look, against the pixels of the things they ask about; and the loss by hand."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from prune2drive.rig import NUSCENES
from prune2drive.world import lessons
from prune2drive.world.attention import QUICK, Watched, attend, register
from prune2drive.world.batches import AnswerBatches
from prune2drive.world.generate import scenes
from prune2drive.world.labels import GRID, patch_labels, path_labels, place_labels
from prune2drive.world.lessons import LOOK_LAYER, Heads, answer
from prune2drive.world.looks import look, look_loss
from prune2drive.world.model import IMAGE, build_tokenizer
from prune2drive.world.questions import FRONTS, all_questions
from prune2drive.world.render import SIDE, render
from prune2drive.world.scene import Road, Scene, Thing

V, STEP, SEGMENT = len(NUSCENES), SIDE // GRID, 2 + GRID**2


def owner(ids, patch):
    """The thing most of a patch shows; None if it shows too little of any."""
    row, column = (STEP * n for n in divmod(patch, GRID))
    count = Counter(ids[row : row + STEP, column : column + STEP].flatten().tolist())
    del count[-1]
    best = min(count, key=lambda n: (-count[n], n), default=None)
    return best if best is not None and count[best] >= 6 else None


def told(some):
    """Every question of some scenes, with its mask as (camera, patch) pairs and its share."""
    frames = render(some)
    labels, centres = patch_labels(some, frames)
    cross, _ = place_labels(some, frames)
    path = path_labels(some, frames)
    pixels, lamps = frames.visible(max(len(s.things) for s in some))
    for b, scene in enumerate(some):
        things = slice(len(scene.things))
        found = all_questions(scene, pixels[b, :, things].tolist(), lamps[b, :, things].tolist())
        reason = next((q.answer for q in found if q.type == "reason"), None)
        for question in found:
            mask, share = look(question, reason, range(V), labels[b], centres[b], cross[b], path[b])
            pairs = {(at // SEGMENT, at % SEGMENT - 2) for at in mask.nonzero().flatten().tolist()}
            yield b, question, reason, pairs, share, frames.ids[b], pixels[b]


def test_questions_look_at_what_they_ask_about():
    some = list(scenes("validation", 5))
    seen = Counter()
    for b, question, _, pairs, share, ids, pixels in told(some):
        things = some[b].things
        if question.camera is None:
            continue
        v = NUSCENES.names.index(question.camera)
        assert all(camera == v for camera, _ in pairs)
        shown = {n for n in range(len(things)) if pixels[v, n] >= 24}
        far = {n: math.hypot(things[n].x, things[n].y) for n in shown}
        mine = {n for n in shown if question.kind in (None, things[n].kind)}
        whose = {patch: owner(ids[v], patch) for patch in range(GRID**2)}
        seen[question.type, share] += 1
        if question.type == "exists":
            assert share == (question.answer == "yes") or not pairs
            same = [n is not None and things[n].kind == question.kind for n in whose.values()]
            assert {p for _, p in pairs} == set(np.flatnonzero(same).tolist())
        elif question.type == "count":
            number = int(question.answer)
            assert share == number / (number + 1) and (number > 0) >= bool(pairs) and len(pairs) <= number
        else:
            nearest = min(mine, key=far.get)
            assert {p for _, p in pairs} == {p for p, n in whose.items() if n == nearest}
            assert share == (1 if pairs else -1)
    assert {t for t, _ in seen} == {"exists", "count", "colour", "type", "motion", "next", "cross"}
    assert seen["exists", 0.0] > 20 and seen["exists", 1.0] > 20 and seen["count", 0.5] > 5


DECIDED = {
    "light": (Thing("light", "red", 10, -2), Thing("light", "green", 14, 3)),
    "person": (Thing("pedestrian", "red", 10, 0, math.pi / 2, True), Thing("pedestrian", "red", 10, 6)),
    "vehicle": (Thing("car", "blue", 12, 0), Thing("car", "blue", 12, 8)),
    "crossing": (Thing("car", "blue", 15, -9, math.pi / 2, True), Thing("car", "blue", 20, 9)),
    "cone": (Thing("cone", "orange", 9, 0), Thing("cone", "orange", 9, 5)),
    "clear": (Thing("car", "blue", 20, 9),),
}


@pytest.mark.parametrize("reason", DECIDED)
def test_decisions_look_at_their_reason(reason):
    """The first thing is the reason, the second of its kind is none."""
    scene = Scene("test/0", "day", Road(), DECIDED[reason])
    fronts = [NUSCENES.names.index(name) for name in FRONTS]
    asked = set()
    for _, question, why, pairs, share, ids, _ in told([scene]):
        if question.camera is not None:
            continue
        if question.type == "steering":
            assert (pairs, share) == (set(), -1)
            continue
        asked.add(question.type)
        assert why == reason
        expected = {(v, p) for v in fronts for p in range(GRID**2) if owner(ids[v], p) == 0}
        assert pairs == (expected if reason != "clear" else set()) and share == (reason != "clear")
    assert asked == {"action", "reason", "speed"}


def test_masks_fit_the_prompt_of_the_cameras_shown():
    """Only visual tokens, of the camera that is named."""
    tokenizer = build_tokenizer()
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    batch = AnswerBatches(2, 0, 1, 2)[0]
    assert batch["look"].shape == (*batch["text"].shape[:2], batch["prefix"].shape[1])
    looked = 0
    for row, views in enumerate(batch["views"].tolist()):
        for n, ids in enumerate(batch["text"][row]):
            at = batch["look"][row, n].nonzero().flatten()
            assert (batch["prefix"][row][at] == image).all()
            words = tokenizer.convert_ids_to_tokens(ids)
            text = words[: words.index("?")] if "?" in words else []
            cameras = {views[i // SEGMENT] for i in at.tolist()}
            for name in set(text) & set(NUSCENES.names):
                assert cameras <= {NUSCENES.names.index(name)}
                looked += bool(cameras)
    assert looked > 20
    padding = (batch["target"] == -100).all(-1)
    assert (batch["share"][padding] == -1).all() and not batch["look"][padding].any()


def test_look_loss_by_hand():
    torch.manual_seed(0)
    weights = torch.rand(2, 3, 4, 9).softmax(-1)
    looks = torch.rand(2, 4, 9) > 0.6
    looks[..., 0] = False
    shares = torch.tensor([[1.0, 0.0, -1.0, 0.75], [-1.0, 1.0, 0.5, -1.0]])
    expected = []
    for r in range(2):
        for q in range(4):
            share = float(shares[r, q])
            if share < 0:
                continue
            mean = weights[r, :, q].double().mean(0)
            there, sink = float(mean[looks[r, q]].sum()), float(mean[0])
            expected.append(-share * math.log(max(there, 1e-6)) - (1 - share) * math.log(sink))
    assert look_loss(weights, looks, shares).item() == pytest.approx(np.mean(expected), rel=1e-5)
    assert look_loss(weights, looks, torch.full_like(shares, -1)) == 0


def test_the_watched_weights_are_those_of_the_attention():
    torch.manual_seed(1)
    count, heads, groups, each, questions, before, width = 2, 4, 2, 5, 3, 7, 8
    query = torch.randn(count, heads, each * questions, width)
    key, value = (torch.randn(count, groups, before + each * questions, width) for _ in range(2))
    marks = torch.randint(each, (count, questions))
    module = torch.nn.Module()
    module.layer_idx = 3
    watched = Watched(3, marks)
    attend(module, query, key, value, None, question_length=each, watched=watched)
    assert watched.weights.shape == (count, heads // groups, questions, before)
    for b in range(count):
        for h in range(heads // groups):
            for q in range(questions):
                at = each * q + int(marks[b, q])
                own = slice(before + each * q, before + at + 1)
                keys = torch.cat([key[b, 0, :before], key[b, 0, own]])
                scores = (keys @ query[b, h, at] * width**-0.5).softmax(0)[:before]
                torch.testing.assert_close(watched.weights[b, h, q].float(), scores, atol=0.02, rtol=0.05)
    other = Watched(2, marks)
    attend(module, query, key, value, None, question_length=each, watched=other)
    assert other.weights is None


def test_looking_is_learnt(small_model):
    """The loss reaches the layer that looks and those before it, and nothing after."""
    model = small_model()
    name = register()
    assert name == QUICK
    model.model.vision_tower.config._attn_implementation = name
    model.model.language_model.config._attn_implementation = name
    batch = AnswerBatches(1, 0, 1, 1)[0]
    torch.manual_seed(0)
    kept = {}
    original = lessons.look_loss
    lessons.look_loss = lambda *given: kept.setdefault("loss", original(*given))
    try:
        with torch.autocast("cpu", torch.bfloat16):
            answer(model, Heads(64, V), Heads(64, V), batch)
    finally:
        lessons.look_loss = original
    kept["loss"].backward()
    layers = model.model.language_model.layers
    moved = [bool(layer.self_attn.q_proj.weight.grad is not None) for layer in layers]
    assert moved == [n <= LOOK_LAYER for n in range(len(layers))]
    assert model.get_input_embeddings().weight.grad.any()
