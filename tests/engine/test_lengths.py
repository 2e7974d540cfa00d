"""Lengths that ``generate`` is told, kept true for the full prompt."""

from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.utils import GenerateDecoderOnlyOutput

from prune2drive.engine.lengths import check_layer_stages, prompt_lengths, restore_prompt, setting
from prune2drive.errors import PruneError


def model(**settings):
    return SimpleNamespace(generation_config=GenerationConfig(**settings))


def test_call_before_config_before_model():
    config = GenerationConfig(max_length=40)
    assert setting({"max_length": 50, "generation_config": config}, model(max_length=30), "max_length") == 50
    assert setting({"generation_config": config}, model(max_length=30), "max_length") == 40
    assert setting({"max_length": None}, model(max_length=30), "max_length") == 30
    assert setting({}, SimpleNamespace(), "max_length") is None


@pytest.mark.parametrize(
    ("inputs", "own", "want"),
    [
        ({"max_length": 50}, {}, {"max_length": 38}),
        ({"max_length": 50}, {"max_length": 30}, {"max_length": 38}),
        ({}, {"max_length": 30}, {"max_length": 18}),
        ({"generation_config": GenerationConfig(max_length=40)}, {"max_length": 30}, {"max_length": 28}),
        ({"max_length": 50, "min_length": 20}, {}, {"max_length": 38, "min_length": 8}),
        ({"min_length": 5}, {}, {"min_length": 0}),
        # Counts of new tokens win over lengths, and need no change, whoever says so.
        ({"max_new_tokens": 7, "max_length": 50}, {}, {}),
        ({"max_length": 50}, {"max_new_tokens": 7}, {}),
        ({"generation_config": GenerationConfig(max_new_tokens=7)}, {"max_length": 30}, {}),
        ({"min_new_tokens": 2, "min_length": 20, "max_length": 50}, {}, {"max_length": 38}),
        ({"min_length": 0, "max_new_tokens": 3}, {}, {}),
        ({}, {}, {}),
    ],
)
def test_lengths_shrink_with_the_prompt(inputs, own, want):
    assert prompt_lengths(inputs, model(**own), removed=12) == want


IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])


def test_the_full_prompt_is_put_back():
    short = torch.tensor([[1, 2, 5, 70], [6, 7, 10, 80]])
    assert restore_prompt(short, IDS, 3).tolist() == [[1, 2, 3, 4, 5, 70], [6, 7, 8, 9, 10, 80]]


def test_the_prompt_of_beams_and_return_sequences_repeats():
    short = torch.tensor([[0, 70], [0, 71], [0, 80], [0, 81]])
    assert restore_prompt(short, IDS[:, :2], 1).tolist() == [[1, 2, 70], [1, 2, 71], [6, 7, 80], [6, 7, 81]]


def test_in_a_model_output_only_the_sequences_change():
    scores = (torch.zeros(2, 3),)
    out = GenerateDecoderOnlyOutput(sequences=torch.tensor([[1, 5, 70], [6, 10, 80]]), scores=scores)
    back = restore_prompt(out, IDS, 2)
    assert back is out
    assert back.sequences.tolist() == [[1, 2, 3, 4, 5, 70], [6, 7, 8, 9, 10, 80]]
    assert back["sequences"] is back.sequences
    assert back.scores is scores


@pytest.mark.parametrize("kind", [None, "dynamic", "dynamic_full"])
def test_caches_that_layer_stages_can_use(kind):
    check_layer_stages({"cache_implementation": kind}, model())


@pytest.mark.parametrize(
    ("inputs", "own", "words"),
    [
        ({"cache_implementation": "static"}, {}, "cache_implementation='static'.*dynamic cache"),
        ({}, {"cache_implementation": "sliding_window"}, "method='tfps'"),
        ({"cache_implementation": "offloaded_static"}, {}, "length of its own"),
        ({"prefill_chunk_size": 64}, {}, "prefill_chunk_size.*leave it out"),
        ({"generation_config": GenerationConfig(prefill_chunk_size=64)}, {}, "prefill_chunk_size"),
    ],
)
def test_what_layer_stages_refuse(inputs, own, words):
    with pytest.raises(PruneError, match=words):
        check_layer_stages(inputs, SimpleNamespace(generation_config=SimpleNamespace(**own)))
