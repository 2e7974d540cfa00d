"""Farthest point sampling of tokens: textbook rule, batched, without host synchronisation."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import PruneError, did_you_mean

METRICS = ("cosine", "l2", "l1", "nearest")
STARTS = ("isolated", "random", "center")
COMPATS = ("released",)

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
GRAM_BLOCK = 128
"""Rows per block of the symmetric product on CPU. Only the lower blocks are multiplied, the rest mirrored.
Measured as above: 84 ms with 128 rows against 138 ms for the whole product (64: 11.7, 128: 12.9, 256: 17.5 ms
for 6 x 256 tokens). Block borders do not depend on N, so padding a view leaves its blocks as they are."""
SNAP = 2.0**-20
"""Distances below this share of the vectors' scale are rounding of a float32 product and count as 0 (8 ulp of
1 for cosine), so copies of a token tie exactly and the lowest index wins."""
SAFE_SQUARES = (2.0**-80, 2.0**80)
"""Squared lengths in between need no rescaling: products and reciprocals stay normal float32 numbers."""


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
    the lowest index. Orders are nested: the picks for k are the first k picks for any larger k.

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
    lead, ks, first, candidates = _inspect(features, k, start, metric, mask, compat)
    n, dim = features.shape[-2:]
    views = features.detach().reshape(-1, n, dim)
    most = max(ks, default=k if isinstance(k, int) else 1)
    width = max(1, MATRIX_BYTES // (4 * n * n))
    orders = []
    for low in range(0, len(ks), width):
        part = slice(low, low + width)
        orders.append(
            _order(
                _Call(
                    views[part],
                    ks[part],
                    first[part] if isinstance(first, Tensor) else first,
                    metric,
                    None if candidates is None else candidates[part],
                    generator,
                    compat,
                    check and not torch.compiler.is_compiling(),
                    lead,
                    low,
                ),
                most,
            )
        )
    if not orders:
        return features.new_empty((*lead, most), dtype=torch.int64)
    order = torch.cat(orders) if len(orders) > 1 else orders[0]
    if any(count != most for count in ks):
        counts = torch.tensor(ks).to(order.device, non_blocking=True)
        order = order.masked_fill(torch.arange(most, device=order.device) >= counts[:, None], -1)
    return order.reshape(*lead, most)


class _Call:
    """Some views of one call, flattened: features (V, N, D), and where they stand in the whole."""

    def __init__(
        self,
        features: Tensor,
        ks: list[int],
        start: str | Tensor,
        metric: str,
        mask: Tensor | None,
        generator: torch.Generator | None,
        compat: str | None,
        check: bool,
        lead: tuple[int, ...],
        offset: int,
    ) -> None:
        self.features, self.ks, self.start, self.metric = features, ks, start, metric
        self.mask, self.generator, self.compat, self.check = mask, generator, compat, check
        self.lead, self.offset = lead, offset

    def row(self, view: int) -> str:
        """Name a view by its index in the leading shape: "row (2,): ", or "" when there is none."""
        if not self.lead:
            return ""
        place, rest = [], view + self.offset
        for size in reversed(self.lead):
            place.append(rest % size)
            rest //= size
        return f"row {tuple(reversed(place))}: "


# ---------------------------------------------------------------------------------------------- the loop


def _order(call: _Call, most: int) -> Tensor:
    """The first ``most`` picks of every view, (V, most)."""
    rows: _Matrix | _Rows
    if call.compat == "released":
        features = call.features
        # Lengths only tell whether all is finite: the published rule rescales nothing.
        lengths = torch.linalg.vector_norm(
            features, dim=-1, dtype=torch.promote_types(features.dtype, torch.float32)
        )
        rows = _Matrix(_released_distance(features), lengths)
        if call.check:
            _verify(call, lengths, rescale=False)
    else:
        features, metric = call.features.float(), call.metric
        rows = _measure(features, metric, isolated=call.start == "isolated")
        if call.check and _verify(call, rows.squares, rescale=True):
            features = _rescaled(call.features, call.mask, per_token=metric in ("cosine", "nearest"))
            rows = _measure(features, metric, isolated=call.start == "isolated")

    mask = call.mask
    if isinstance(call.start, Tensor):
        pick = call.start
    elif call.start == "isolated":
        pick = rows.isolated(mask)
    elif call.start == "random":
        pick = _random(call)
    else:
        pick = _center(features, rows.squares, call.metric, mask)
    rows.close()

    picks = [pick]
    shape, device = features.shape[:-1], features.device
    if call.metric == "nearest":
        near = torch.full(shape, torch.inf, device=device)
        free = torch.ones(shape, dtype=torch.bool, device=device) if mask is None else mask.clone()
        for _ in range(most - 1):
            near = torch.fmin(near, rows.row(pick))
            free = free.scatter(1, pick[:, None], False)
            pick = torch.where(free, -near, -torch.inf).argmax(-1)
            picks.append(pick)
        return torch.stack(picks, -1)

    # A picked token's distance to itself reads -inf, which fmin keeps: it can never win again. So a pick is
    # three kernels: a row, fmin (which also ignores a masked NaN), argmax. torch.argmax documents that the
    # first of several maxima is returned; the tests hold it to that.
    near = torch.full(shape, torch.inf, dtype=rows.dtype, device=device)
    if mask is not None:
        near = near.masked_fill(~mask, -torch.inf)
    for _ in range(most - 1):
        near = torch.fmin(near, rows.row(pick))
        pick = near.argmax(-1)
        picks.append(pick)
    return torch.stack(picks, -1)


class _Matrix:
    """All distances of each view, (V, N, N), in memory."""

    def __init__(self, distance: Tensor, squares: Tensor) -> None:
        self.distance, self.squares, self.dtype = distance, squares, distance.dtype
        self.views = torch.arange(len(distance), device=distance.device)

    def isolated(self, mask: Tensor | None) -> Tensor:
        self.distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
        if mask is not None:
            self.distance.masked_fill_(~mask[:, None, :], torch.inf)
        return _argmax(self.distance.amin(-1), mask)

    def close(self) -> None:
        self.distance.diagonal(dim1=1, dim2=2).fill_(-torch.inf)

    def row(self, pick: Tensor) -> Tensor:
        return self.distance[self.views, pick]


class _Rows:
    """Distances of one token at a time, (V, N), computed when asked for."""

    def __init__(self, features: Tensor, squares: Tensor, metric: str) -> None:
        self.features, self.squares, self.metric, self.dtype = features, squares, metric, torch.float32
        self.views = torch.arange(len(features), device=features.device)

    def isolated(self, mask: Tensor | None) -> Tensor:
        nearest = []
        n = self.features.shape[1]
        for low in range(0, n, GRAM_BLOCK):
            part = slice(low, low + GRAM_BLOCK)
            block = _pairs(self.features, self.squares, self.metric, part)
            # The offset diagonal of the block is each token's distance to itself.
            block.diagonal(offset=low, dim1=1, dim2=2).fill_(torch.inf)
            if mask is not None:
                block.masked_fill_(~mask[:, None, :], torch.inf)
            nearest.append(block.amin(-1))
        return _argmax(torch.cat(nearest, -1), mask)

    def close(self) -> None:
        pass

    def row(self, pick: Tensor) -> Tensor:
        one, square = self.features[self.views, pick][:, None], self.squares[self.views, pick][:, None]
        if self.metric == "l1":
            row = torch.cdist(one, self.features, p=1.0)
        else:
            row = _distance_(_dots(one, self.features), square, self.squares, self.metric)
        return row[:, 0].scatter(1, pick[:, None], -torch.inf)


def _measure(features: Tensor, metric: str, *, isolated: bool) -> _Matrix | _Rows:
    """Distances of float32 features (V, N, D), as a matrix where it fits and pays."""
    fits = 4 * features.shape[1] ** 2 <= MATRIX_BYTES
    if metric == "l1":
        squares = _squares(features)
        # Each entry costs the same alone or in a matrix, so only the isolated start wants all of them.
        if fits and isolated:
            return _Matrix(_pairs(features, squares, metric, slice(None)), squares)
        return _Rows(features, squares, metric)
    if not fits:
        return _Rows(features, _squares(features), metric)
    gram = _gram(features)
    # The squared lengths lie on the diagonal: no pass over the features, and a copy's cosine is exactly
    # that of the token with itself.
    squares = gram.diagonal(dim1=1, dim2=2).clone()
    return _Matrix(_distance_(gram, squares, squares, metric), squares)


def _pairs(features: Tensor, squares: Tensor, metric: str, part: slice) -> Tensor:
    """Distances of the tokens in ``part`` to all, (V, part, N)."""
    if metric == "l1":
        return torch.cdist(features[:, part].contiguous(), features, p=1.0)
    return _distance_(_dots(features[:, part], features), squares[:, part], squares, metric)


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


def _released_distance(features: Tensor) -> Tensor:
    """``1 - X X^T`` of unit rows, view by view in the features' own dtype, as the released code does."""
    distances = []
    with _no_autocast(features.device):
        for view in features:
            unit = F.normalize(view, p=2.0, dim=-1)
            distances.append(1 - unit @ unit.T)
    return torch.stack(distances)


