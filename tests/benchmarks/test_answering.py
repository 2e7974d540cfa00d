"""The shared-prefix path gives what one prompt per question gives."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import prune2drive as p2d
from prune2drive.benchmarks.answering import GREY, Answerer
from prune2drive.benchmarks.settings import Setting
from prune2drive.errors import PruneError
from prune2drive.rig import NUSCENES
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
