"""One part of a call with static shapes: recorded as a CUDA graph where that works, else called as it is.

A pruned prefill is short, and then the time goes into launching: some 15 kernels a layer, each launched from
Python. A CUDA graph replays them all with one launch.
"""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from ..errors import first_line
from .constants import Constants

WARM_UP = 3
"""Calls before recording: libraries make their handles and workspaces, kernels are compiled."""

UNCHECKED = "TRANSFORMERS_DISABLE_TORCH_CHECK"
"""transformers compares counts of placeholders and features on the device, and reads the answer, which a
recording cannot do. The caller has compared them on the host."""

Tensors = tuple[Tensor, ...]


class Pool:
    """Memory that graphs share which are replayed in the same order."""

    def __init__(self) -> None:
        self.handle = torch.cuda.graph_pool_handle()

    def abandon(self, device: torch.device) -> None:
        """After a recording that failed: end what it began, and let later stages begin with a new pool.

        torch leaves the pool open when the end of a recording raises. While it is open no other recording may
        use it, and the allocator frees nothing to make room.
        """
        index = torch.cuda.current_device() if device.index is None else device.index
        with suppress(Exception):  # it was not open, or this torch closes it itself
            torch._C._cuda_endAllocateToPool(index, self.handle)  # type: ignore[attr-defined]
        self.handle = torch.cuda.graph_pool_handle()


class Stage:
    """A function from tensors to tensors whose shapes never change.

    Args:
        name: for messages.
        function: takes tensors, returns a tuple of tensors; may not read values on the host if it is to be
            recorded.
        record: whether to try.
        pool: of the stages that are replayed in the same order; None makes one for this stage alone.

    After `prepare` the attribute ``how`` says "graph", "plain", or "plain: why the recording failed".
    """

    def __init__(
        self, name: str, function: Callable[..., Tensors], record: bool = False, pool: Pool | None = None
    ) -> None:
        self.name, self.function, self.record, self.pool = name, function, record, pool
        self.how = "plain"
        self.error: Exception | None = None
        self._graph: Any = None
        self._constants: Constants | None = None
        self._inputs: Tensors = ()
        self._outputs: Tensors = ()

    @property
    def recorded(self) -> bool:
        """Whether calls replay a graph, so that their outputs are overwritten by the next call."""
        return self._graph is not None

    def prepare(self, *inputs: Tensor) -> Tensors:
        """Warm up on ``inputs``, which become the buffers, record if asked to; return the outputs."""
        if not self.record:
            return self.function(*inputs)
        device = inputs[0].device
        pool = self.pool or Pool()
        before = torch.cuda.current_stream(device)
        try:
            self._record(inputs, pool)
        except Exception as error:  # a model may do anything on the host; the plain call still works
            self._graph = None
            self.how = f"plain: {first_line(error)}"
            # Its frames hold the graph and every tensor of the call so far.
            traceback.clear_frames(error.__traceback__)
            self.error = error.with_traceback(None)
            torch.cuda.set_stream(before)  # a recording that cannot end does not leave its own
            pool.abandon(device)
            torch.cuda.synchronize(device)
            gc.collect()
            torch.cuda.empty_cache()
        return self(*inputs)

    def __call__(self, *inputs: Tensor) -> Tensors:
        if self._graph is None:
            return self.function(*inputs)
        for buffer, given in zip(self._inputs, inputs, strict=True):
            if buffer is not given:
                buffer.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._outputs

    def _record(self, inputs: Tensors, pool: Pool) -> None:
        device = inputs[0].device
        constants = Constants(device)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.device(device), torch.cuda.stream(side):
            for _ in range(WARM_UP):
                with constants.note():
                    self.function(*inputs)
        torch.cuda.current_stream(device).wait_stream(side)
        torch.cuda.synchronize(device)
        with unchecked(), torch.cuda.device(device):
            graph = torch.cuda.CUDAGraph()
            # Other threads (data loaders, a pinning thread) may use the device meanwhile.
            mode = "thread_local"
            recording = torch.cuda.graph(graph, pool=pool.handle, stream=side, capture_error_mode=mode)
            with recording, constants.replay():
                outputs = self.function(*inputs)
        self._constants = constants  # the graph reads them
        self._graph, self._inputs, self._outputs = graph, inputs, outputs
        self.how = "graph"


@contextmanager
def unchecked() -> Iterator[None]:
    """Inside, transformers asks the device nothing about counts."""
    before = os.environ.get(UNCHECKED)
    os.environ[UNCHECKED] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[UNCHECKED]
        else:
            os.environ[UNCHECKED] = before
