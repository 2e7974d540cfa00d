"""A model of the world benchmark whose answers vary, without training."""

import pytest
import torch

from prune2drive.benchmarks.answering import Answerer
from prune2drive.benchmarks.world import samples
from prune2drive.world.model import build_model, build_processor


def lively_model():
    """Random weights, scaled so that answers depend on pictures and questions."""
    model = build_model(0).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "language_model" in name:
                weight.mul_(2.5)
    return model


@pytest.fixture(scope="package")
def model():
    return lively_model()


@pytest.fixture(scope="package")
def processor():
    return build_processor()


@pytest.fixture(scope="package")
def answerer(model, processor):
    return Answerer(model, processor)


@pytest.fixture(scope="package")
def two_scenes():
    return list(samples("test", 2, types=["exists", "next", "steering"]))
