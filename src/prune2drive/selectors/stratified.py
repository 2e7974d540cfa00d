"""Stratified: even cover of the picture, the control for methods that spread their tokens.

Idea: cut the picture into k patches of equal area and keep one token of each. It looks at places
only, never at features. A method that claims to win by covering the scene has to beat this one;
what it gains over it is what its features tell.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..allocators.total import largest_remainder
from ..errors import PruneError
from ..tokens import Selection, View, VisualTokens
from .base import Selector

Array = np.ndarray


@dataclass(frozen=True)
class Stratified(Selector):
    """Stratified: one token of each of k patches of the picture of nearly equal area.

    An even cover of the picture looks at places only, never at features. What a method that claims to cover
    the scene gains over it is what its features tell. Source: none, the control of methods that spread their
    tokens.

    Formula: tiles, thumbnail and frames of a view share k by their lengths (largest remainder); each is then
    cut in two along its longer side, again and again, until there are k strata, and each stratum keeps the
    token nearest to its middle.

    Args:
        seed: None keeps the token nearest to the middle of each stratum; a number draws one at random, fixed
            by the number and the camera's name.

    Needs: where the tokens are in the picture; no features.

    Costs: ``O(N log k)`` per view on the host, remembered for views of the same shape.

    Decisions:

    - Cuts are along token rows and columns, so that it works for any geometry, also for cameras cut out of a
      mosaic with ragged borders.
    - Of tokens equally near to the middle the first one stays.

    Raises:
        PruneError: a negative seed.
    """

    name: ClassVar[str] = "stratified"
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.seed is not None and self.seed < 0:
            raise PruneError(f"stratified: seed {self.seed} is negative; seeds count from 0")

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        rows = [self._pick(view, k) for view, k in zip(tokens.views, counts, strict=True)]
        indices = pad_sequence(rows, batch_first=True, padding_value=-1)
        return Selection(indices.to(tokens.features.device, non_blocking=True), list(counts))

    def _pick(self, view: View, k: int) -> Tensor:
        entropy = None if self.seed is None else (self.seed, zlib.crc32(view.name.encode()))
        # The bytes are the geometry: equal views of other samples and calls find the same entry.
        return _picks(view.boxes.numpy().tobytes(), view.part.numpy().tobytes(), k, entropy)


@lru_cache(maxsize=512)
def _picks(boxes: bytes, parts: bytes, k: int, entropy: tuple[int, int] | None) -> Tensor:
    """Return k distinct tokens of a view, ascending: int64 ``(k,)``."""
    corners = np.frombuffer(boxes, np.float32).reshape(-1, 4).astype(np.float64)
    centres = (corners[:, :2] + corners[:, 2:]) / 2
    part = np.frombuffer(parts, np.int64)
    lengths = np.bincount(part)
    generator = None if entropy is None else np.random.default_rng(entropy)
    picks = []
    quotas = [Fraction(k * int(n), len(part)) for n in lengths]
    for which, share in enumerate(largest_remainder(quotas)):
        members = np.flatnonzero(part == which)
        # Steps of the token grid instead of shares of the picture, in which pixels are not square.
        steps = np.stack([_ranks(centres[members, axis]) for axis in (0, 1)], 1)
        for stratum in _strata(steps, np.arange(len(members)), share):
            if generator is not None:
                chosen = int(generator.integers(len(stratum)))
            else:
                off = steps[stratum] - steps[stratum].mean(0)
                # Rounded, so that tokens equally near the middle tie, and the first of them wins.
                chosen = int(np.argmin(np.round((off**2).sum(1), 9)))
            picks.append(int(members[stratum[chosen]]))
    return torch.tensor(sorted(picks), dtype=torch.int64)


def _ranks(values: Array) -> Array:
    """Replace coordinates by their rank among the distinct ones; rounding joins equal float32 ones."""
    return np.unique(np.round(values, 5), return_inverse=True)[1].astype(np.float64).reshape(-1)


def _strata(steps: Array, members: Array, k: int) -> Iterator[Array]:
    """Cut ``members`` into k groups of nearly equal size, by bisection along the longer side."""
    if k == 0:
        return
    if k == 1:
        yield np.sort(members)
        return
    own = steps[members]
    axis = int(np.argmax(np.ptp(own, axis=0)))
    order = members[np.lexsort((own[:, 1 - axis], own[:, axis]))]
    first = k // 2
    # Round-half-up of the proportional cut: leaves each side at least one token per stratum.
    cut = (2 * len(members) * first + k) // (2 * k)
    yield from _strata(steps, order[:cut], first)
    yield from _strata(steps, order[cut:], k - first)
