"""The shared-prefix path gives what one prompt per question gives."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import prune2drive as p2d
from prune2drive.benchmarks import answering
from prune2drive.benchmarks.answering import GREY, Answerer, Encoded, reads_question
from prune2drive.benchmarks.settings import Setting
from prune2drive.engine.stages import resolve_stages
from prune2drive.errors import PruneError
from prune2drive.families import find_family
from prune2drive.families.vision import SIGNALS, VISION, encode_with_signals
from prune2drive.layer_pruners.fastv import FastV
from prune2drive.layer_pruners.pact import PACT
from prune2drive.layer_pruners.v2drop import V2DropStage
from prune2drive.rig import NUSCENES
from prune2drive.selectors.base import Selector
from prune2drive.tokens import READS_QUESTION, Selection, Signal
from prune2drive.world.model import prefix_text


def plain(model, processor, images, text, pruned=None):
    """Logits and answer of one question, asked the way the documentation shows."""
    pictures = [Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())) for image in images]
    inputs = processor(text=prefix_text() + text, images=pictures, return_tensors="pt")
    options = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    with torch.inference_mode():
        if pruned is None:
            out = model.generate(**inputs, **options)
        else:
            with pruned:
                out = model.generate(**inputs, **options)
    answer = processor.tokenizer.decode(out.sequences[0, -1:], skip_special_tokens=True)
    return out.logits[0][0], answer.strip()


def settings(model):
    return {
        "unpruned": lambda: None,
        "before": lambda: Setting("tfps", "before", 0.1).prune(model),
        "layer": lambda: Setting("tfps", "layer1", 0.1).prune(model),
        "deeper": lambda: Setting("random", "layer3", 0.25).prune(model, seed=5),
        "two stages": lambda: p2d.prune(model, ["tfps", "stride-layer"], [0.3, 0.1], rig=NUSCENES),
        "reindexed": lambda: p2d.prune(model, "stride", 0.1, rig=NUSCENES, positions="reindex"),
        "uneven": lambda: p2d.prune(model, "tfps", {"CAM_FRONT": 0.4, "*": 0.05}, rig=NUSCENES),
    }


@pytest.mark.parametrize(
    "name", ["unpruned", "before", "layer", "deeper", "two stages", "reindexed", "uneven"]
)
def test_fast_path_is_the_plain_path(model, processor, answerer, two_scenes, name):
    setting = settings(model)[name]
    encoded = answerer.encode(two_scenes)
    pruned = setting()
    fast, words = answerer.logits(encoded, pruned), answerer.answer(encoded, pruned)
    for number, sample in enumerate(two_scenes):
        kept = None
        for at in (0, len(sample.questions) - 1):
            again = setting()
            want, answer = plain(model, processor, sample.images, sample.questions[at].text, again)
            assert torch.allclose(fast[number][at], want, atol=1e-4), (
                f"off by {float((fast[number][at] - want).abs().max())}"
            )
            assert words[number][at] == answer
            kept = again and {k: cell.indices for k, cell in again.record.samples[0].items()}
        if kept is not None:
            assert answerer.kept(pruned, number) == kept


def test_eager_attention_gives_the_same(answerer, processor, model, two_scenes):
    before = model.config._attn_implementation
    want = answerer.logits(answerer.encode(two_scenes[:1]), Setting("tfps", "layer1", 0.1).prune(model))
    model.set_attn_implementation("eager")
    try:
        eager = Answerer(model, processor)
        got = eager.logits(eager.encode(two_scenes[:1]), Setting("tfps", "layer1", 0.1).prune(model))
    finally:
        model.set_attn_implementation(before)
    assert torch.allclose(got[0], want[0], atol=1e-4)


def test_answers_depend_on_pictures_and_questions(answerer, two_scenes):
    """Otherwise the other tests would show little."""
    logits = answerer.logits(answerer.encode(two_scenes))
    assert float((logits[0][-1] - logits[1][-1]).abs().max()) > 0.05  # the same question, other pictures
    assert len({int(pick) for row in logits for pick in row.argmax(-1)}) > 1


def test_encoded_pictures_serve_again_and_the_model_is_left_alone(answerer, model, two_scenes):
    encoded = answerer.encode(two_scenes)
    first = answerer.answer(encoded)
    answerer.answer(encoded, Setting("stride", "layer1", 0.05).prune(model))
    assert answerer.answer(encoded) == first
    assert not model.model.language_model.layers[0]._forward_pre_hooks
    assert "forward" not in model.__dict__


def test_scenes_without_questions_have_no_answers(answerer, two_scenes):
    silent = dataclasses.replace(two_scenes[0], questions=[])
    assert answerer.answer(answerer.encode([silent])) == [[]]
    both = answerer.answer(answerer.encode([silent, two_scenes[1]]))
    assert both[0] == [] and both[1] == answerer.answer(answerer.encode([two_scenes[1]]))[0]


def test_blind_is_the_plain_path_on_grey(answerer, model, processor, two_scenes):
    grey = torch.full_like(two_scenes[0].images, GREY)
    given = answerer.blind(two_scenes)
    texts = {
        q.text: word
        for s, row in zip(two_scenes, given, strict=True)
        for q, word in zip(s.questions, row, strict=True)
    }
    assert [len(row) for row in given] == [len(sample.questions) for sample in two_scenes]
    for text in sorted(texts)[:3]:
        assert texts[text] == plain(model, processor, grey, text)[1]


def test_budgets_that_differ_between_scenes_are_refused(answerer, model, two_scenes):
    from prune2drive.allocators import Allocator

    class Growing(Allocator):
        def allocate(self, views, rig, rounding="half-up"):
            Growing.k += 1
            return [Growing.k] * len(views)

    Growing.k = 3
    with pytest.raises(PruneError, match="one at a time"):
        answerer.logits(answerer.encode(two_scenes), p2d.prune(model, "stride", Growing(), rig=NUSCENES))


def test_other_models_are_refused(model, processor):
    class Other:
        class tokenizer:
            unk_token_id = 0

            def __new__(cls, text, **kwargs):
                return {"input_ids": [5, 6]}

    with pytest.raises(PruneError, match="the answer '0'"):
        Answerer(model, Other)


# -- questions that choose for themselves -------------------------------------------------------------------


def logits_of(model, processor, images, text, pruned):
    """Logits of one question in a plain forward call, and the record."""
    pictures = [Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy())) for image in images]
    inputs = processor(text=prefix_text() + text, images=pictures, return_tensors="pt")
    with torch.inference_mode(), pruned:
        return model(**inputs).logits[0, -1].float(), pruned.record


def kept_of(record):
    return {name: cell.indices for name, cell in record.samples[0].items()}


class Weighty(Selector):
    """Keeps every third token, which stands for as many as its place says."""

    name = "weighty"
    proportional = True

    def select(self, tokens, counts):
        indices = torch.arange(max(counts)).expand(len(counts), -1).clone() * 3
        sizes = 1.0 + indices.float()
        for row, k in enumerate(counts):
            indices[row, k:] = -1
        features = tokens.features.gather(
            1, indices.clamp(min=0)[..., None].expand(-1, -1, tokens.features.shape[-1])
        )
        return Selection(indices, list(counts), features * 1.1, sizes)


BLIND_TO_TEXT = {
    "before": lambda m: p2d.prune(m, "tfps", 0.1, rig=NUSCENES),
    "layer": lambda m: p2d.prune(m, "tfps-layer", 0.1, rig=NUSCENES),
    "reindexed": lambda m: p2d.prune(m, "tfps", 0.1, rig=NUSCENES, positions="reindex"),
    "uneven": lambda m: p2d.prune(m, "tfps", {"CAM_FRONT": 0.4, "*": 0.05}, rig=NUSCENES),
    "two stages": lambda m: p2d.prune(m, ["tfps", "stride-layer"], [0.3, 0.1], rig=NUSCENES),
    "averaged": lambda m: p2d.prune(m, ["tfps", V2DropStage(3)], p2d.LayerAveraged(0.15), rig=NUSCENES),
    "vision": lambda m: p2d.prune(m, "visionzip", 0.1, rig=NUSCENES),
    "calibrated": lambda m: p2d.prune(m, "tfps", 0.1, rig=NUSCENES, positions="calibrate"),
    "calibrated layer": lambda m: p2d.prune(m, "tfps-layer", 0.1, rig=NUSCENES, positions="calibrate"),
    "weighted": lambda m: p2d.prune(m, Weighty(), 0.1, rig=NUSCENES),
    "pact": lambda m: p2d.prune(m, PACT(layer=2), 0.1, rig=NUSCENES),
    "all of it": lambda m: p2d.prune(
        m, [Weighty(), PACT(layer=3)], [0.2, 0.05], rig=NUSCENES, positions="calibrate"
    ),
}
blind_to_text = pytest.mark.parametrize("name", BLIND_TO_TEXT)
WEIGHTED = {"calibrated", "calibrated layer", "weighted", "pact", "all of it"}


@blind_to_text
def test_without_its_question_a_method_gives_the_same_either_way(
    model, answerer, two_scenes, name, monkeypatch
):
    make = BLIND_TO_TEXT[name]
    encoded = answerer.encode(two_scenes, VISION)
    packed = make(model)
    assert not reads_question(packed.cutter.stages)
    want = answerer.logits(encoded, packed)
    kept = [answerer.kept(packed, number) for number in range(2)]
    averaged = [answerer.layer_averaged(packed, number) for number in range(2)]
    monkeypatch.setattr(answering, "reads_question", lambda stages: True)
    single = make(model)
    got = answerer.logits(encoded, single)
    for number in range(2):
        assert got[number].shape == want[number].shape
        off = float((got[number] - want[number]).abs().max())
        assert off < 1e-4, f"off by {off}"
        assert answerer.kept(single, number) == kept[number]
        assert answerer.layer_averaged(single, number) == pytest.approx(averaged[number])


@pytest.mark.parametrize("name", sorted(WEIGHTED))
def test_packed_questions_see_keys_that_gained_weight(model, processor, answerer, two_scenes, name):
    make = BLIND_TO_TEXT[name]
    fast = answerer.logits(answerer.encode(two_scenes), make(model))
    bare = {"calibrated": "before", "calibrated layer": "layer"}.get(name)
    for number, sample in enumerate(two_scenes):
        for at in (0, len(sample.questions) - 1):
            want, _ = logits_of(model, processor, sample.images, sample.questions[at].text, make(model))
            off = float((fast[number][at] - want).abs().max())
            assert off < 1e-4, f"off by {off}"
    if bare is not None:  # the same tokens without the gain: it must matter
        plainly = answerer.logits(answerer.encode(two_scenes), BLIND_TO_TEXT[bare](model))
        assert float((fast[0] - plainly[0]).abs().max()) > 1e-3


READERS = {
    "fastv": lambda m: p2d.prune(m, FastV(layer=2), 0.1, rig=NUSCENES),
    "fastv calibrated": lambda m: p2d.prune(m, FastV(layer=2), 0.1, rig=NUSCENES, positions="calibrate"),
    "cdpruner": lambda m: p2d.prune(m, "cdpruner", 0.1, rig=NUSCENES),
    "mvpruner": lambda m: p2d.prune(m, "mvpruner", 0.3, rig=NUSCENES),
    "pyramiddrop": lambda m: p2d.prune(m, "pyramiddrop", 0.5, rig=NUSCENES),
    "vision and text": lambda m: p2d.prune(m, "duet", 0.3, rig=NUSCENES),
}


@pytest.mark.parametrize("name", READERS)
def test_a_method_that_reads_the_question_answers_each_as_a_plain_call(
    model, processor, answerer, two_scenes, name
):
    make = READERS[name]
    pruned = make(model)
    assert reads_question(pruned.cutter.stages)
    encoded = answerer.encode(two_scenes, VISION)
    words = answerer.answer(encoded, pruned)
    logits = answerer.logits(encoded, pruned)
    choices = set()
    for number, sample in enumerate(two_scenes):
        averaged = []
        for at, question in enumerate(sample.questions):
            if at > 1 and at < len(sample.questions) - 1 and name != "fastv":
                continue
            want, record = logits_of(model, processor, sample.images, question.text, make(model))
            off = float((logits[number][at] - want).abs().max())
            assert off < 1e-4, f"off by {off}"
            word = processor.tokenizer.decode([int(want.argmax())], skip_special_tokens=True).strip()
            assert words[number][at] == word
            averaged.append(record.layer_averaged[0])
            choices.add((number, str(kept_of(record))))
            if at == 0:
                assert answerer.kept(pruned, number) == kept_of(record)
        if name == "fastv":
            assert answerer.layer_averaged(pruned, number) == pytest.approx(sum(averaged) / len(averaged))
    assert len(choices) > 2  # some question of a scene kept other tokens than another


def test_layer_averaged_and_kept_follow_the_last_answer(model, answerer, two_scenes):
    encoded = answerer.encode(two_scenes)
    tokens = answerer.tokens_per_picture * 6
    fastv, tfps = FastV(layer=2), "tfps"
    reading = p2d.prune(model, fastv, 0.25, rig=NUSCENES)
    answerer.answer(encoded, reading)
    # Two layers of eight see all, six a quarter.
    assert [answerer.layer_averaged(reading, number) for number in range(2)] == [
        pytest.approx((2 + 6 * 0.25) / 8 * tokens)
    ] * 2
    before = p2d.prune(model, tfps, 0.25, rig=NUSCENES)
    answerer.answer(encoded, before)
    assert answerer.layer_averaged(before, 1) == tokens / 4
    assert {len(picks) for picks in answerer.kept(before, 1).values()} == {tokens // 24}
    answerer.answer(encoded)
    assert answerer.layer_averaged(None, 0) == tokens
    assert {len(picks) for picks in answerer.kept(None, 0).values()} == {tokens // 6}


@pytest.mark.parametrize(
    ("method", "reads"),
    [
        ("tfps", False),
        ("visionzip", False),
        ("tfps-layer", False),
        ("pact", False),  # its query is that of the visual tokens
        (V2DropStage(3), False),
        ("cdpruner", True),
        ("fastv", True),
        ("dart", True),
        ("pyramiddrop", True),
        ("sparsevlm", True),
        ("mvpruner", True),
        ("v2drop", False),
        ("duet", True),
        (["tfps", "fastv"], True),
    ],
)
def test_which_methods_read_the_question(method, reads):
    stages = resolve_stages(method, p2d.LayerAveraged(0.9), 8)
    assert reads_question(stages) == reads


def test_every_signal_is_of_the_pictures_or_of_the_question():
    assert set(Signal) - READS_QUESTION == {*VISION, Signal.PREVIOUS, Signal.OWN_KEYS}


def test_a_scene_without_questions_has_no_answers_to_choose_for(model, answerer, two_scenes):
    silent = dataclasses.replace(two_scenes[0], questions=[])
    pruned = p2d.prune(model, FastV(layer=2), 0.1, rig=NUSCENES)
    alone = answerer.answer(answerer.encode([two_scenes[1]]), pruned)
    both = answerer.answer(answerer.encode([silent, two_scenes[1]]), pruned)
    assert both == [[], alone[0]]
    # A tenth of every camera, whole tokens, shared out over all of them.
    assert sum(map(len, answerer.kept(pruned, 1).values())) == 6 * round(answerer.tokens_per_picture / 10)


# -- what the vision tower noted ----------------------------------------------------------------------------


def test_signals_come_along_with_the_pictures(model, processor, answerer, two_scenes):
    found = getattr(answerer.encode(two_scenes, VISION).output, SIGNALS)
    per_scene = 6 * answerer.tokens_per_picture
    for number, sample in enumerate(two_scenes):
        pictures = [Image.fromarray(i.permute(1, 2, 0).numpy().copy()) for i in sample.images]
        given = processor.image_processor(pictures, return_tensors="pt")
        with torch.inference_mode():
            want = getattr(encode_with_signals(find_family(model), dict(given), VISION), SIGNALS)
        part = slice(number * per_scene, (number + 1) * per_scene)
        for field in ("encoder", "saliency", "keys"):
            assert torch.allclose(getattr(found, field)[part], getattr(want, field), atol=1e-4)
            assert not torch.allclose(getattr(found, field)[:per_scene], getattr(found, field)[per_scene:])


def test_only_what_is_needed_is_noted(answerer, two_scenes):
    found = getattr(answerer.encode(two_scenes[:1], {Signal.SALIENCY, Signal.TEXT}).output, SIGNALS)
    assert found.saliency is not None and found.encoder is None and found.keys is None


@pytest.mark.parametrize("method", ["visionzip", "scope"])
def test_methods_of_the_vision_tower_answer_as_a_plain_call(model, processor, answerer, two_scenes, method):
    def make():
        return p2d.prune(model, method, 0.1, rig=NUSCENES)

    pruned = make()
    got = answerer.logits(answerer.encode(two_scenes, pruned.cutter.selector.needs), pruned)
    for number, sample in enumerate(two_scenes):
        want, record = logits_of(model, processor, sample.images, sample.questions[0].text, make())
        off = float((got[number][0] - want).abs().max())
        assert off < 1e-4, f"off by {off}"
        assert answerer.kept(pruned, number) == kept_of(record)
    with pytest.raises(PruneError, match=f"{method} needs .* of the vision tower"):
        answerer.logits(answerer.encode(two_scenes), make())


@pytest.mark.parametrize("copies", [1, 3])
def test_one_scene_of_many_with_its_signals(answerer, two_scenes, copies):
    encoded = answerer.encode(two_scenes, VISION)
    before = [tensor.clone() for tensor in encoded.output.pooler_output]
    for number, sample in enumerate(two_scenes):
        one = encoded.scene(number, copies)
        alone = answerer.encode([sample], VISION).output
        assert len(one.pooler_output) == 6 * copies
        for at, tensor in enumerate(one.pooler_output):
            assert torch.allclose(tensor, alone.pooler_output[at % 6], atol=1e-4)
        got, want = getattr(one, SIGNALS), getattr(alone, SIGNALS)
        for field in ("encoder", "saliency", "keys"):
            tensor = getattr(want, field)
            assert torch.allclose(getattr(got, field), torch.cat([tensor] * copies), atol=1e-4)
    assert all(a.equal(b) for a, b in zip(encoded.output.pooler_output, before, strict=True))


def test_a_scene_of_features_kept_elsewhere_is_answered_alike(model, answerer, two_scenes):
    encoded = answerer.encode(two_scenes)
    features = torch.stack(list(encoded.output.pooler_output)).unflatten(0, (2, 6))
    again = answerer.restored(features, encoded.texts)
    pruned = p2d.prune(model, FastV(layer=2), 0.1, rig=NUSCENES)
    for got, want in zip(answerer.logits(again, pruned), answerer.logits(encoded, pruned), strict=True):
        assert got.equal(want)
    alone = Encoded(encoded.scene(1, 1), encoded.texts[1:])
    assert torch.allclose(answerer.logits(alone, pruned)[0], answerer.logits(encoded, pruned)[1], atol=1e-4)
