"""Uploads beside the work: what arrives, which buffer may be written when, and plain passing on the CPU."""

import numpy as np
import pytest
import torch

from prune2drive import PruneError
from prune2drive.preprocessing import PinnedUpload

CPU = torch.device("cpu")


class Slow:
    """A device whose copies read their host memory only when they are waited for, as late as is allowed."""

    def __init__(self):
        self.log, self.buffers, self.pending = [], [], []

    def host(self, size):
        self.buffers.append(torch.empty(size, dtype=torch.uint8))
        return self.buffers[-1]

    def send(self, host, consumer):
        copy = torch.full_like(host, 0)
        mark = len(self.pending)
        self.pending.append((host, copy))
        self.log.append(("send", mark, consumer))
        return copy, mark

    def wait(self, mark):
        host, copy = self.pending[mark]
        copy.copy_(host)
        self.log.append(("wait", mark))


def frame(seed, shape=(2, 4, 5, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_buffer_is_not_written_while_its_copy_is_on_the_way(depth):
    lane = Slow()
    upload = PinnedUpload("cpu", depth=depth, lane=lane)
    frames = [frame(seed) for seed in range(7)]
    copies = [upload.upload(each) for each in frames]
    upload.synchronize()
    for given, copy in zip(frames, copies, strict=True):
        assert torch.equal(copy, torch.from_numpy(given))
    assert len(lane.buffers) == depth
    # Up to `depth` copies are on the way at once, and no more.
    on_the_way, most = 0, 0
    for entry in lane.log:
        on_the_way += 1 if entry[0] == "send" else -1
        most = max(most, on_the_way)
    assert most == depth


def test_frames_may_be_written_again_right_after_the_call():
    upload = PinnedUpload("cpu", lane=Slow())
    given = frame(0)
    want = torch.from_numpy(given.copy())
    copy = upload.upload(given)
    given[:] = 7
    upload.synchronize()
    assert torch.equal(copy, want)


def test_parts_are_stacked_and_buffers_grow():
    lane = Slow()
    upload = PinnedUpload("cpu", depth=1, lane=lane)
    parts = [frame(seed, (4, 5, 3)) for seed in range(6)]
    small = upload.upload(parts[:2])
    large = upload.upload(parts)
    again = upload.upload(torch.arange(6.0).reshape(2, 3))
    upload.synchronize()
    assert torch.equal(small, torch.from_numpy(np.stack(parts[:2])))
    assert torch.equal(large, torch.from_numpy(np.stack(parts)))
    assert torch.equal(again, torch.arange(6.0).reshape(2, 3))
    assert [len(buffer) for buffer in lane.buffers] == [2 * 60, 6 * 60]


def test_the_consumer_is_told_of_the_copy():
    lane = Slow()
    PinnedUpload("cpu", lane=lane).upload(frame(0), consumer="stream")
    assert lane.log == [("send", 0, "stream")]


def test_on_the_cpu_frames_pass_as_they_are():
    given = frame(0)
    passed = PinnedUpload("cpu").upload(given)
    assert passed.data_ptr() == torch.from_numpy(given).data_ptr()
    stacked = PinnedUpload("cpu").upload([frame(0), frame(1)])
    assert torch.equal(stacked, torch.from_numpy(np.stack([frame(0), frame(1)])))
    PinnedUpload("cpu").synchronize()


@pytest.mark.parametrize("turned", [lambda x: x[:, ::-1], lambda x: x[..., ::-1]], ids=["flipped", "BGR"])
def test_views_and_read_only_memory_are_taken(turned):
    given = frame(0)
    given.flags.writeable = False
    assert torch.equal(PinnedUpload("cpu").upload(turned(given)), torch.from_numpy(turned(given).copy()))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "empty sequence"),
        ([frame(0), frame(0, (2, 4, 6, 3))], r"frames\[1\] is \(2, 4, 6, 3\)"),
        ([frame(0), frame(0).astype(np.float32)], r"frames\[1\].*float32"),
        ("picture", "frames hold a str"),
    ],
)
def test_refuses(frames, message):
    with pytest.raises(PruneError, match=message):
        PinnedUpload("cpu").upload(frames)


def test_refuses_no_buffers():
    with pytest.raises(PruneError, match="depth=0"):
        PinnedUpload("cpu", depth=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu():
    upload = PinnedUpload("cuda")
    frames = [frame(seed, (6, 90, 160, 3)) for seed in range(8)]
    # Work that takes its time, so that copies and their readers are on the way together.
    weights = torch.randn(2048, 2048, device="cuda")
    sums = []
    for each in frames:
        there = upload.upload(each)
        for _ in range(10):
            weights = (weights @ weights).tanh()
        sums.append(there.long().sum())
        assert there.is_cuda
    assert [int(s) for s in sums] == [int(each.astype(np.int64).sum()) for each in frames]
