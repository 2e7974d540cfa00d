"""Frames from host memory to the device beside the work that runs there.

A copy from ordinary host memory makes the host wait. From page-locked memory it runs on a stream of its
own, so that frame t+1 arrives while frame t is answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import PruneError


class Lane(Protocol):
    """What an upload needs of a device: memory to copy from, a copy beside the work, and its end."""

    def host(self, size: int) -> Tensor:
        """``(size,)`` uint8 host memory that the device can read by itself."""

    def send(self, host: Tensor, consumer: Any) -> tuple[Tensor, Any]:
        """Start the copy; what ``consumer`` starts from now on sees its end. Gives the copy and its mark."""

    def wait(self, mark: Any) -> None:
        """Hold the host until the marked copy has read its host memory."""


class CudaLane:
    """A CUDA stream for copies."""

    def __init__(self, device: torch.device, stream: Any = None) -> None:
        self.device = device
        self.stream = stream if stream is not None else torch.cuda.Stream(device)

    def host(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def send(self, host: Tensor, consumer: Any) -> tuple[Tensor, Any]:
        consumer = consumer if consumer is not None else torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            copy = host.to(self.device, non_blocking=True)
            mark = torch.cuda.Event()
            mark.record(self.stream)
        consumer.wait_event(mark)
        # The memory belongs to the copying stream: without this it could be given to the next copy while
        # the consumer still reads it.
        copy.record_stream(consumer)
        return copy, mark

    def wait(self, mark: Any) -> None:
        mark.synchronize()


class _Slot:
    def __init__(self) -> None:
        self.host: Tensor | None = None
        self.mark: Any = None
        self.source: Tensor | None = None


class PinnedUpload:
    """Copies host frames to a device, the next while the last is worked on.

    Each call stages its frames in the next of ``depth`` page-locked buffers and starts a copy; the buffer
    is written again only after that copy has ended (the host waits if it has not). Frames in page-locked
    memory are copied from where they are: leave them as they are until `synchronize`, or until the call
    ``depth`` calls later. On a device without page-locked copies (the CPU), frames pass as they are.

    Not to be called while a CUDA graph is recorded: copy what it returns into the graph's static input.

    Args:
        device: where to.
        depth: buffers; 2 lets one copy run while the next frames are staged.
        stream: the ``torch.cuda.Stream`` to copy on; one of its own by default.

    Raises:
        PruneError: a depth below 1.
    """

    def __init__(
        self, device: str | torch.device, *, depth: int = 2, stream: Any = None, lane: Lane | None = None
    ) -> None:
        if depth < 1:
            raise PruneError(f"depth={depth}: an upload needs a buffer. Give 1 or more; 2 overlaps.")
        self.device = torch.device(device)
        if lane is None and self.device.type == "cuda":
            lane = CudaLane(self.device, stream)
        self._lane = lane
        self._slots = [_Slot() for _ in range(depth)]
        self._calls = 0

    def upload(self, frames: Any, *, consumer: Any = None) -> Tensor:
        """Start the copy of frames.

        Args:
            frames: a numpy array or tensor of any shape and dtype, or a sequence of equal ones, which are
                stacked: V pictures ``(H, W, 3)`` uint8 become ``(V, H, W, 3)``.
            consumer: the stream that will read the result; the current one by default. Read on another
                stream only after ``record_stream`` and a wait for this one.

        Returns:
            The frames on the device. Work that ``consumer`` is given after this call starts when they are
            there; the host does not wait. On the CPU, the frames themselves where they are one writable
            array or tensor.

        Raises:
            PruneError: parts of different shape or dtype, or no parts.
        """
        parts = [_tensor(part) for part in frames] if isinstance(frames, Sequence) else [_tensor(frames)]
        _check_equal(parts)
        stacked = isinstance(frames, Sequence)
        lane = self._lane
        if lane is None or parts[0].device.type != "cpu":
            # Frames that are on a device go from there to ours; torch orders that by itself.
            whole = torch.stack(parts) if stacked else parts[0]
            return whole.to(self.device)
        slot = self._slots[self._calls % len(self._slots)]
        self._calls += 1
        if slot.mark is not None:
            lane.wait(slot.mark)
            slot.mark, slot.source = None, None
        if not stacked and parts[0].is_contiguous() and parts[0].is_pinned():
            host = parts[0]
        else:
            host = self._staged(slot, parts, stacked)
        copy, slot.mark = lane.send(host, consumer)
        slot.source = host
        return copy

    def synchronize(self) -> None:
        """Hold the host until every started copy has ended; then the frames given may be written again."""
        for slot in self._slots:
            if self._lane is not None and slot.mark is not None:
                self._lane.wait(slot.mark)
            slot.mark, slot.source = None, None

    def _staged(self, slot: _Slot, parts: list[Tensor], stacked: bool) -> Tensor:
        assert self._lane is not None
        first = parts[0]
        size = sum(part.numel() * part.element_size() for part in parts)
        if slot.host is None or slot.host.numel() < size:
            slot.host = self._lane.host(size)
        shape = (len(parts), *first.shape) if stacked else tuple(first.shape)
        host = slot.host[:size].view(first.dtype).view(shape)
        for place, part in zip(host if stacked else [host], parts, strict=True):
            place.copy_(part)
        return host


def _tensor(part: Any) -> Tensor:
    if isinstance(part, np.ndarray):
        # torch takes neither read-only memory (PIL's) nor negative strides (a flipped view).
        plain = part.flags.writeable and min(part.strides, default=0) >= 0
        return torch.from_numpy(part if plain else part.copy())
    if isinstance(part, Tensor):
        return part
    raise PruneError(
        f"frames hold a {type(part).__name__}. Give numpy arrays or tensors (np.asarray(picture))."
    )


def _check_equal(parts: list[Tensor]) -> None:
    if not parts:
        raise PruneError("frames are an empty sequence. Give one picture at least.")
    for i, part in enumerate(parts):
        if (part.shape, part.dtype, part.device) != (parts[0].shape, parts[0].dtype, parts[0].device):
            raise PruneError(
                f"frames[{i}] is {tuple(part.shape)} {part.dtype} on {part.device}, frames[0] is "
                f"{tuple(parts[0].shape)} {parts[0].dtype} on {parts[0].device}. Upload each kind by itself."
            )
