"""ST-Prune: diversity that knows time and the ring of cameras."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import PruneError
from ..functional import picks, products
from ..functional.distances import measure
from ..functional.maxmin import max_min
from ..layout import THUMBNAIL
from ..tokens import Selection, View, VisualTokens
from .base import Selector


@dataclass(frozen=True)
class STPrune(Selector):
    """ST-Prune: max-min diversity, weighed by motion and recency, less what neighbouring cameras show.

    Idea: of several frames, what moves and what is recent matters more; and what the camera to the left or
    the right also shows is redundant. Source: ST-Prune, arXiv 2604.19145, whose formulas and code are not
    public: this follows published summaries of it, and where they say nothing, guesses.

    Formula: ``d(i, j) = 1 - cos(x_i, x_j)``. Stage 1, for views of several frames, keeps ``sqrt(n k)`` of n
    tokens: ``s_t = argmax_i w_i min_u d(i, s_u)`` with ``w_i = 1 - lambda_time + lambda_time ((1 - recency)
    v_i + recency f_i)``; ``v_i`` the variance of the token's unit vector over the frames at its place in the
    picture, min-max normalised in the view; ``f_i`` the place of its frame in time, 0 the oldest and 1 the
    newest. Stage 2 keeps k of those: ``s_t = argmax_i min_u d(i, s_u) - lambda_ring p_i`` with ``p_i = max(0,
    max_j cos(x_i, y_j))`` over the tokens ``y_j`` that stage 1 left to the cameras at the left and at the
    right. Ties to the lowest index.

    Args:
        lambda_time: how much motion and recency weigh, 0 to 1; 0.6, one of the two published values of
            lambda.
        lambda_ring: how much likeness to the neighbours costs, from 0; 0.8, the other one.
        recency: the share of recency in the temporal weight, the rest is motion; 0.5, a guess.

    Needs: the projected features, the rig (``rig=`` of `prune`), and the frame of each token.

    Costs: ``N^2 D`` per view for the product and ``2 N^2 D`` for those with the neighbours, which dominate;
    then ``O(k N)`` for the picks.

    Decisions:
        - Published: temporal variance per patch and recency are soft weights inside a max-min diversity
          selection; cosine likeness to tokens of the ring-adjacent cameras is penalised; each view keeps its
          own selection; the temporal stage comes first; budgets multiply (25% = 50% x 50%, 10% ~ 32% x 32%);
          lambda = 0.6 / 0.8. All else below is guessed.
        - Which lambda is which: 0.6 for time and 0.8 for the ring. They may as well belong to two budgets.
        - Soft weight: a factor on the distance, between ``1 - lambda_time`` and 1. Penalty: a subtraction.
        - Variance is that of unit vectors (the diversity is one of angles), over tokens of the same
          rectangle; a place seen in one frame only has none. Normalised in the view; a view where nothing
          moves has none.
        - Motion and recency are mixed by ``recency``; recency is linear in the number of the frame, and the
          frame given last is the newest.
        - Bilateral: both neighbours, and each of a pair is penalised for the other. The penalty is the
          largest cosine to any token of either neighbour, negative ones count as 0; a mean would halve it for
          what overlaps on one side only.
        - Neighbours count with what stage 1 left of them, not with what they keep in the end, so that views
          choose at the same time. Something that two cameras show may therefore leave both.
        - Both stages start at the token with the largest weighed (penalised) distance to its nearest
          neighbour, the start of DivPrune.
        - The two stages keep the same share. Views of one frame skip stage 1 and keep ``k`` of ``n`` in stage
          2.
        - A neighbour that the sample lacks costs nothing, nor does the next camera beyond take its place; a
          thumbnail of its own has no neighbours.
        - Selections of fewer tokens are no prefix of larger ones, as stage 1 depends on k.

    Raises:
        PruneError: bad values; from ``select``, no rig, a view that the rig does not know, a count that does
            not fit its row.
    """

    name: ClassVar[str] = "st-prune"

    lambda_time: float = 0.6
    lambda_ring: float = 0.8
    recency: float = 0.5

    def __post_init__(self) -> None:
        for name, most in (("lambda_time", 1.0), ("lambda_ring", math.inf), ("recency", 1.0)):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not 0 <= value <= most:
                allowed = "from 0" if most == math.inf else "from 0 to 1"
                raise PruneError(f"ST-Prune: {name} {value!r} is out of range; pass a number {allowed}")

    def select(self, tokens: VisualTokens, counts: Sequence[int]) -> Selection:
        counts = picks.checked(self.name, counts, tokens.lengths)
        pairs = _adjacent(tokens)
        unit = F.normalize(tokens.features.float(), dim=-1)
        there = tokens.mask
        if there is None:
            there = torch.ones_like(unit[..., 0], dtype=torch.bool)
        there = self._in_time(unit, tokens.views, counts, there)
        penalty = self.lambda_ring * _likeness(unit, pairs, there)

        def choose(part: slice) -> Tensor:
            rows = measure(unit[part], "cosine", isolated=True)
            return max_min(rows, counts[part], penalty=penalty[part], mask=there[part])

        n = unit.shape[1]
        return Selection(picks.in_blocks(choose, counts, 4 * n * n), counts)

    def _in_time(self, unit: Tensor, views: Sequence[View], counts: Sequence[int], there: Tensor) -> Tensor:
        """What the temporal stage leaves: bool ``(V, N)``; all of a view of one frame."""
        there = there.clone()
        for row, (view, count) in enumerate(zip(views, counts, strict=True)):
            n = len(view)
            between = min(n, max(count, math.floor(math.sqrt(n * count) + 0.5)))
            if between == n or not bool((view.frame != view.frame[0]).any()):
                continue
            own = unit[row, :n]
            order = max_min(
                measure(own[None], "cosine", isolated=True), between, weight=self._weight(own, view)[None]
            )
            there[row] = torch.zeros_like(there[row]).scatter(0, order[0], True)
        return there

    def _weight(self, unit: Tensor, view: View) -> Tensor:
        """Temporal weight of each token of one view, ``(n,)``."""
        table, place, recent = (
            part.to(unit.device, non_blocking=True)
            for part in _through_time(view.boxes.numpy().tobytes(), view.frame.numpy().tobytes())
        )
        seen = (table >= 0).float()[..., None]
        tracks = unit[table.clamp(min=0)] * seen
        frames = seen.sum(1, keepdim=True)
        mean = tracks.sum(1, keepdim=True) / frames
        variance = (((tracks - mean) * seen).square().sum(-1).sum(1) / frames[:, 0, 0])[place]
        spread = variance.amax() - variance.amin()
        # Where nothing moves the spread is rounding, or nothing at all.
        moves = spread > 1e-6
        motion = torch.where(moves, (variance - variance.amin()) / torch.where(moves, spread, 1.0), 0.0)
        mixed = (1 - self.recency) * motion + self.recency * recent
        return 1 - self.lambda_time + self.lambda_time * mixed


def _adjacent(tokens: VisualTokens) -> list[tuple[int, int]]:
    """Pairs of rows, each once, that are views of neighbouring cameras in the same sample."""
    rig = tokens.rig
    if rig is None:
        raise PruneError(
            "ST-Prune needs to know which cameras are neighbours; pass rig=..., such as rig='nuscenes'"
        )
    rows: dict[tuple[int, str], list[int]] = {}
    for row, (view, sample) in enumerate(zip(tokens.views, tokens.samples, strict=True)):
        rows.setdefault((sample, view.name), []).append(row)
    pairs = set()
    for (sample, name), mine in rows.items():
        # A lone camera is its own neighbour, to the rig; here it has none.
        nearby = set(rig.neighbours(name)) - {name} if name != THUMBNAIL or name in rig else set()
        for other in nearby:
            pairs |= {(min(a, b), max(a, b)) for a in mine for b in rows.get((sample, other), [])}
    return sorted(pairs)


def _likeness(unit: Tensor, pairs: Sequence[tuple[int, int]], there: Tensor) -> Tensor:
    """Largest cosine of each token to any of its neighbours' tokens, at least 0: ``(V, N)``."""
    found = torch.zeros_like(unit[..., 0])
    for a, b in pairs:
        cosine = products.dots(unit[a : a + 1], unit[b : b + 1])[0]
        found[a] = torch.maximum(found[a], torch.where(there[b], cosine, 0.0).amax(1))
        found[b] = torch.maximum(found[b], torch.where(there[a][:, None], cosine, 0.0).amax(0))
    return found


