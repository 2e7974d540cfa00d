"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: merged patches with three-axis positions (M-RoPE)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import PruneError
from ..tokens import Segment
from .base import Family, Prompt, Size, counted
from .packed import packed


class QwenVL(Family):
    """One container entry per picture; its grid is ``image_grid_thw`` after the spatial merge."""

    mrope = True
    tower = "visual"
    projector = "visual.merger"

    def segments(
        self, prompt: Prompt, row: int, number: int, start: int, length: int, size: Size | None
    ) -> Sequence[Segment]:
        merge = self.config.vision_config.spatial_merge_size
        times, high, wide = (int(x) for x in prompt.encoder_kwargs["image_grid_thw"][number])
        grid = (high // merge, wide // merge)
        return [Segment(t * grid[0] * grid[1], grid) for t in range(times)]

    def positions(self, prompt: Prompt, generating: bool, kwargs: dict[str, Any]) -> Tensor:
        if kwargs.get("position_ids") is not None:
            given = super().positions(prompt, generating, kwargs)
            if given.dim() == 3 and given.shape[0] == 3:
                given = torch.cat([counted(prompt.mask)[None], given])
            return given
        known = inspect.signature(self.core.get_rope_index).parameters
        if kwargs.get("mm_token_type_ids") is None and "mm_token_type_ids" in known:
            raise PruneError("mm_token_type_ids is missing; pass everything the processor returns")
        # On the host: the model's own routine reads single values, each of which would make a GPU wait.
        everything = {**prompt.encoder_kwargs, **kwargs}
        extra = {k: v.cpu() for k, v in everything.items() if k in known and isinstance(v, Tensor)}
        extra |= {"input_ids": prompt.ids, "attention_mask": prompt.mask.long()}
        three = self.core.get_rope_index(**extra)[0]
        return torch.cat([counted(prompt.mask)[None], three])

    def encode_frozen(self, encoder_kwargs: dict[str, Any]) -> Any:
        # Edges on the host, as `frozen_encoder_kwargs` leaves them, let equal windows run together.
        with packed(self.core.visual.config):
            return self.encode(encoder_kwargs)

    def frozen_encoder_kwargs(self, encoder_kwargs: dict[str, Any], device: torch.device) -> dict[str, Any]:
        out = super().frozen_encoder_kwargs(encoder_kwargs, device)
        try:
            from transformers import vision_utils
        except ImportError:  # an older transformers works all this out itself, on the host
            return out
        vision, grid = self.config.vision_config, out["image_grid_thw"]
        merge = vision.spatial_merge_size
        out["position_ids"] = vision_utils.get_vision_position_ids(grid, merge).to(device)
        edges = vision_utils.get_vision_cu_seqlens(grid)
        # Flash kernels read the edges of pictures on the device, all others split by them on the host.
        flash = "flash" in (vision._attn_implementation or "")
        place = device if flash else torch.device("cpu")
        out["cu_seqlens"] = edges.to(place)
        if flash:
            out["max_seqlen"] = int(edges.diff().max())
        if self.windowed:
            index, windows = vision_utils.get_vision_window_index(
                grid, merge, vision.window_size, vision.patch_size
            )
            out["window_index"], out["cu_window_seqlens"] = index.to(device), windows.to(place)
            if flash:
                out["max_window_seqlen"] = int(windows.diff().max())
        if (known := getattr(self.core.visual, "interpolation_mode", None)) is not None:
            indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
                grid,
                self.core.visual.num_grid_per_side,
                mode=known,
                align_corners=self.core.visual.interpolation_align_corners,
                spatial_merge_size=merge,
            )
            out["interp_indices"], out["interp_weights"] = indices.to(device), weights.to(device)
        return out

    def remember(self, positions: Tensor | None, mask: Tensor | None) -> None:
        # The model places a lone next token at "tokens so far + rope_deltas".
        assert positions is not None
        tokens = positions.shape[-1] if mask is None else mask.long().sum(-1)
        self.core.rope_deltas = (positions[1:].amax((0, 2)) + 1 - tokens)[:, None]

    # -- vision tower ---------------------------------------------------------------------------

    @property
    def windowed(self) -> bool:
        """The tower (Qwen2.5) attends in windows, and runs through them window by window."""
        return getattr(self.config.vision_config, "fullatt_block_indexes", None) is not None

    def feature_block(self, depth: int, encoder_kwargs: dict[str, Any]) -> int:
        """The last block; of a windowed tower the last that sees whole pictures (as released, the same)."""
        full = self.config.vision_config.fullatt_block_indexes if self.windowed else ()
        return max((n for n in full if n < depth), default=depth - 1)

    def per_token(self, values: Tensor, encoder_kwargs: dict[str, Any], out: Any) -> Tensor:
        # The processor sets the patches of one token one after the other.
        merge = self.config.vision_config.spatial_merge_size
        tokens = values.reshape(-1, merge**2, values.shape[-1]).mean(1)
        if not self.windowed:
            return tokens
        order = self.window_order(encoder_kwargs["image_grid_thw"]).to(tokens.device)
        return torch.empty_like(tokens).index_copy_(0, order, tokens)

    def window_order(self, grids: Tensor) -> Tensor:
        """int64 host ``(T,)``: which visual token stands where in a windowed tower."""
        vision = self.config.vision_config
        merge = vision.spatial_merge_size
        side = vision.window_size // merge // vision.patch_size
        out, start = [], 0
        for times, high, wide in grids.tolist():
            rows, cols = high // merge, wide // merge
            token = torch.arange(times * rows * cols)
            time, row, col = token // (rows * cols), token // cols % rows, token % cols
            window = (time * rows + row // side) * cols + col // side
            # Stable: inside a window tokens stay row by row.
            out.append(start + window.argsort(stable=True))
            start += len(token)
        return torch.cat(out)
