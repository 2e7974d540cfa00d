"""A model of a published size with random weights, and its inputs: kept until another one is asked for."""

from __future__ import annotations

from typing import Any

import torch

from prune2drive.profiling.room import check_room
from prune2drive.profiling.shapes import SHAPES, build_config, build_inputs, build_model

from .setting import Setting
from .sheet import free


class Bench:
    """Builds models one after the other: two of 8 billion parameters would not fit beside their caches."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._model: Any = None
        self._config = ""

    def model(self, shape: str) -> Any:
        """The model of a published size; the same one for sizes that differ in their pictures only."""
        s = self.setting
        config = build_config(shape, self._layers(shape)).to_json_string()
        if config != self._config:
            self._model, self._config = None, ""
            free()
            check_room(shape, s.torch_dtype, s.target, self._layers(shape))
            self._model = build_model(shape, s.torch_dtype, s.target, s.attn, layers=self._layers(shape))
            self._config = config
        return self._model

    def inputs(self, shape: str, batch: int = 1, cameras: int = 6) -> dict[str, torch.Tensor]:
        """A prompt of noise pictures, on the device."""
        s = self.setting
        return build_inputs(shape, batch, cameras, s.text_tokens, s.torch_dtype, s.target)

    def _layers(self, shape: str) -> int | None:
        if self.setting.layers is None:
            return None
        return min(self.setting.layers, SHAPES[shape].text["num_hidden_layers"])

    @property
    def weights(self) -> int:
        """Bytes of the parameters of the model that is built."""
        return sum(p.nbytes for p in self._model.parameters())
