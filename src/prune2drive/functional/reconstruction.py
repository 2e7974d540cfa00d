"""How badly a few basis tokens approximate each of the others, and a choice made by that (ApET)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import PruneError
from . import ranking
from .fps import fps
from .merging import nearest


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What `reconstruct` found; every field is on the features' device.

    ``kept`` int64 ``(V, K)``: the tokens that stay, ascending, padded with -1.
    ``owner`` int64 ``(V, N)``: the slot in ``kept`` that a dropped token is to be merged into; -1 at kept
    tokens, at padding, and where a row has no token to merge into.
    ``basis`` int64 ``(V, B)``: the basis tokens in pick order, padded with -1.
    ``basis_slots`` bool ``(V, K)``: the slots that basis tokens hold.
    ``errors`` float32 ``(V, N)``: distance of every token from its approximation, 0 at padding.
    """

    kept: Tensor
    owner: Tensor
    basis: Tensor
    basis_slots: Tensor
    errors: Tensor


def reconstruct(
    features: Tensor,
    counts: Sequence[int],
    lengths: Sequence[int],
    *,
    basis: int = 10,
    start: str | int = "isolated",
    ridge: float = 1e-5,
) -> Reconstruction:
    """Keep the tokens that a linear basis of a few tokens explains worst, and the basis itself.

    Basis: the first ``b = min(basis, length)`` tokens of farthest point sampling by squared L2. Of the
    ``k = counts[v]`` slots the basis takes ``min(b, k)``; the others go to the largest errors outside the
    basis (ties to the lowest index). A dropped token is owned by the most similar kept token, by cosine,
    that is not of the basis; pass ``kept`` and ``owner`` to `functional.merging.merge`.

    Args:
        features: ``(V, N, D)``, any float dtype, finite.
        counts: tokens to keep of each row, 0 up to its length.
        lengths: real tokens of each row; what stands behind them is ignored.
        basis: number of basis tokens, at least 1.
        start: first basis token: "isolated", "center" or an index, as in `fps`.
        ridge: what is added to the diagonal of the basis' Gram matrix.

    Cost per row: ``N^2 D`` for the isolated start (``b N D`` for another), ``b N D`` for the errors,
    ``N k D`` for the owners. Nothing waits for the device.
    """
    counts, lengths = list(counts), list(lengths)
    if isinstance(start, int):
        for row, length in enumerate(lengths):
            if 0 < length <= start:
                raise PruneError(f"row {row}: start={start} is out of range for {length} tokens")
    device, n = features.device, features.shape[1]
    sizes = [min(basis, length) for length in lengths]
    mask = ranking.slots(lengths, device, n)
    # Rows without tokens still need a pick to be batched with the others; it is thrown away.
    picks = fps(features, [max(size, 1) for size in sizes], start=start, metric="l2", mask=mask, check=False)
    picks = picks[:, : max(sizes, default=0)].masked_fill(~ranking.slots(sizes, device), -1)

    errors = approximation_errors(features, picks, ridge).masked_fill(~mask, 0.0)
    taken = [min(size, count) for size, count in zip(sizes, counts, strict=True)]
    first = picks[:, : max(taken, default=0)].masked_fill(~ranking.slots(taken, device), -1)
    in_basis, held = ranking.members(picks, n), ranking.members(first, n)
    wanted = errors.masked_fill(in_basis, -1.0).masked_fill(held, torch.inf)
    kept = ranking.ascending(ranking.top(wanted, counts, mask))
    basis_slots = (kept >= 0) & held.gather(1, kept.clamp(min=0))
    owner = nearest(features, kept, ~basis_slots)
    owner = owner.masked_fill(ranking.members(kept, n) | ~mask, -1)
    return Reconstruction(kept, owner, picks, basis_slots, errors)


def approximation_errors(features: Tensor, basis: Tensor, ridge: float = 1e-5) -> Tensor:
    """``|x_i - S^T (S S^T + ridge I)^-1 S x_i|`` with the basis tokens as rows of S: float32 ``(V, N)``.

    Measured in float64: in float32 the ridge is less than the rounding of a Gram matrix whose entries pass a
    hundred, and near-parallel basis tokens would make it singular.

    Args:
        features: ``(V, N, D)``, any float dtype.
        basis: int64 ``(V, B)`` tokens, padded with -1.
    """
    if not basis.shape[1]:
        return torch.linalg.vector_norm(features, dim=-1, dtype=torch.float32)
    wide = features.double()
    rows = wide.gather(1, basis.clamp(min=0)[..., None].expand(-1, -1, wide.shape[-1]))
    rows = rows.masked_fill((basis < 0)[..., None], 0.0)
    gram, products = rows @ rows.mT, rows @ wide.mT
    regular = gram + ridge * torch.eye(basis.shape[1], dtype=gram.dtype, device=gram.device)
    # solve_ex does not ask the device whether it went well; a Gram matrix with a ridge is never singular.
    weights = torch.linalg.solve_ex(regular, products).result
    # |x|^2 - 2 w.Sx + w.SS^T w: the approximations themselves, a copy of all features, are never formed.
    squared = wide.square().sum(-1) + (weights * (gram @ weights - 2 * products)).sum(1)
    return squared.clamp_(min=0.0).sqrt_().float()
