"""Density-peak clustering on nearest neighbours: centres are dense, and far from what is denser."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .distances import SNAP
from .products import gram


@dataclass(frozen=True, eq=False)
class Clusters:
    """A partition of n points.

    ``centres`` int64 ``(C,)`` ascending; ``owner`` int64 ``(n,)`` the cluster, 0 to C - 1, of each point;
    ``log_density`` float32 ``(n,)``.
    """

    centres: Tensor
    owner: Tensor
    log_density: Tensor

    def members(self) -> Tensor:
        """Bool ``(C, n)``: True where a point belongs to a cluster. No cluster is empty."""
        return self.owner == torch.arange(len(self.centres), device=self.owner.device)[:, None]

    def densest(self) -> Tensor:
        """The point of highest density in each cluster, ties to the lowest index: int64 ``(C,)``."""
        inside = self.log_density.expand(len(self.centres), -1).masked_fill(~self.members(), -torch.inf)
        return inside.argmax(-1)


def density_peaks(features: Tensor, clusters: int, neighbours: int | None = None) -> Clusters:
    """Split points into ``clusters`` groups around peaks of density.

    ``d_ij = |x_i - x_j| / sqrt(D)``; ``density_i = exp(-mean of d_ij^2 over the nearest points)``, of which
    the point itself, at distance 0, is the first; ``delta_i`` = distance to the nearest denser point, for the
    densest of all to the farthest point. Centres: the highest ``density_i * delta_i``. Every other point
    joins its nearest centre. Ties go to the lowest index; of two points of equal density the one of lower
    index is the denser.

    Densities are compared as logarithms: those of distant points would round to 0, all alike.

    Args:
        features: ``(n, D)``, any float dtype, finite; computed in float32.
        clusters: from 1 to n.
        neighbours: how many nearest points make the density, from 1, the point itself counted; None for
            as many as ``clusters``. With 1 all densities are equal. At most n are there.
    """
    n, channels = features.shape
    # Without their mean, points lie as near the origin as they can: the product rounds least.
    points = features.float()
    points = points - points.mean(0)
    products = gram(points[None])[0]
    squares = products.diagonal().clone()
    scale = squares[:, None] + squares
    squared = scale - 2 * products
    squared = squared.masked_fill(squared < SNAP * scale, 0.0) / channels

    asked = clusters if neighbours is None else neighbours
    log_density = -squared.topk(min(asked, n), largest=False).values.mean(-1)

    place = torch.arange(n, device=features.device)
    same = log_density[None, :] == log_density[:, None]
    denser = (log_density[None, :] > log_density[:, None]) | (same & (place[None, :] < place[:, None]))
    delta = squared.masked_fill(~denser, torch.inf).amin(-1)
    delta = torch.where(denser.any(-1), delta, squared.amax(-1))
    score = log_density + 0.5 * delta.log()
    centres = score.sort(descending=True, stable=True).indices[:clusters].sort().values

    owner = squared[:, centres].argmin(-1)
    # A copy of another centre would join that one.
    owner = owner.index_copy(0, centres, torch.arange(clusters, device=features.device))
    return Clusters(centres, owner, log_density)
