"""What the speed suite measures with: the settings that all sections share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch

from prune2drive.rig import NUSCENES, Rig

GPU_SHAPES = ("drivemm", "llava-onevision-7b", "internvl2.5-8b", "internvl2.5-8b-tiled", "qwen2.5-vl-7b")
EAGER, CAPTURED = "eager", "captured"
MODES = (EAGER, CAPTURED)
CAMERAS = 6


@dataclass(frozen=True)
class Setting:
    """One run of the suite.

    ``shapes`` of `prune2drive.profiling.shapes`, the first is that of the sections with one model only.
    ``repeat`` timed rounds at batch 1, a third of them, at least 2, at larger batches. ``layers`` cuts the
    language models, None leaves them whole. ``quick``: fewer cases, to see that all of it works.
    """

    device: str
    dtype: str
    shapes: tuple[str, ...] = GPU_SHAPES
    attn: str = "sdpa"
    retentions: tuple[float, ...] = (1.0, 0.5, 0.25, 0.1, 0.05)
    batches: tuple[int, ...] = (1, 8)
    modes: tuple[str, ...] = MODES
    samples: tuple[int, ...] = (1, 4, 16)
    repeat: int = 5
    new_tokens: int = 64
    text_tokens: int = 64
    layers: int | None = None
    compile: bool = False
    quick: bool = False
    frame: tuple[int, int] = field(default=(900, 1600))

    @property
    def target(self) -> torch.device:
        return torch.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)  # type: ignore[no-any-return]

    @property
    def cuda(self) -> bool:
        return self.target.type == "cuda"

    def rounds(self, batch: int) -> int:
        return self.repeat if batch == 1 else max(2, self.repeat // 3)

    def as_json(self) -> dict[str, Any]:
        """What a result file says of it, under the names that readers know."""
        out = dataclasses.asdict(self)
        out["layer_limit"] = out.pop("layers")
        return {name: list(value) if isinstance(value, tuple) else value for name, value in out.items()}


def rig(cameras: int) -> Rig:
    """The first cameras of the nuScenes rig."""
    known = NUSCENES.cameras
    return Rig(f"{cameras} cameras", known[:cameras])
