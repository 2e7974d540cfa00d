"""A model of the reference model's make with random weights, as a folder."""

import pytest

from prune2drive.world.model import build_model, build_processor


@pytest.fixture(scope="session")
def save_untrained():
    """Write one into a folder: ``save_untrained(path)`` returns the path."""

    def save(path):
        build_model(0).save_pretrained(path)
        build_processor().save_pretrained(path)
        return path

    return save
