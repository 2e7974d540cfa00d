"""Host integers as device tensors, also while a CUDA graph is recorded, where nothing may be uploaded."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

MOST_KEPT = 1024
"""Different lists of counts whose tensors are kept; recordings may read them, so none is ever dropped."""

_kept: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}


def capturing(device: torch.device) -> bool:
    """Whether work queued on a device now goes into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def on_device(counts: Sequence[int], device: torch.device) -> Tensor:
    """int64 ``(V,)`` on ``device``, only to be read. Equal counts, or a list asked for before: no upload."""
    if len(set(counts)) <= 1:
        return torch.full((len(counts),), counts[0] if counts else 0, dtype=torch.int64, device=device)
    if torch.compiler.is_compiling() or device.type == "cpu":
        return torch.tensor(counts).to(device)
    key = tuple(counts), device
    if key not in _kept:
        if capturing(device) or len(_kept) >= MOST_KEPT:
            return _filled(counts, device)
        # copy_ waits for the upload, so that other streams may read at once; it happens once per list.
        new = torch.empty(len(counts), dtype=torch.int64, device=device).copy_(torch.tensor(counts))
        if type(new) is not Tensor:  # a stand-in without values
            return new
        _kept[key] = new
    return _kept[key]


def _filled(counts: Sequence[int], device: torch.device) -> Tensor:
    """The same without an upload: one fill per run of equal counts."""
    out = torch.empty(len(counts), dtype=torch.int64, device=device)
    low = 0
    for count, run in groupby(counts):
        high = low + len(list(run))
        out[low:high].fill_(count)
        low = high
    return out
