"""Whether the GPU programs of `fps` can run, and if not, why."""

from __future__ import annotations

import os

import torch

from .launch import HALF, MOST_TOKENS

METRICS = ("cosine", "l2", "nearest")
DTYPES = (*HALF, torch.float32)

_failed: dict[tuple[str, int], str] = {}


class Failed(RuntimeError):
    """The programs could not be compiled or launched; the message says how."""


def kernel_reason(
    device: torch.device | str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    tokens: int = 1,
    metric: str = "cosine",
    compat: str | None = None,
) -> str | None:
    """Say why `fps` would not use its GPU programs for such a call; None if it would.

    Args:
        device: where the features are.
        dtype: theirs.
        tokens: of one view.
        metric: as in `prune2drive.functional.fps`.
        compat: as there.

    Returns:
        None, or the reason, a clause without a full stop.
    """
    if compat is not None:
        return f"compat={compat!r} is measured as published, by the plain version"
    if metric not in METRICS:
        return f"metric={metric!r} is no inner product"
    if dtype not in DTYPES:
        return f"{dtype} features are measured by the plain version"
    if tokens > MOST_TOKENS:
        return f"{tokens} tokens in a view are more than {MOST_TOKENS}"
    device = torch.device(device)
    return _device_reason(device.type, -1 if device.index is None else device.index)


@torch.compiler.assume_constant_result
def _device_reason(kind: str, index: int) -> str | None:
    """What only the machine decides."""
    if kind not in ("cuda", "cpu"):
        return f"the programs are for CUDA GPUs, not {kind}"
    if kind == "cuda":
        if torch.version.cuda is None or not torch.cuda.is_available():
            return "torch finds no CUDA GPU"
        index = torch.cuda.current_device() if index < 0 else index
        if torch.cuda.get_device_capability(index) < (8, 0):
            return "the programs need a GPU of compute capability 8.0 or newer"
        if (kind, index) in _failed:
            return _failed[kind, index]
    elif os.environ.get("TRITON_INTERPRET") != "1":
        return "on CPU the programs only run under Triton's interpreter (TRITON_INTERPRET=1 from the start)"
    try:
        from . import programs
    except Exception as error:  # not installed, or broken: both leave the plain version
        return f"Triton cannot be used: {type(error).__name__}: {error}"
    if kind == "cuda" and not programs.compiled():
        return "Triton interprets (TRITON_INTERPRET is set), which only serves to test on CPU"
    if kind == "cpu" and not programs.interpreted():
        return "Triton was imported before TRITON_INTERPRET was set"
    return None


def give_up(device: torch.device, error: Exception) -> str:
    """Remember that the programs failed on a device, so that they are not tried again; return the reason."""
    reason = f"the programs failed on {device}: {type(error).__name__}: {error}"
    index = device.index
    if device.type == "cuda":
        _failed[device.type, torch.cuda.current_device() if index is None else index] = reason
    return reason
