"""Farthest point sampling of tokens: textbook rule, batched, without host synchronisation."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import PruneError, did_you_mean
from . import distances, kernels
from .checks import BACKENDS, COMPATS, METRICS, STARTS, Call, inspect, verify
from .counts import capturing, on_device
from .products import dots, squares

__all__ = ["BACKENDS", "COMPATS", "METRICS", "STARTS", "fps", "released_count"]

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
    backend: str = "auto",
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
            `MATRIX_BYTES` of views; lengths outside float32's comfortable range are rescaled then, too.
            Skipped inside ``torch.compile`` and while a CUDA graph is recorded. Shapes are always validated.
        backend: "torch": the plain version, on any device. "triton": the GPU programs of
            `functional.kernels`, for CUDA and metrics other than "l1". "auto": the programs where
            `kernels.kernel_reason` has nothing against them, else the plain version; so, with a warning,
            once a launch has failed.

    Returns:
        int64 ``(..., max k)`` in pick order; rows with a smaller k end in -1.

    Raises:
        PruneError: not a float tensor; fewer than two dimensions; ``k`` not an integer, below 1 or above the
            number of candidates; unknown ``metric``, ``start``, ``compat`` or ``backend``; ``mask`` or
            ``start`` of the wrong shape or dtype; ``start`` out of range or masked; NaN or Inf (with the
            first place); ``backend="triton"`` where it cannot run (with the reason).

    Cost: one symmetric product, ``N^2 D`` multiplications per view, then ``O(k N)``. No host synchronisation
    between picks. The programs are three launches whatever k: the lower half of the product from half
    precision on tensor cores; distances, in place; and all picks of a view by one program that keeps the
    running distances in registers, a chain of ``k`` reads of one row. The plain version multiplies in float32
    and launches three kernels per pick; above 8192 tokens a view it takes ``O(k N D)`` and no matrix. Metric
    "l1" has no product: each row of distances is computed directly.

    CUDA graphs: both versions may be recorded, with ``k`` host integers, and ``start``, ``mask`` and
    ``generator`` None or on the device. Call once before recording.

    Rounding: rows of different length may be split differently by the BLAS in use, so a view alone and the
    same view padded can differ in the last bit of a distance, which decides only between tokens equally far
    to float32 accuracy. (On CPU with MKL they agree to the bit.) So it is between the two versions: from
    float32 features they compute the same product; from half precision the programs sum the same exact
    products in another order. From there on the arithmetic is the same, step by step, ties included.

    Source: Prune2Drive, CVPR 2026, arXiv 2508.13305 (T-FPS); Gonzalez 1985 for the rule itself.
    """
    call = inspect(features, k, start, metric, mask, generator, compat, check)
    lead, ks, n = call.lead, call.ks, features.shape[-2]
    most = max(ks, default=k if isinstance(k, int) else 1)
    in_programs = _takes_programs(backend, call)
    view_bytes = 4 * n * (kernels.row_length(n) if in_programs else n)
    width = max(1, distances.MATRIX_BYTES // max(1, view_bytes))
    parts = [call.part(low, low + width) for low in range(0, len(ks), width)]
    try:
        orders = [(_order_in_programs if in_programs else _order)(part, most) for part in parts]
    except kernels.Failed as failed:
        if backend == "triton" or capturing(features.device):
            raise PruneError(f"fps: {failed}. Use backend='torch'.") from failed
        warnings.warn(f"fps: {failed}. From now on the plain version is used.", RuntimeWarning)
        orders = [_order(part, most) for part in parts]
    if not orders:
        return features.new_empty((*lead, most), dtype=torch.int64)
    order = torch.cat(orders) if len(orders) > 1 else orders[0]
    return order.reshape(*lead, most)


def _takes_programs(backend: str, call: Call) -> bool:
    if backend not in BACKENDS:
        raise PruneError(f"fps: unknown backend {backend!r}.{did_you_mean(str(backend), BACKENDS)}")
    if backend == "torch":
        return False
    features = call.features
    reason = kernels.kernel_reason(
        features.device,
        dtype=features.dtype,
        tokens=features.shape[1],
        metric=call.metric,
        compat=call.compat,
    )
    if backend == "triton" and reason is not None:
        raise PruneError(f"fps: backend='triton' cannot run: {reason}. Use backend='auto' or 'torch'.")
    # On CPU the programs are interpreted, which only a test asks for.
    return reason is None and (backend == "triton" or features.device.type == "cuda")


def _order_in_programs(call: Call, most: int) -> Tensor:
    """As `_order`, by the GPU programs; values are judged when all is queued."""
    features, mask, start = call.features, call.mask, call.start
    if start == "isolated":
        first = None
    elif isinstance(start, Tensor):
        first = start
    elif start == "random":
        first = _random(call)
        call = dataclasses.replace(call, start=first)  # drawn once, also for the plain version
    else:
        first = _center(features.float(), squares(features), call.metric, mask)
    counts = on_device(call.ks, features.device)
    order, lengths = kernels.run(features, counts, first, mask, call.metric, most)
    if call.check and verify(call, lengths, rescale=True):
        return _order(call, most)
    return order


def _order(call: Call, most: int) -> Tensor:
    """The first picks of every view, (V, most), -1 beyond its count, by the plain version."""
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
    order = choose(rows, pick, most, mask)
    if any(count != most for count in call.ks):
        counts = on_device(call.ks, order.device)
        order = order.masked_fill(torch.arange(most, device=order.device) >= counts[:, None], -1)
    return order


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
