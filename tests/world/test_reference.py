"""The model that ships: plain transformers loads it, and it answers questions about scenes it never saw."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from prune2drive import prune
from prune2drive.benchmarks.answering import Answerer
from prune2drive.benchmarks.world import samples
from prune2drive.rig import NUSCENES
from prune2drive.world.model import FOLDER, build_model, build_processor


@pytest.fixture(scope="module")
def answerer():
    model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)
    return Answerer(model, AutoProcessor.from_pretrained(FOLDER, backend="pil"))


def right(group, given):
    pairs = [
        (question.answer, word)
        for sample, words in zip(group, given, strict=True)
        for question, word in zip(sample.questions, words, strict=True)
    ]
    return sum(a == b for a, b in pairs) / len(pairs)


def test_the_files_are_few_small_and_safe():
    files = list(FOLDER.iterdir())
    assert sum(path.stat().st_size for path in files) < 25e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja"}


def test_it_is_the_model_that_the_code_builds(answerer):
    fresh = build_model()
    shapes = {name: weight.shape for name, weight in fresh.state_dict().items()}
    assert {name: weight.shape for name, weight in answerer.model.state_dict().items()} == shapes
    assert answerer.tokenizer.get_vocab() == build_processor().tokenizer.get_vocab()


def test_it_sees_and_pruning_by_diversity_keeps_most(answerer):
    group = list(samples("validation", 8))
    encoded = answerer.encode(group)
    full = right(group, answerer.answer(encoded))
    blind = right(group, answerer.blind(group))
    few = right(group, answerer.answer(encoded, prune(answerer.model, "tfps", 0.10, rig=NUSCENES)))
    assert full > 0.8 and full > blind + 0.2
    assert few > 0.7
