"""Whether a model of a published size fits into memory, asked before gigabytes are filled."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import PruneError
from .shapes import build_model

_MEMINFO = Path("/proc/meminfo")


def weight_bytes(name: str, dtype: torch.dtype, layers: int | None = None) -> int:
    """Bytes of the parameters of a published size; ``layers`` as in `shapes.build_model`."""
    meta = build_model(name, dtype, "meta", "eager", layers=layers)
    return sum(p.nbytes for p in meta.parameters())


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on ``device``, or None where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if not _MEMINFO.is_file():
        return None
    rows = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in rows else None


def check_room(name: str, dtype: torch.dtype, device: torch.device, layers: int | None = None) -> None:
    """Refuse weights that do not fit: without this the system ends the process with no word.

    Raises:
        PruneError: the weights alone need more than is free.
    """
    need, free = weight_bytes(name, dtype, layers), free_bytes(device)
    if free is not None and need > free:
        raise PruneError(
            f"{name} needs {need / 2**30:.4g} GiB for weights alone, {device} has {free / 2**30:.4g} GiB "
            "free; try --dtype bf16 or --layer-limit N."
        )
