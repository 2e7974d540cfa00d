"""Inner products in float32 that is float32, whatever precision the process chose for its own products."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

GRAM_BLOCK = 128
"""Rows per block of the symmetric product on CPU. Only the lower blocks are multiplied, the rest mirrored.
Measured on 2 CPU cores, float32: 84 ms with 128 rows against 138 ms for the whole product of 6 x 729 tokens x
4096 channels (64: 11.7, 128: 12.9, 256: 17.5 ms for 6 x 256 tokens). Block borders do not depend on N, so
padding a view leaves its blocks as they are."""


def dots(left: Tensor, right: Tensor) -> Tensor:
    """Inner products of rows: (V, n, D), (V, m, D) -> (V, n, m), float32."""
    return _dots_op(left, right) if torch.compiler.is_compiling() else _dots_now(left, right)


def gram(features: Tensor) -> Tensor:
    """Inner products of all rows of a view, exactly symmetric: (V, N, D) -> (V, N, N), float32."""
    return _gram_op(features) if torch.compiler.is_compiling() else _gram_now(features)


def squares(features: Tensor) -> Tensor:
    """Squared lengths, (V, N), in float32 or wider. No square root in between: integers stay exact."""
    return features.to(torch.promote_types(features.dtype, torch.float32)).square().sum(-1)


def unit(features: Tensor) -> Tensor:
    """Rows brought to length 1, float32; a zero row stays zero."""
    wide = features.float()
    lengths = wide.square().sum(-1, keepdim=True)
    return wide * torch.where(lengths > 0, lengths.rsqrt(), 0.0)


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, products run in their operands' dtype."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


_precision_lock = threading.Lock()


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Multiply float32 as float32: no autocast, no TF32, no bf16 inside oneDNN.

    The setting is process-wide and read when a product is launched, so it is changed only if it is not the
    one wanted, under a lock, for the time of the launch, and then put back.
    """
    with _precision_lock, no_autocast(device):
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
            whole = torch.matmul(features, features.mT)
            return (whole + whole.mT).mul_(0.5)
        out = features.new_empty(len(features), n, n)
        for low in range(0, n, GRAM_BLOCK):
            high = min(low + GRAM_BLOCK, n)
            block = torch.matmul(features[:, low:high], features[:, :high].mT)
            out[:, low:high, :low] = block[:, :, :low]
            out[:, :low, low:high] = block[:, :, :low].mT
            square = block[:, :, low:]
            out[:, low:high, low:high] = (square + square.mT).mul_(0.5)
        return out


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
