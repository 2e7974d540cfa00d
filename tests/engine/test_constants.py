"""Uploads are noted once and handed out again; the meta device stands for an accelerator."""

from __future__ import annotations

import pytest
import torch

from prune2drive.engine.constants import Constants

DEVICE = torch.device("meta")


def uploads(x):
    """Every way in which models write constants to a device."""
    return (
        torch.tensor([1, 2], device=x.device),
        torch.as_tensor([3.0], device="meta"),
        torch.arange(3).to(x.device),
        torch.arange(4).to("meta", torch.float32),
        torch.arange(5).to(x),
        torch.arange(6).to(device=DEVICE),
    )


def test_uploads_come_back_in_order():
    constants, x = Constants(DEVICE), torch.ones(2, device=DEVICE)
    with constants.note():
        first = uploads(x)
    assert len(constants.noted) == len(first)
    with constants.replay():
        again = uploads(x)
    for a, b in zip(first, again, strict=True):
        assert (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)


def test_values_are_those_noted_and_safe_from_changes():
    """With the host as its own device every upload is real, so values can be read."""
    constants = Constants(torch.device("cpu"))

    def function(values):
        out = torch.tensor(values, device="cpu")
        before = out.clone()
        out += 100  # what a function does to its own copy stays there
        return before

    with constants.note():
        function([1, 2])
    with constants.replay():
        assert function([7, 7]).tolist() == [1, 2]
    with constants.replay():
        assert function([7, 7]).tolist() == [1, 2]


def test_what_stays_in_its_place_is_left_alone():
    constants, x = Constants(DEVICE), torch.ones(2, device=DEVICE)
    with constants.note():
        torch.tensor([1, 2])
        torch.arange(3).to(torch.float64)
        torch.arange(3).to(torch.arange(2.0))
        x.to(torch.float16)
        x.to(DEVICE)
        torch.as_tensor(x, device=DEVICE)
    assert not constants.noted


def test_another_upload_than_noted_is_an_error():
    constants, x = Constants(DEVICE), torch.ones(2, device=DEVICE)
    with constants.note():
        torch.tensor([1], device=x.device)
    with constants.replay(), pytest.raises(RuntimeError, match="not the same each time"):
        torch.arange(3).to(x.device)
    with constants.replay():
        torch.tensor([1], device=x.device)
        with pytest.raises(RuntimeError, match="no earlier call made"):
            torch.tensor([1], device=x.device)


def test_a_message_does_not_read_the_device_while_recording():
    constants, count = Constants(DEVICE), torch.ones((), device=DEVICE).sum()
    with constants.note():
        assert "tokens" in f"{count} tokens"
    with constants.replay():
        assert f"{count} tokens" == "? tokens"
        assert f"{torch.tensor(3)} tokens" == "3 tokens"
