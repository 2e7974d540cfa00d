"""What `fps` refuses, and in which words: shapes without the device, values with one question to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import PruneError, did_you_mean
from .counts import capturing, on_device

METRICS = ("cosine", "l2", "l1", "nearest")
STARTS = ("isolated", "random", "center")
COMPATS = ("released",)
BACKENDS = ("auto", "torch", "triton")
SAFE_SQUARES = (2.0**-80, 2.0**80)
"""Squared lengths in between need no rescaling: products and reciprocals stay normal float32 numbers."""


@dataclass(eq=False)
class Call:
    """Some views of one call of `fps`, flattened, and where they stand in the whole.

    ``features`` (V, N, D); ``ks`` tokens to pick of each; ``start`` a name or indices (V,); ``mask`` bool
    (V, N) or None; ``lead`` the leading shape of all views, and ``offset`` the number of the first one here.
    """

    features: Tensor
    ks: list[int]
    start: str | Tensor
    metric: str
    mask: Tensor | None
    generator: torch.Generator | None
    compat: str | None
    check: bool
    lead: tuple[int, ...]
    offset: int

    def part(self, low: int, high: int) -> Call:
        """The views ``low`` up to ``high``."""
        return Call(
            self.features[low:high],
            self.ks[low:high],
            self.start[low:high] if isinstance(self.start, Tensor) else self.start,
            self.metric,
            None if self.mask is None else self.mask[low:high],
            self.generator,
            self.compat,
            self.check,
            self.lead,
            self.offset + low,
        )

    def row(self, view: int) -> str:
        """Name a view by its index in the leading shape: "row (2,): ", or "" when there is none."""
        return _row(self.lead, view + self.offset)


def inspect(
    features: Tensor,
    k: int | Sequence[int] | Tensor,
    start: str | int | Tensor,
    metric: str,
    mask: Tensor | None,
    generator: torch.Generator | None,
    compat: str | None,
    check: bool,
) -> Call:
    """Validate what needs no device values; return the call with all its views flattened."""
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
    for view, count in enumerate(ks):
        if count < 1:
            raise PruneError(f"fps: {_row(lead, view)}k must be at least 1, got {count}.")
        if count > n:
            raise PruneError(
                f"fps: {_row(lead, view)}asked for {count} of {n} tokens (features have shape {shape})."
            )

    flat_mask = None
    if mask is not None:
        if mask.dtype != torch.bool:
            raise PruneError(f"fps: mask must be bool, True at candidates, got {mask.dtype}.")
        flat_mask = _broadcast(mask, (*lead, n), "mask", shape).reshape(-1, n)
    first = _first(start, features, views)
    flat = features.detach().reshape(-1, *shape[-2:])
    check = check and not torch.compiler.is_compiling() and not capturing(features.device)
    return Call(flat, ks, first, metric, flat_mask, generator, compat, check, lead, 0)


def _first(start: str | int | Tensor, features: Tensor, views: int) -> str | Tensor:
    """A known name, or an index for each view, (V,)."""
    shape = tuple(features.shape)
    n = shape[-2]
    if isinstance(start, str):
        if start not in STARTS:
            raise PruneError(f"fps: unknown start {start!r}.{did_you_mean(start, STARTS)}")
        return start
    if isinstance(start, bool) or not isinstance(start, int | Tensor):
        raise PruneError(f"fps: start must be a name, an int or an int tensor, got {start!r}.")
    if isinstance(start, int):
        if not 0 <= start < n:
            raise PruneError(f"fps: start={start} is out of range for {n} tokens (0 to {n - 1}).")
        return torch.full((views,), start, device=features.device)
    if start.dtype.is_floating_point or start.dtype.is_complex or start.dtype == torch.bool:
        raise PruneError(f"fps: start must hold integers, got {start.dtype}.")
    first = _broadcast(start, shape[:-2], "start", shape).reshape(-1)
    return first.to(features.device, torch.int64, non_blocking=True)


def _counts(k: int | Sequence[int] | Tensor, lead: tuple[int, ...], views: int) -> list[int]:
    if isinstance(k, int) and not isinstance(k, bool):
        return [k] * views
    if isinstance(k, list | tuple) and lead and len(k) == lead[-1] and all(type(each) is int for each in k):
        return list(k) * (views // len(k)) if k else []  # without a tensor, which a compiler could not read
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


def verify(call: Call, squares: Tensor, *, rescale: bool) -> bool:
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
        questions.append((mask.sum(-1) < on_device(call.ks, mask.device)).any())
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


def _complain(call: Call) -> None:
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


def _find_not_finite(call: Call) -> None:
    bad = ~call.features.isfinite()
    if call.mask is not None:
        bad &= call.mask[..., None]
    places = bad.nonzero()
    if len(places):
        view, token, channel = places[0].tolist()
        value = call.features[view, token, channel].item()
        raise PruneError(f"fps: {call.row(view)}features hold {value} at token {token}, channel {channel}.")


def _row(lead: tuple[int, ...], view: int) -> str:
    if not lead:
        return ""
    place = []
    for size in reversed(lead):
        place.append(view % size)
        view //= size
    return f"row {tuple(reversed(place))}: "
