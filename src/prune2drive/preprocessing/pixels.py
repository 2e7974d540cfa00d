"""A stock image processor's work as batched tensor operations on the device."""

from __future__ import annotations

import importlib
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import PruneError
from .recipe import Recipe, read_recipe
from .resize import Resize, levels


class DevicePreprocessor:
    """uint8 frames -> ``pixel_values`` and what belongs to them, as the stock image processor makes them.

    The numbers are the PIL backend's to the bit (measured: 0 of all pixels of the tests differ; bfloat16 and
    float16 are that rounded), unless torch.set_float32_matmul_precision("medium") makes float32 products
    inexact. The torchvision backend rounds its weights more and differs from both by a level in places.

    On frames that lie on the device already (`PinnedUpload`), a call with shapes it has seen neither waits
    for the device nor copies from the host, so a CUDA graph may record it. Sizes and counts among its outputs
    are made once per shape and shared by later calls: do not write into them.
    """

    def __init__(
        self, recipe: Recipe, device: str | torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        self.recipe = recipe
        self.device = torch.device(device)
        self.dtype = dtype
        self._resize = Resize(recipe.mode, self.device)
        self._constants: dict[Hashable, Tensor] = {}

    @classmethod
    def from_processor(
        cls, processor: Any, device: str | torch.device, dtype: torch.dtype = torch.float32
    ) -> DevicePreprocessor:
        """Read the settings of a Hugging Face processor, or of its image processor.

        Args:
            processor: of LLaVA, LLaVA-OneVision, InternVL, Aya Vision or Qwen2/2.5/3-VL; or a CLIP or SigLIP
                image processor. A processor comes with what it passes on in every call (InternVL's tiles).
            device: where the frames are worked on and the pixels stay.
            dtype: of ``pixel_values``; the model's.

        Raises:
            PruneError: an image processor, or a setting of one, that is not reproduced.
        """
        return cls(read_recipe(processor), device, dtype)

    @torch.no_grad()
    def __call__(self, frames: Any) -> dict[str, Tensor]:
        """Make the inputs of a batch.

        Args:
            frames: uint8 RGB, as tensors or numpy arrays: ``(B, V, H, W, 3)``; ``(V, H, W, 3)`` or a list of
                V ``(H, W, 3)``, of equal or different sizes, for one sample; or a list of such lists.

        Returns:
            On ``device``, pictures by sample and then by camera:

            - ``pixel_values``, ``dtype``: ``(B*V, 3, h, w)``; LLaVA-OneVision ``(B*V, 1, 3, h, w)``; InternVL
              ``(tiles of all pictures, 3, h, w)``; Qwen ``(patches of all pictures, 3*temporal*patch**2)``;
            - LLaVA-OneVision: ``image_sizes`` ``(B*V, 2)`` (height, width) and ``batch_num_images`` ``(B,)``;
            - Qwen: ``image_grid_thw`` ``(B*V, 3)``. All int64.

        Raises:
            PruneError: frames of another dtype or shape, or that the settings cannot take.
        """
        groups, sizes, counts = self._grouped(frames)
        recipe = self.recipe
        if recipe.kind == "onevision" and 1 in counts:
            raise PruneError(
                f"{recipe.name}: the picture of a sample with one is cut into tiles, which is not "
                "reproduced. Give several pictures per sample, or use the stock processor for it."
            )
        made: list[Tensor | None] = [None] * len(sizes)
        for places, batch in groups:
            out = self._pictures(batch)
            if len(groups) == 1:
                return self._named(out.flatten(0, 1), sizes, counts)
            for place, pixels in zip(places, out, strict=True):
                made[place] = pixels
        found = [pixels for pixels in made if pixels is not None]
        if len({pixels.shape[1:] for pixels in found}) > 1:
            raise PruneError(
                f"{recipe.name}: pictures of different sizes ({_listed(sizes)}) stay different after "
                "its resize, so they make no batch. Give frames of one size, or set do_center_crop."
            )
        return self._named(torch.cat(found), sizes, counts)

    def _grouped(
        self, frames: Any
    ) -> tuple[list[tuple[list[int], Tensor]], list[tuple[int, int]], list[int]]:
        """Batches ``(n, H, W, 3)`` on the device with their places; sizes of all; pictures per sample."""
        if isinstance(frames, Tensor | np.ndarray):
            whole = self._checked(frames, (4, 5), "frames")
            if whole.dim() == 4:
                whole = whole[None]
            counts = [whole.shape[1]] * whole.shape[0]
            batch = whole.flatten(0, 1)
            sizes = [(batch.shape[1], batch.shape[2])] * batch.shape[0]
            self._some(sizes, counts)
            return [(list(range(len(sizes))), batch)], sizes, counts
        nested = [list(each) if isinstance(each, Sequence) else each for each in frames]
        if nested and not isinstance(nested[0], list):
            nested = [nested]
        flat, counts = [], []
        for b, sample in enumerate(nested):
            if not isinstance(sample, list):
                raise PruneError(
                    f"frames[{b}] is a picture beside lists. Give one list per sample, or one list."
                )
            flat += [self._checked(each, (3,), f"frames[{b}][{v}]") for v, each in enumerate(sample)]
            counts.append(len(sample))
        sizes = [(each.shape[0], each.shape[1]) for each in flat]
        self._some(sizes, counts)
        by_size: dict[tuple[int, int], list[int]] = {}
        for place, size in enumerate(sizes):
            by_size.setdefault(size, []).append(place)
        return [(p, torch.stack([flat[i] for i in p])) for p in by_size.values()], sizes, counts

    def _some(self, sizes: list[tuple[int, int]], counts: list[int]) -> None:
        if not counts or 0 in counts:
            raise PruneError(f"frames hold {counts} pictures per sample. Give every sample one at least.")
        if any(0 in size for size in sizes):
            raise PruneError(
                f"frames have an empty picture ({_listed(sizes)}). Give pictures of one pixel at least."
            )

    def _checked(self, frames: Any, dims: tuple[int, ...], where: str) -> Tensor:
        if isinstance(frames, np.ndarray):
            # torch takes neither read-only memory (PIL's) nor negative strides (a flipped view).
            writable = frames.flags.writeable and min(frames.strides, default=0) >= 0
            frames = torch.from_numpy(frames if writable else frames.copy())
        if not isinstance(frames, Tensor):
            raise PruneError(
                f"{where} is a {type(frames).__name__}. Give uint8 tensors or numpy arrays "
                "(np.asarray(picture))."
            )
        if frames.dtype != torch.uint8:
            raise PruneError(f"{where} is {frames.dtype}, not uint8. Give levels 0..255 as uint8.")
        if frames.dim() not in dims or frames.shape[-1] != 3:
            want = "(B, V, H, W, 3) or (V, H, W, 3)" if 5 in dims else "(H, W, 3)"
            raise PruneError(f"{where} has shape {tuple(frames.shape)}. Give RGB frames as {want}.")
        return frames.to(self.device, non_blocking=True)

    def _pictures(self, frames: Tensor) -> Tensor:
        """``(n, H, W, 3)`` uint8 -> ``(n, parts, ...)``: the rows of ``pixel_values`` of each picture."""
        recipe = self.recipe
        pictures = levels(frames)
        if recipe.tiles is not None:
            pictures = self._tiled(pictures)
        else:
            edge = max(pictures.shape[2:])
            height, width = self._target(*((edge, edge) if recipe.pad is not None else pictures.shape[2:]))
            if recipe.pad is not None:
                if pictures.shape[2] < edge and self._resize.rows_first(edge, edge, height, width):
                    # Bars above and below are the same after the pass along rows: they can wait for it.
                    pictures = self._resize.rows(pictures, width)
                pictures = self._padded(pictures, edge)
            pictures = self._resize(pictures, height, width)[:, None]
        if recipe.crop is not None:
            pictures = self._cropped(pictures)
        pictures = self._normal(pictures)
        if recipe.kind == "patches":
            return self._patches(pictures[:, 0])
        return pictures[:, :, None] if recipe.kind == "onevision" else pictures

    def _target(self, height: int, width: int) -> tuple[int, int]:
        recipe = self.recipe
        if recipe.size is not None:
            return recipe.size
        if recipe.shortest is not None:
            long = int(recipe.shortest * max(height, width) / min(height, width))
            return (recipe.shortest, long) if height < width else (long, recipe.shortest)
        if recipe.pixels is not None:
            stock = importlib.import_module("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
            try:
                found = stock.smart_resize(height, width, recipe.patch[0] * recipe.patch[1], *recipe.pixels)
            except ValueError as error:
                raise PruneError(
                    f"{recipe.name}, frame of {height}x{width}: {error}. Cut the frame first."
                ) from None
            return int(found[0]), int(found[1])
        return height, width

    def _padded(self, pictures: Tensor, edge: int) -> Tensor:
        """Bars around pictures: above and below if they are lower than ``edge``, else left and right."""
        n, channels, height, width = pictures.shape
        new_width = width if height < edge else edge
        if (height, width) == (edge, new_width):
            return pictures
        bars = self._constant(("pad",), lambda: torch.tensor(self.recipe.pad, dtype=torch.float32))
        padded = bars.view(1, channels, 1, 1).expand(n, channels, edge, new_width).clone()
        top, left = (edge - height) // 2, (new_width - width) // 2
        padded[:, :, top : top + height, left : left + width] = pictures
        return padded

    def _tiled(self, pictures: Tensor) -> Tensor:
        """``(n, 3, H, W)`` -> ``(n, tiles, 3, h, w)``: by row and column, a thumbnail after several."""
        assert self.recipe.size is not None and self.recipe.tiles is not None
        height, width = self.recipe.size
        stock = importlib.import_module("transformers.models.got_ocr2.image_processing_pil_got_ocr2")
        columns, rows = stock.get_optimal_tiled_canvas(
            tuple(pictures.shape[2:]), (height, width), *self.recipe.tiles
        )
        canvas = self._resize(pictures, rows * height, columns * width)
        tiles = canvas.reshape(-1, 3, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        if rows * columns == 1:
            return tiles
        return torch.cat([tiles, self._resize(pictures, height, width)[:, None]], 1)

    def _cropped(self, pictures: Tensor) -> Tensor:
        assert self.recipe.crop is not None
        (height, width), (crop_height, crop_width) = pictures.shape[-2:], self.recipe.crop
        if crop_height > height or crop_width > width:
            raise PruneError(
                f"{self.recipe.name} with crop_size={self.recipe.crop}: larger than the resized picture "
                f"({height}x{width}), and the padding this needs is not reproduced. Use the stock processor."
            )
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
        return pictures[..., top : top + crop_height, left : left + crop_width]

    def _normal(self, pictures: Tensor) -> Tensor:
        """Rescale in float64, round to float32, normalise in float32: the stock numbers to the bit."""
        recipe = self.recipe
        if recipe.scale is not None:
            pictures = pictures.to(torch.float64).mul_(recipe.scale).to(torch.float32)
        if recipe.mean is not None:
            mean = self._constant(("mean",), lambda: torch.tensor(recipe.mean, dtype=torch.float32))
            std = self._constant(("std",), lambda: torch.tensor(recipe.std, dtype=torch.float32))
            pictures = (pictures - mean.view(3, 1, 1)).div_(std.view(3, 1, 1))
        return pictures.to(self.dtype)

    def _patches(self, pictures: Tensor) -> Tensor:
        """``(n, 3, H, W)`` -> ``(n, patches, 3*t*p*p)``: patches of one merged token side by side."""
        patch, merge, frames = self.recipe.patch
        n, channels, height, width = pictures.shape
        if height % (patch * merge) or width % (patch * merge):
            raise PruneError(
                f"{self.recipe.name} without do_resize: frames of {height}x{width} are no multiple of "
                f"{patch * merge}. Cut them to one, or set do_resize on the processor."
            )
        cells = pictures.reshape(
            n, channels, height // patch // merge, merge, patch, width // patch // merge, merge, patch
        )
        cells = cells.permute(0, 2, 5, 3, 6, 1, 4, 7)[..., None, :, :]
        cells = cells.expand(*cells.shape[:6], frames, patch, patch)  # a still picture, repeated in time
        return cells.reshape(n, -1, channels * frames * patch * patch)

    def _named(self, pixels: Tensor, sizes: list[tuple[int, int]], counts: list[int]) -> dict[str, Tensor]:
        out = {"pixel_values": pixels}
        if self.recipe.kind == "onevision":
            out["image_sizes"] = self._whole("image_sizes", [list(size) for size in sizes])
            out["batch_num_images"] = self._whole("batch_num_images", counts)
        elif self.recipe.kind == "patches":
            patch = self.recipe.patch[0]
            grids = [[1, h // patch, w // patch] for h, w in (self._target(*size) for size in sizes)]
            out["image_grid_thw"] = self._whole("image_grid_thw", grids)
        return out

    def _whole(self, name: str, rows: list[Any]) -> Tensor:
        return self._constant((name, str(rows)), lambda: torch.tensor(rows, dtype=torch.int64))

    def _constant(self, key: Hashable, make: Any) -> Tensor:
        if key not in self._constants:
            self._constants[key] = make().to(self.device)
        return self._constants[key]


def _listed(sizes: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{h}x{w}" for h, w in dict.fromkeys(sizes))
