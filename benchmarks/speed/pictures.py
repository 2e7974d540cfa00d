"""Camera frames to pixels: the stock way on the host, and on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from prune2drive.preprocessing import DevicePreprocessor, PinnedUpload
from prune2drive.profiling.shapes import SHAPES, build_config
from prune2drive.profiling.timing import clocked, in_turns, summary

from .setting import CAMERAS, Setting
from .sheet import Skip


def frames(setting: Setting, seed: int = 0) -> np.ndarray:
    """uint8 ``(6, H, W, 3)``: frames as a camera driver hands them over, on the host."""
    shape = (CAMERAS, *setting.frame, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def processor(shape: str) -> Any:
    """The stock image processor of a published size, with its settings, on PIL.

    Raises:
        Skip: of a size whose pictures no stock processor cuts that way.
    """
    import transformers

    s, config = SHAPES[shape], build_config(shape)
    if s.model_type == "qwen2_5_vl":
        # 896 x 1596: the nearest multiples of 28 to 900 x 1600.
        return transformers.Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 1_440_000})
    size = config.vision_config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    common: dict[str, Any] = {"size": {"height": height, "width": width}}
    if s.model_type == "llava_onevision":
        half = [0.5, 0.5, 0.5]
        return transformers.LlavaOnevisionImageProcessorPil(**common, image_mean=half, image_std=half)
    if s.model_type == "internvl":
        if s.tiles > 1:
            tiles = {"crop_to_patches": True, "min_patches": 1, "max_patches": s.tiles - 1}
            return transformers.GotOcr2ImageProcessorPil(**common, **tiles)
        return transformers.GotOcr2ImageProcessorPil(**common, crop_to_patches=False)
    raise Skip(f"no stock image processor is set up for {s.model_type}")


def stock_pixels(stock: Any, pictures: np.ndarray) -> torch.Tensor:
    """What the stock processor makes of one sample, float32 on the host."""
    return stock(images=[list(pictures)], return_tensors="pt")["pixel_values"]  # type: ignore[no-any-return]


def measure(setting: Setting, shape: str) -> dict[str, dict[str, Any]]:
    """The row of one size: making pixels on host and device, and the ways to bring frames over."""
    device, dtype = setting.target, setting.torch_dtype
    stock, pictures = processor(shape), frames(setting)
    on_device = DevicePreprocessor.from_processor(stock, device, dtype)
    raw = torch.from_numpy(pictures)
    there = raw.to(device)
    pinned = PinnedUpload(device)
    pixels = stock_pixels(stock, pictures)
    works = {
        "stock": lambda: stock_pixels(stock, pictures),
        "device": lambda: on_device(there),
        "upload pageable": lambda: raw.to(device, copy=True),
        "upload pinned": lambda: pinned.upload(pictures),
        "upload pixels": lambda: pixels.to(device, dtype, copy=True),
    }
    times = in_turns(works, max(3, setting.repeat), lambda work: clocked(work, device)[0])
    ours = on_device(there)["pixel_values"].float().cpu()
    row = {
        "shape": shape,
        "frames": list(pictures.shape),
        "ms": {name: summary(times[name]) for name in ("stock", "device")},
        "upload_ms": {
            name.removeprefix("upload "): summary(spent)
            for name, spent in times.items()
            if name.startswith("upload")
        },
        "largest_difference": float((ours - pixels.reshape(ours.shape)).abs().max()),
        "bytes": {"frames": raw.nbytes, "pixels": pixels.nbytes},
    }
    return {f"preprocess/{shape}": row}
