"""Distance-bounded density peak clustering (PACT): dense tokens far from denser ones become centres."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import distances
from .products import dots, unit

STEPS = 16
"""Halvings of [0, 2] in the search for a cut-off: the last interval is 3e-5 wide, finer than it matters."""
_ROUNDS = 4
"""Rounds of `centres` between two questions to the device. A round after the last changes nothing."""


def cosine_distances(left: Tensor, right: Tensor) -> Tensor:
    """``1 - cos`` of the rows of ``(n, C)`` and ``(m, C)``: float32 ``(n, m)``, 0 between copies.

    A zero vector has distance 1 from everything.
    """
    cosine = dots(unit(left)[None], unit(right)[None])[0]
    return torch.threshold_(cosine.neg_().add_(1.0), distances.SNAP, 0.0)


def density(distance: Tensor) -> Tensor:
    """``rho_i = sum_j exp(-(d_ij / 2)^2)`` of distances ``(n, n)``: float32 ``(n,)``."""
    return distance.div(2).square_().neg_().exp_().sum(-1)


def centres(distance: Tensor, cutoff: float) -> Tensor:
    """Which tokens become centres: bool ``(n,)``.

    A token becomes one if every denser token within ``cutoff`` has been assigned to another centre; a token
    within ``cutoff`` of a centre is assigned. This is the pass in order of density, done for all tokens at
    once and repeated until every token is one or the other: rounds find the same centres as the pass.

    Args:
        distance: ``(n, n)``, rows and columns in descending order of density.
    """
    # Column j < row i: j is denser than i. Only these entries are read, so rounding that makes a matrix not
    # quite symmetric cannot make two tokens disagree on whether they are near.
    near = (distance <= cutoff).tril_(-1)
    undecided = torch.ones(len(distance), dtype=torch.bool, device=distance.device)
    found = torch.zeros_like(undecided)
    while bool(undecided.any()):
        for _ in range(_ROUNDS):
            new = undecided & ~(near & undecided).any(-1)
            found = found | new
            undecided = undecided & ~new & ~(near & new).any(-1)
    return found


def at_most(distance: Tensor, k: int, steps: int = STEPS) -> tuple[Tensor, float]:
    """The cut-off with as many centres as possible, but not more than ``k``: centres and cut-off.

    Bisection. The number of centres all but always falls as the cut-off grows; should it once not, the best
    cut-off seen counts.

    Args:
        distance: as in `centres`, at most 2.
        k: at least 1.
    """
    if k >= len(distance):
        return torch.ones(len(distance), dtype=torch.bool, device=distance.device), 0.0
    host = distance.mT.contiguous().numpy() if distance.device.type == "cpu" else None
    low, high = 0.0, 2.0
    best, most, cutoff = centres(distance, high), 1, high
    for _ in range(steps):
        if most == k:
            break
        middle = (low + high) / 2
        found = centres(distance, middle) if host is None else _in_turn(host, middle, k)
        number = k + 1 if found is None else int(found.sum())
        if number > k:
            low = middle
            continue
        high = middle
        if found is not None and number > most:
            best, most, cutoff = found, number, middle
    return best, cutoff


def _in_turn(distance: np.ndarray, cutoff: float, k: int) -> Tensor | None:
    """`centres` as the pass in order of density itself: bool ``(n,)``, or None beyond ``k`` of them.

    On a host that is k short rows instead of rounds over the whole matrix. ``distance`` is transposed, so
    that what `centres` reads of a column lies in a row.
    """
    free = np.ones(len(distance), dtype=bool)
    found = np.zeros(len(distance), dtype=bool)
    limit = np.float32(cutoff)
    for number in range(k + 1):
        at = int(free.argmax())
        if not free[at]:
            return torch.from_numpy(found)
        if number == k:
            return None
        found[at], free[at] = True, False
        free[at + 1 :] &= distance[at, at + 1 :] > limit
    return None