@lru_cache(maxsize=256)
def _through_time(boxes: bytes, frame: bytes) -> tuple[Tensor, Tensor, Tensor]:
    """Places of a picture through its frames; the bytes are the geometry of a view.

    Returns:
        ``table`` int64 ``(places, frames)``, the token at a place in a frame, -1 where none; ``place`` int64
        ``(n,)`` of each token; ``recent`` float32 ``(n,)``, 0 the oldest frame and 1 the newest.
    """
    # Rounding joins equal float32 corners.
    corners = np.round(np.frombuffer(boxes, np.float32).reshape(-1, 4).astype(np.float64), 5)
    number, at = np.unique(np.frombuffer(frame, np.int64), return_inverse=True)
    at = at.reshape(-1)
    places: dict[tuple[object, ...], int] = {}
    seen: dict[tuple[object, ...], int] = {}
    place = []
    for corner, when in zip(map(tuple, corners), at.tolist(), strict=True):
        # A thumbnail may show the same rectangle once more in the same frame.
        again = seen[corner, when] = seen.get((corner, when), -1) + 1
        place.append(places.setdefault((corner, again), len(places)))
    table = torch.full((len(places), len(number)), -1, dtype=torch.int64)
    table[torch.tensor(place), torch.from_numpy(at)] = torch.arange(len(place))
    recent = torch.from_numpy((number[at] - number[0]) / max(1, number[-1] - number[0])).float()
    return table, torch.tensor(place), recent
