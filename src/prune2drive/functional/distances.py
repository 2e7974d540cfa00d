"""Distances between the tokens of a view: all of them as a matrix, or one row at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import products

MATRIX_BYTES = 1 << 28
"""Most memory one float32 (views, N, N) distance matrix may take: 256 MiB.

More views are done in turn; a single view with more than 8192 tokens computes each picked row anew.
That rule looks at N alone, never at k, so the picks for k are exactly the first k of those for K > k.
Measured on 2 CPU cores, 6 x 729 tokens x 4096 channels, float32: the blocked Gram product takes 84 ms, one
row per pick (memory-bound) 1.7 ms, so rows on demand win only below some 50 picks (7% retention); for
6 x 256 tokens 12 ms against 0.45 ms, 27 picks (10%); and start="isolated" needs every row anyway. The same
rule serves CUDA: there the product is a fraction of a millisecond of arithmetic, and a pick that streams all
features from memory costs more than one that reads a row of the matrix.
"""
SNAP = 2.0**-20
"""Distances below this share of the vectors' scale are rounding of a float32 product and count as 0 (8 ulp of
1 for cosine), so copies of a token tie exactly and the lowest index wins."""


def measure(features: Tensor, metric: str, *, isolated: bool) -> Matrix | Rows:
    """Distances of float32 features (V, N, D), as a matrix where it fits and pays.

    ``isolated``: the nearest neighbour of every token will be asked for, which takes every row.
    """
    fits = 4 * features.shape[1] ** 2 <= MATRIX_BYTES
    if metric == "l1":
        squares = products.squares(features)
        # Each entry costs the same alone or in a matrix, so only the isolated start wants all of them.
        if fits and isolated:
            return Matrix(_pairs(features, squares, metric, slice(None)), squares)
        return Rows(features, squares, metric)
    if not fits:
        return Rows(features, products.squares(features), metric)
    gram = products.gram(features)
    # The squared lengths lie on the diagonal: no pass over the features, and a copy's cosine is exactly
    # that of the token with itself.
    squares = gram.diagonal(dim1=1, dim2=2).clone()
    return Matrix(_distance_(gram, squares, squares, metric), squares)


def measure_as_released(features: Tensor) -> Matrix:
    """``1 - X X^T`` of unit rows, view by view in the features' own dtype, as the released code does."""
    # Lengths only tell whether all is finite: the published rule rescales nothing.
    wide = torch.promote_types(features.dtype, torch.float32)
    lengths = torch.linalg.vector_norm(features, dim=-1, dtype=wide)
    distances = []
    with products.no_autocast(features.device):
        for view in features:
            unit = F.normalize(view, p=2.0, dim=-1)
            distances.append(1 - unit @ unit.T)
    return Matrix(torch.stack(distances), lengths)


class Matrix:
    """All distances of each view, (V, N, N), in memory; ``squares`` (V, N) squared lengths of the tokens."""

    def __init__(self, distance: Tensor, squares: Tensor) -> None:
        self.distance, self.squares, self.dtype = distance, squares, distance.dtype
        self.views = torch.arange(len(distance), device=distance.device)

    def nearest(self, mask: Tensor | None) -> Tensor:
        """Distance of each token to the nearest other candidate, (V, N)."""
        self.distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
        if mask is not None:
            self.distance.masked_fill_(~mask[:, None, :], torch.inf)
        return self.distance.amin(-1)

    def close(self) -> None:
        """From here on a token's distance to itself reads -inf."""
        self.distance.diagonal(dim1=1, dim2=2).fill_(-torch.inf)

    def row(self, pick: Tensor) -> Tensor:
        """Distances of one token of each view, (V,), to all, (V, N)."""
        return self.distance[self.views, pick]


class Rows:
    """Distances of one token at a time, (V, N), computed when asked for. As `Matrix`."""

    def __init__(self, features: Tensor, squares: Tensor, metric: str) -> None:
        self.features, self.squares, self.metric, self.dtype = features, squares, metric, torch.float32
        self.views = torch.arange(len(features), device=features.device)

    def nearest(self, mask: Tensor | None) -> Tensor:
        nearest = []
        n = self.features.shape[1]
        for low in range(0, n, products.GRAM_BLOCK):
            part = slice(low, low + products.GRAM_BLOCK)
            block = _pairs(self.features, self.squares, self.metric, part)
            # The offset diagonal of the block is each token's distance to itself.
            block.diagonal(offset=low, dim1=1, dim2=2).fill_(torch.inf)
            if mask is not None:
                block.masked_fill_(~mask[:, None, :], torch.inf)
            nearest.append(block.amin(-1))
        return torch.cat(nearest, -1)

    def close(self) -> None:
        pass

    def row(self, pick: Tensor) -> Tensor:
        one, square = self.features[self.views, pick][:, None], self.squares[self.views, pick][:, None]
        if self.metric == "l1":
            row = torch.cdist(one, self.features, p=1.0)
        else:
            row = _distance_(products.dots(one, self.features), square, self.squares, self.metric)
        return row[:, 0].scatter(1, pick[:, None], -torch.inf)


def rescaled(features: Tensor, mask: Tensor | None, *, per_token: bool) -> Tensor:
    """Bring features near 1 by powers of two, which rounds nothing: per token, or one factor per view."""
    wide = features.double()
    if mask is not None:
        wide = wide.masked_fill(~mask[..., None], 0.0)
    largest = wide.abs().amax(-1, keepdim=True)
    if not per_token:
        largest = largest.amax(1, keepdim=True)
    exponent = torch.frexp(largest).exponent.clamp(min=-1000)
    return (wide * torch.exp2(-exponent.double())).float()


def _pairs(features: Tensor, squares: Tensor, metric: str, part: slice) -> Tensor:
    """Distances of the tokens in ``part`` to all, (V, part, N)."""
    if metric == "l1":
        return torch.cdist(features[:, part].contiguous(), features, p=1.0)
    return _distance_(products.dots(features[:, part], features), squares[:, part], squares, metric)


def _distance_(dots: Tensor, left: Tensor, right: Tensor, metric: str) -> Tensor:
    """Turn inner products (V, n, m) into distances in place, given squared lengths (V, n) and (V, m).

    Every step is symmetric in the two tokens to the last bit. "l2" yields squared distances: the order of
    distances is all that matters.
    """
    if metric == "l2":
        scale = left[:, :, None] + right[:, None, :]
        squared = dots.mul_(-2.0).add_(scale)
        return squared.masked_fill_(squared < scale * SNAP, 0.0)
    unit_left = torch.where(left > 0, left.rsqrt(), 0.0)
    unit_right = torch.where(right > 0, right.rsqrt(), 0.0)
    cosine = dots.mul_(unit_left[:, :, None] * unit_right[:, None, :])
    return torch.threshold_(cosine.neg_().add_(1.0), SNAP, 0.0)
