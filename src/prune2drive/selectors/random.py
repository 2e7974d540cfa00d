"""Random: the control every method has to beat.

Idea: a fixed shuffle of each view, cut after k tokens. Neighbouring visual tokens say much the same,
so a random tenth of them keeps most of what a picture tells. A method that does not beat it has
learnt nothing about the picture, whatever its table says.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import PruneError
from ..tokens import Selection, VisualTokens
from .base import Selector


@dataclass(frozen=True)
class Random(Selector):
    """Random: the first k tokens of a shuffle fixed by the seed and the camera's name.

    Neighbouring visual tokens say much the same, so a random tenth of them keeps most of what a picture
    tells. A method that does not beat it has learnt nothing about the picture. Source: none, the control that
    every method has to beat.

    Formula: ``s_t = shuffle(seed, camera)[t]``.

    Args:
        seed: which shuffle, from 0. Runs that report random selection should vary it.

    Needs: nothing, not even the features.

    Costs: a shuffle of N numbers per camera, remembered.

    Decisions:

    - The same camera is shuffled alike wherever it stands in a batch.
    - Fewer tokens are a prefix of more.
    - Drawn on the host: an accelerator's generator would differ between devices.

    Raises:
        PruneError: a negative seed.
    """

    name: ClassVar[str] = "random"
    nested: ClassVar[bool] = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise PruneError(f"random: seed {self.seed} is negative; seeds count from 0")

    def seed_of(self, sample: int) -> int:
        """The seed of a sample of the batch, here the same for all."""
        return self.seed

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        rows = [
            _shuffle(self.seed_of(sample), view.name, len(view))[:k]
            for view, sample, k in zip(tokens.views, tokens.samples, counts, strict=True)
        ]
        indices = pad_sequence(rows, batch_first=True, padding_value=-1)
        return Selection(indices.to(tokens.features.device, non_blocking=True), list(counts))


@lru_cache(maxsize=1024)
def _shuffle(seed: int, name: str, n: int) -> Tensor:
    # Drawn on the host: an accelerator's generator would differ between devices.
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return torch.from_numpy(generator.permutation(n))
