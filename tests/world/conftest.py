"""A model of the reference model's make and tokens, but small, for tests that train."""

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from prune2drive.world.model import build_model


@pytest.fixture(scope="session")
def small_model():
    """Build it: ``small_model(seed)``; float32, in training mode, equal seeds give equal weights."""
    config = build_model().config
    vision, text = config.vision_config, config.text_config
    vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers = 48, 96, 2
    text.hidden_size, text.intermediate_size = 64, 128

    def build(seed=0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LlavaForConditionalGeneration(config)

    return build