# ------------------------------------------------------------------------------------------ first picks


def _argmax(score: Tensor, mask: Tensor | None) -> Tensor:
    return (score if mask is None else score.masked_fill(~mask, -torch.inf)).argmax(-1)


def _random(call: _Call) -> Tensor:
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
        total = _dots(unit[:, None], features.mT)
        return _argmax(_dots(total, features)[:, 0] * unit, mask)
    mean = _dots(weight[:, None], features.mT) / weight.sum(-1)[:, None, None]
    if metric == "l1":
        return _argmax(-torch.cdist(mean, features, p=1.0)[:, 0], mask)
    # |x - m|^2 less |m|^2, which is the same for every token.
    return _argmax(2 * _dots(mean, features)[:, 0] - squares, mask)


# ------------------------------------------------------------------------------- float32 that is float32


_precision_lock = threading.Lock()


def _no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Multiply float32 as float32: no autocast, no TF32, no bf16 inside oneDNN.

    The setting is process-wide and read when a product is launched, so it is changed only if it is not the
    one wanted, under a lock, for the time of the launch, and then put back.
    """
    with _precision_lock, _no_autocast(device):
        backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
        matmul: Any = getattr(backend, "matmul", None)
        if hasattr(matmul, "fp32_precision"):
            before = matmul.fp32_precision
            if before in ("ieee", "none"):
                yield
                return
            matmul.fp32_precision = "ieee"
            try:
                yield
            finally:
                matmul.fp32_precision = before
            return
        before = torch.get_float32_matmul_precision()  # torch before 2.9
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def _dots_now(left: Tensor, right: Tensor) -> Tensor:
    with _full_precision(left.device):
        return torch.matmul(left, right.mT)


def _gram_now(features: Tensor) -> Tensor:
    n = features.shape[1]
    with _full_precision(features.device):
        if features.device.type != "cpu" or n <= GRAM_BLOCK:
            gram = torch.matmul(features, features.mT)
            return (gram + gram.mT).mul_(0.5)
        gram = features.new_empty(len(features), n, n)
        for low in range(0, n, GRAM_BLOCK):
            high = min(low + GRAM_BLOCK, n)
            block = torch.matmul(features[:, low:high], features[:, :high].mT)
            gram[:, low:high, :low] = block[:, :, :low]
            gram[:, :low, low:high] = block[:, :, :low].mT
            square = block[:, :, low:]
            gram[:, low:high, low:high] = (square + square.mT).mul_(0.5)
        return gram


# A compiler cannot trace a process-wide setting, so compiled graphs call the products as opaque operators:
# the precision then holds at run time as well.
_dots_op = torch.library.custom_op(
    "prune2drive::dots", _dots_now, mutates_args=(), schema="(Tensor left, Tensor right) -> Tensor"
)
_dots_op.register_fake(
    lambda left, right: left.new_empty(left.shape[0], left.shape[1], right.shape[1]),
)
_gram_op = torch.library.custom_op(
    "prune2drive::gram", _gram_now, mutates_args=(), schema="(Tensor features) -> Tensor"
)
_gram_op.register_fake(
    lambda features: features.new_empty(features.shape[0], features.shape[1], features.shape[1])
)


def _dots(left: Tensor, right: Tensor) -> Tensor:
    """Inner products of rows: (V, n, D), (V, m, D) -> (V, n, m), float32."""
    return _dots_op(left, right) if torch.compiler.is_compiling() else _dots_now(left, right)


def _gram(features: Tensor) -> Tensor:
    """Inner products of all rows of a view, exactly symmetric: (V, N, D) -> (V, N, N), float32."""
    return _gram_op(features) if torch.compiler.is_compiling() else _gram_now(features)


def _squares(features: Tensor) -> Tensor:
    """Squared lengths, (V, N), in float32 or wider. No square root in between: integers stay exact."""
    return features.to(torch.promote_types(features.dtype, torch.float32)).square().sum(-1)


# ------------------------------------------------------------------------------------------------ checks


def _inspect(
    features: Tensor,
    k: int | Sequence[int] | Tensor,
    start: str | int | Tensor,
    metric: str,
    mask: Tensor | None,
    compat: str | None,
) -> tuple[tuple[int, ...], list[int], str | Tensor, Tensor | None]:
    """Validate what needs no device values; return leading shape, k per view, start, mask (V, N)."""
    if not isinstance(features, Tensor) or not features.is_floating_point():
        what = f"dtype {features.dtype}" if isinstance(features, Tensor) else type(features).__name__
        raise PruneError(f"fps: features must be a float tensor (..., tokens, channels), got {what}.")
    shape = tuple(features.shape)
    if len(shape) < 2:
        raise PruneError(f"fps: features need at least two dimensions (..., tokens, channels), got {shape}.")
    if metric not in METRICS:
        raise PruneError(f"fps: unknown metric {metric!r}.{did_you_mean(str(metric), METRICS)}")
    if compat is not None:
        if compat not in COMPATS:
            raise PruneError(f"fps: unknown compat {compat!r}.{did_you_mean(str(compat), COMPATS)}")
        if metric != "cosine" or not isinstance(start, str) or start != "isolated":
            raise PruneError(
                f"fps: compat='released' fixes metric='cosine' and start='isolated', got metric={metric!r}, "
                f"start={start!r}."
            )
    lead, n = shape[:-2], shape[-2]
    views = 1
    for size in lead:
        views *= size

    ks = _counts(k, lead, views)
    blank = _Call(features, ks, "", metric, mask, None, None, False, lead, 0)
    for view, count in enumerate(ks):
        if count < 1:
            raise PruneError(f"fps: {blank.row(view)}k must be at least 1, got {count}.")
        if count > n:
            raise PruneError(
                f"fps: {blank.row(view)}asked for {count} of {n} tokens (features have shape {shape})."
            )

    flat_mask = None
    if mask is not None:
        if mask.dtype != torch.bool:
            raise PruneError(f"fps: mask must be bool, True at candidates, got {mask.dtype}.")
        flat_mask = _broadcast(mask, (*lead, n), "mask", shape).reshape(-1, n)

    if isinstance(start, str):
        if start not in STARTS:
            raise PruneError(f"fps: unknown start {start!r}.{did_you_mean(start, STARTS)}")
        return lead, ks, start, flat_mask
    if isinstance(start, bool) or not isinstance(start, int | Tensor):
        raise PruneError(f"fps: start must be a name, an int or an int tensor, got {start!r}.")
    if isinstance(start, int):
        if not 0 <= start < n:
            raise PruneError(f"fps: start={start} is out of range for {n} tokens (0 to {n - 1}).")
        return lead, ks, torch.full((views,), start, device=features.device), flat_mask
    if start.dtype.is_floating_point or start.dtype.is_complex or start.dtype == torch.bool:
        raise PruneError(f"fps: start must hold integers, got {start.dtype}.")
    first = _broadcast(start, lead, "start", shape).reshape(-1)
    return lead, ks, first.to(features.device, torch.int64, non_blocking=True), flat_mask


def _counts(k: int | Sequence[int] | Tensor, lead: tuple[int, ...], views: int) -> list[int]:
    if isinstance(k, int) and not isinstance(k, bool):
        return [k] * views
    try:
        counts = k if isinstance(k, Tensor) else torch.as_tensor(k)
    except (TypeError, ValueError, RuntimeError):
        raise PruneError(f"fps: k must be an int, a sequence of ints or an int tensor, got {k!r}.") from None
    if counts.is_floating_point() or counts.is_complex() or counts.dtype == torch.bool:
        raise PruneError(f"fps: k must hold integers, got {k!r}.")
    return _broadcast(counts, lead, "k", (*lead, "tokens", "channels")).reshape(-1).tolist()


def _broadcast(tensor: Tensor, want: tuple[int, ...], name: str, shape: tuple[Any, ...]) -> Tensor:
    try:
        return tensor.expand(want)
    except RuntimeError:
        raise PruneError(
            f"fps: {name} of shape {tuple(tensor.shape)} does not broadcast to {want}, "
            f"as features of shape {shape} need."
        ) from None


def _verify(call: _Call, squares: Tensor, *, rescale: bool) -> bool:
    """Raise on bad values; return whether features must be rescaled to be measured in float32.

    One synchronisation: all questions are asked in one small tensor.
    """
    mask = call.mask
    lowest, highest = SAFE_SQUARES
    if call.metric in ("cosine", "nearest"):
        scale = squares if mask is None else squares.masked_fill(~mask, 1.0)
    else:
        scale = (squares if mask is None else squares.masked_fill(~mask, 0.0)).amax(-1)
    # Not "outside": a NaN is neither below nor above.
    questions = [~((scale >= lowest) & (scale <= highest)).all()]
    n = call.features.shape[1]
    if mask is not None:
        wanted = torch.tensor(call.ks).to(mask.device, non_blocking=True)
        questions.append((mask.sum(-1) < wanted).any())
    if isinstance(call.start, Tensor):
        inside = (call.start >= 0) & (call.start < n)
        if mask is not None:
            inside &= mask.gather(1, call.start.clamp(0, n - 1)[:, None])[:, 0]
        questions.append(~inside.all())
    answers = torch.stack(questions).tolist()
    if any(answers[1:]):
        _complain(call)
    if answers[0]:
        _find_not_finite(call)
        return rescale
    return False


def _complain(call: _Call) -> None:
    """Name the first view with too few candidates or a bad start."""
    n = call.features.shape[1]
    for view, count in enumerate(call.ks):
        there = n if call.mask is None else int(call.mask[view].sum())
        if count > there:
            raise PruneError(f"fps: {call.row(view)}asked for {count} of {there} unmasked tokens.")
        if isinstance(call.start, Tensor):
            index = int(call.start[view])
            if not 0 <= index < n:
                raise PruneError(f"fps: {call.row(view)}start={index} is out of range for {n} tokens.")
            if call.mask is not None and not call.mask[view, index]:
                raise PruneError(f"fps: {call.row(view)}start={index} is masked; start at a candidate.")


def _find_not_finite(call: _Call) -> None:
    bad = ~call.features.isfinite()
    if call.mask is not None:
        bad &= call.mask[..., None]
    places = bad.nonzero()
    if len(places):
        view, token, channel = places[0].tolist()
        value = call.features[view, token, channel].item()
        raise PruneError(f"fps: {call.row(view)}features hold {value} at token {token}, channel {channel}.")


def _rescaled(features: Tensor, mask: Tensor | None, *, per_token: bool) -> Tensor:
    """Bring features near 1 by powers of two, which rounds nothing: per token, or one factor per view."""
    wide = features.double()
    if mask is not None:
        wide = wide.masked_fill(~mask[..., None], 0.0)
    largest = wide.abs().amax(-1, keepdim=True)
    if not per_token:
        largest = largest.amax(1, keepdim=True)
    exponent = torch.frexp(largest).exponent.clamp(min=-1000)
    return (wide * torch.exp2(-exponent.double())).float()
