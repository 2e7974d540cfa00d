"""Farthest point sampling of tokens: textbook rule, batched, without host synchronisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import distances
from .checks import COMPATS, METRICS, STARTS, Call, inspect, verify
from .products import dots

__all__ = ["COMPATS", "METRICS", "STARTS", "fps", "released_count"]

Measured = distances.Matrix | distances.Rows


def released_count(n: int, rate: float) -> int:
    """Tokens the released code keeps of a view of ``n``: ``int(n * rate)``, truncated (729 * 0.095 -> 69)."""
    return int(n * rate)


@torch.no_grad()
def fps(
    features: Tensor,
    k: int | Sequence[int] | Tensor,
    *,
    start: str | int | Tensor = "isolated",
    metric: str = "cosine",
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    compat: str | None = None,
    check: bool = True,
) -> Tensor:
    """Farthest point sampling: order tokens so that each pick is the farthest from those before it.

    ``pick_1 = start``; ``pick_t = argmax_i min_{s < t} d(x_i, x_{pick_s})`` over unpicked candidates, ties to
    the lowest index (copies of a token tie exactly; see Rounding for equal distances of different ones).
    Orders are nested: the picks for k are the first k picks for any larger k.

    Args:
        features: ``(..., N, D)``, any float dtype. Distances are computed in float32, also under autocast and
            whatever matmul precision (TF32, bf16) the process has chosen.
        k: tokens to pick: an int, or a sequence or int tensor broadcastable to the leading shape. Accelerator
            tensors are read back to the host; pass host integers to avoid that.
        start: the first pick.
            "isolated": the token whose nearest neighbour is farthest (the released code's rule);
            "random": uniform over candidates, drawn with ``generator`` (the paper's rule);
            "center": the candidate nearest to the mean, for cosine the mean of the unit vectors;
            an int or an int tensor broadcastable to the leading shape: that token.
        metric: "cosine": ``1 - cos``; a zero vector has cosine 0, so distance 1, with every other token, also
            with other zero vectors. "l2", "l1": the norms of the difference. "nearest": the degenerate rule
            of the paper's ablation "nearest (min)": the next pick is the unpicked token with the *smallest*
            cosine distance to the picked set.
        mask: bool ``(..., N)``, broadcastable, True at candidates; None when all are. What masked tokens
            hold never matters, not even NaN.
        generator: for ``start="random"``, on any device.
        compat: "released" measures as the published code did: normalise, ``1 - X X^T`` in the features' own
            dtype, isolated start. In half precision near-parallel tokens tie and the choice differs from
            float32 for about half of the tokens.
        check: validate values (NaN, Inf, too few candidates, ``start``), which waits for the device once per
            `MATRIX_BYTES` of views, before the first pick; lengths outside float32's comfortable range are
            rescaled then, too. Skipped inside ``torch.compile``. Shapes are always validated.

    Returns:
        int64 ``(..., max k)`` in pick order; rows with a smaller k end in -1.

    Raises:
        PruneError: not a float tensor; fewer than two dimensions; ``k`` not an integer, below 1 or above the
            number of candidates; unknown ``metric``, ``start`` or ``compat``; ``mask`` or ``start`` of the
            wrong shape or dtype; ``start`` out of range or masked; NaN or Inf (with the first place).

    Cost: one symmetric product, ``N^2 D`` multiplications per view, then ``O(k N)``; three kernels per pick
    and no host synchronisation between picks. Above 8192 tokens a view, ``O(k N D)`` and no matrix. Metric
    "l1" has no product: each row of distances is computed directly.

    Rounding: rows of different length may be split differently by the BLAS in use, so a view alone and the
    same view padded can differ in the last bit of a distance, which decides only between tokens equally far
    to float32 accuracy. (On CPU with MKL they agree to the bit.)

    Source: Prune2Drive, CVPR 2026, arXiv 2508.13305 (T-FPS); Gonzalez 1985 for the rule itself.
    """
    call = inspect(features, k, start, metric, mask, generator, compat, check)
    lead, ks, n = call.lead, call.ks, features.shape[-2]
    most = max(ks, default=k if isinstance(k, int) else 1)
    width = max(1, distances.MATRIX_BYTES // (4 * n * n))
    orders = [_order(call.part(low, low + width), most) for low in range(0, len(ks), width)]
    if not orders:
        return features.new_empty((*lead, most), dtype=torch.int64)
    order = torch.cat(orders) if len(orders) > 1 else orders[0]
    if any(count != most for count in ks):
        counts = torch.tensor(ks).to(order.device, non_blocking=True)
        order = order.masked_fill(torch.arange(most, device=order.device) >= counts[:, None], -1)
    return order.reshape(*lead, most)


def _order(call: Call, most: int) -> Tensor:
    """The first ``most`` picks of every view, (V, most)."""
    features, mask = call.features, call.mask
    if call.compat == "released":
        rows: Measured = distances.measure_as_released(features)
        if call.check:
            verify(call, rows.squares, rescale=False)
    else:
        isolated = call.start == "isolated"
        features = features.float()
        rows = distances.measure(features, call.metric, isolated=isolated)
        if call.check and verify(call, rows.squares, rescale=True):
            per_token = call.metric in ("cosine", "nearest")
            features = distances.rescaled(call.features, mask, per_token=per_token)
            rows = distances.measure(features, call.metric, isolated=isolated)

    if isinstance(call.start, Tensor):
        pick = call.start
    elif call.start == "isolated":
        pick = _argmax(rows.nearest(mask), mask)
    elif call.start == "random":
        pick = _random(call)
    else:
        pick = _center(features, rows.squares, call.metric, mask)
    rows.close()
    choose = _closest if call.metric == "nearest" else _farthest
    return choose(rows, pick, most, mask)


def _farthest(rows: Measured, pick: Tensor, most: int, mask: Tensor | None) -> Tensor:
    """From the first pick (V,) on, always the token farthest from all picked ones: (V, most)."""
    # A picked token's distance to itself reads -inf, which fmin keeps: it can never win again. So a pick is
    # three kernels: a row, fmin (which also ignores a masked NaN), argmax. torch.argmax documents that the
    # first of several maxima is returned; the tests hold it to that.
    picks = [pick]
    near = torch.full_like(rows.squares, torch.inf, dtype=rows.dtype)
    if mask is not None:
        near = near.masked_fill(~mask, -torch.inf)
    for _ in range(most - 1):
        near = torch.fmin(near, rows.row(pick))
        pick = near.argmax(-1)
        picks.append(pick)
    return torch.stack(picks, -1)


def _closest(rows: Measured, pick: Tensor, most: int, mask: Tensor | None) -> Tensor:
    """The degenerate rule: always the unpicked token closest to the picked ones."""
    picks = [pick]
    near = torch.full_like(rows.squares, torch.inf, dtype=rows.dtype)
    free = torch.ones_like(near, dtype=torch.bool) if mask is None else mask.clone()
    for _ in range(most - 1):
        near = torch.fmin(near, rows.row(pick))
        free = free.scatter(1, pick[:, None], False)
        pick = torch.where(free, -near, -torch.inf).argmax(-1)
        picks.append(pick)
    return torch.stack(picks, -1)


def _argmax(score: Tensor, mask: Tensor | None) -> Tensor:
    return (score if mask is None else score.masked_fill(~mask, -torch.inf)).argmax(-1)


def _random(call: Call) -> Tensor:
    generator, device = call.generator, call.features.device
    source = device if generator is None else generator.device
    draw = torch.rand(call.features.shape[:-1], generator=generator, device=source)
    return _argmax(draw.to(device), call.mask)


def _center(features: Tensor, squares: Tensor, metric: str, mask: Tensor | None) -> Tensor:
    """The candidate nearest to the mean of the candidates (cosine: of their unit vectors)."""
    weight = torch.ones_like(squares)
    if mask is not None:
        features = features.masked_fill(~mask[..., None], 0.0)
        weight, squares = mask.float(), squares.masked_fill(~mask, 0.0)
    if metric in ("cosine", "nearest"):
        unit = torch.where(squares > 0, squares.rsqrt(), 0.0)
        total = dots(unit[:, None], features.mT)
        return _argmax(dots(total, features)[:, 0] * unit, mask)
    mean = dots(weight[:, None], features.mT) / weight.sum(-1)[:, None, None]
    if metric == "l1":
        return _argmax(-torch.cdist(mean, features, p=1.0)[:, 0], mask)
    # |x - m|^2 less |m|^2, which is the same for every token.
    return _argmax(2 * dots(mean, features)[:, 0] - squares, mask)
