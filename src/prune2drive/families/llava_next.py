"""LLaVA-NeXT: a base picture, then the unpadded grid of its tiles, a newline token ending each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
    unpad_image,
)

from ..errors import PruneError
from ..tokens import Segment
from .base import Family, Prompt, Size
from .llava import given_size


class LlavaNext(Family):
    """Anyres tiles: ``side*side`` base tokens, then ``rows*(cols+1)``; newline tokens are structure."""

    @property
    def side(self) -> int:
        vision = self.config.vision_config
        return vision.image_size // vision.patch_size

    def segments(
        self, prompt: Prompt, row: int, number: int, start: int, length: int, size: Size | None
    ) -> Sequence[Segment]:
        base = Segment(0, (self.side, self.side))
        rest = length - base.length
        if rest <= 1:  # one tile only: at most a single newline after the base picture
            return [base]
        picture = given_size(prompt, number)
        if picture is None:
            raise PruneError(
                f"image {number}: {length} tokens of tiles need image_sizes to be laid out; pass it"
            )
        rows, cols = self.fine_grid(picture)
        if rows * (cols + 1) != rest:
            raise PruneError(
                f"image {number} of {picture[0]}x{picture[1]} px: expected "
                f"{rows} rows of {cols} tokens and a "
                f"newline after the {base.length} base tokens, found {rest}; does image_sizes belong to it?"
            )
        fine = Segment(base.length, (rows, cols), stride=cols + 1)
        return [Segment(0, base.grid, thumbnail=True), fine]

    def fine_grid(self, picture: Size) -> tuple[int, int]:
        """Rows and columns of the tiled grid after its padding is cut off."""
        height_width = [picture[1], picture[0]]
        down, across = get_anyres_image_grid_shape(
            height_width, self.config.image_grid_pinpoints, self.config.vision_config.image_size
        )
        # A tensor without storage: only the shape that unpadding leaves is wanted.
        canvas = torch.empty(1, down * self.side, across * self.side, device="meta")
        rows, cols = unpad_image(canvas, height_width).shape[1:]
        return rows, cols

    def per_token(self, values: Tensor, encoder_kwargs: dict[str, Any], out: Any) -> Tensor:
        counts = self.tile_counts(encoder_kwargs)
        tiles = values.reshape(sum(counts), -1, values.shape[-1])
        # The model's own packing, with a newline of zeros.
        packed, _ = self.core.pack_image_features(
            tiles.split(counts),
            encoder_kwargs["image_sizes"],
            image_newline=values.new_zeros(values.shape[-1]),
            **self.packing(encoder_kwargs),
        )
        return torch.cat(list(packed))

    def tile_counts(self, encoder_kwargs: dict[str, Any]) -> list[int]:
        """Tiles of each picture, the base picture included."""
        vision, pins = self.config.vision_config, self.config.image_grid_pinpoints
        sizes = encoder_kwargs["image_sizes"]
        return [int(image_size_to_num_patches(size, pins, vision.image_size)) for size in sizes]

    def packing(self, encoder_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Options of the model's own packing."""
        name = "vision_feature_select_strategy"
        return {name: self.encoder_option(name, encoder_kwargs)}
