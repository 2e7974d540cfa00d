"""LLaVA-NeXT: a base picture, then the unpadded grid of its tiles, a newline token ending each row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

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
