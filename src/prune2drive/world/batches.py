"""Training batches: fresh scenes, rendered and labelled, in worker processes.

Batch ``n`` depends on its number alone, so a resumed run goes on with exactly the scenes it would
have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..rig import NUSCENES
from .generate import scenes
from .labels import patch_labels
from .render import render


class SeeBatches(Dataset[dict[str, Tensor]]):
    """Batches of the first stage: uint8 pictures and patch labels."""

    def __init__(self, size: int, start: int, stop: int) -> None:
        self.size, self.start, self.stop = size, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, at: int) -> dict[str, Tensor]:
        number = self.start + at
        drawn = list(scenes("train", self.size, number * self.size))
        frames = render(drawn, NUSCENES)
        labels, centres = patch_labels(drawn, frames)
        return {"images": frames.images, "labels": labels, "centres": centres}


def load(batches: Any, workers: int) -> Iterator[dict[str, Tensor]]:
    """Yield the batches in order, made by ``workers`` processes (0: in this one)."""
    loader = DataLoader(
        batches,
        batch_size=None,
        shuffle=False,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_one_thread,
    )
    yield from loader


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
