"""Counts on the device: nothing is uploaded twice, and nothing at all while a graph is recorded.

The meta device stands in for a GPU: what goes to it is an upload. (Not what stays on the CPU.)
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prune2drive.functional import checks, counts, fps
from prune2drive.functional.checks import METRICS
from prune2drive.functional.counts import on_device

META = torch.device("meta")


class Uploads(TorchDispatchMode):
    """Operators that take a CPU tensor with values and write to the meta device."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = [each for each in (*args, *(kwargs or {}).values()) if isinstance(each, torch.Tensor)]
        if isinstance(out, torch.Tensor) and out.is_meta and any(not each.is_meta for each in given):
            self.seen.append(str(func))
        return out


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(counts, "_kept", {})


@pytest.mark.parametrize("values", [[], [3], [4, 4, 4], [1, 2, 2, 9], (5, 5, 1)])
def test_values(values):
    for made in (on_device(values, torch.device("cpu")), counts._filled(values, torch.device("cpu"))):
        assert made.tolist() == list(values)
        assert made.dtype == torch.int64


def test_each_list_is_uploaded_once():
    with Uploads() as uploads:
        assert on_device([7, 7], META).shape == (2,)
        assert uploads.seen == []
        first = on_device([7, 8, 8], META)
        assert len(uploads.seen) == 1
        assert on_device([7, 8, 8], META) is first
        assert len(uploads.seen) == 1
        assert on_device([7, 8], META).shape == (2,)
        assert len(uploads.seen) == 2


def test_nothing_is_uploaded_into_a_recording(monkeypatch):
    monkeypatch.setattr(counts, "capturing", lambda device: True)
    with Uploads() as uploads:
        for _ in range(2):
            made = on_device([7, 8, 8], META)
            assert made.shape == (3,)
            assert made.is_meta
    assert uploads.seen == []
    assert counts._kept == {}  # what a recording makes belongs to it


def test_only_so_many_lists_are_kept(monkeypatch):
    monkeypatch.setattr(counts, "MOST_KEPT", 2)
    for k in range(5):
        on_device([k, k + 1], META)
    assert len(counts._kept) == 2


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("start", ["isolated", "center", "random", 3])
def test_a_recording_of_fps_uploads_nothing(monkeypatch, metric, start):
    monkeypatch.setattr(counts, "capturing", lambda device: True)
    monkeypatch.setattr(checks, "capturing", lambda device: True)
    x = torch.empty(3, 12, 6, device="meta")
    mask = torch.empty(3, 12, dtype=torch.bool, device="meta")
    with Uploads() as uploads:
        # check=True is the default: it must be passed over, for any question about a value raises here.
        assert fps(x, [5, 2, 4], metric=metric, start=start, mask=mask).shape == (3, 5)
        assert fps(x, 5, metric=metric, start=start, compat=None).shape == (3, 5)
    assert uploads.seen == []


def test_cpu_records_nothing():
    assert not counts.capturing(torch.device("cpu"))
    assert not counts.capturing(torch.device("cuda")) or torch.cuda.is_available()
