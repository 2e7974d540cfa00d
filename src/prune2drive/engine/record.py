"""What a pruned call kept, and what choosing cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import PruneError
from ..tokens import View


class ViewRecord(NamedTuple):
    """One camera in one sample: tokens before, tokens kept, indices of the kept ones (ascending)."""

    before: int
    kept: int
    indices: list[int]


class Record:
    """The account of the last call on a pruned model.

    Indices stay on the device until somebody reads them, so keeping the account costs the call
    nothing. ``sequence`` is the prompt length (padded) before and after the cut that precedes the
    language model.
    """

    def __init__(
        self,
        method: str,
        views: Sequence[Sequence[View]],
        sequence: tuple[int, int],
        structure: int,
        encode_ms: Callable[[], float],
        depth: int | None = None,
    ) -> None:
        self.method = method
        self.sequence = sequence
        self.structure = structure
        """Visual tokens that are row ends or separators: always kept, in no camera's count."""
        self.depth = depth
        """Layers of the language model, None where it does not show them."""
        self.layers: list[int] = []
        """The layer from which each stage's choice holds, 0 before the language model."""
        self._views = views
        self._kept: list[tuple[list[int], Tensor]] = []
        self._encode_ms = encode_ms
        self._select_ms: list[Callable[[], float]] = []

    def add_stage(
        self, counts: Sequence[int], indices: Tensor, select_ms: Callable[[], float], layer: int = 0
    ) -> None:
        """Take a stage's choice: ``indices`` ``(V, K)`` into the full views, row v valid to counts[v]."""
        self.layers.append(layer)
        self._kept.append((list(counts), indices.detach()))
        self._select_ms.append(select_ms)
        self.__dict__.pop("samples", None)

    @property
    def encode_ms(self) -> float:
        """Milliseconds in the vision tower and projector."""
        return self._encode_ms()

    @property
    def select_ms(self) -> float:
        """Milliseconds spent choosing, all stages, from features to indices."""
        return sum(ms() for ms in self._select_ms)

    @property
    def views(self) -> list[dict[str, View]]:
        """Per sample, camera -> `View` with the geometry of its tokens."""
        return [{view.name: view for view in row} for row in self._views]

    @cached_property
    def samples(self) -> list[dict[str, ViewRecord]]:
        """Per sample in batch order: camera -> (tokens before, tokens kept, kept indices)."""
        return self.stage(-1)

    def stage(self, number: int) -> list[dict[str, ViewRecord]]:
        """The same account after the given stage (0 the first); `samples` is the last."""
        if not self._kept:
            return [{} for _ in self._views]
        counts, indices = self._kept[number]
        table = indices.cpu()
        out, at = [], 0
        for row in self._views:
            sample = {}
            for view in row:
                picks = torch.sort(table[at, : counts[at]]).values.tolist()
                sample[view.name] = ViewRecord(len(view), counts[at], picks)
                at += 1
            out.append(sample)
        return out

    @property
    def tokens(self) -> tuple[int, int]:
        """Camera tokens of the whole batch before and after, structure not counted."""
        cells = [cell for sample in self.samples for cell in sample.values()]
        return sum(c.before for c in cells), sum(c.kept for c in cells)

    @property
    def layer_tokens(self) -> list[list[int]]:
        """Per sample, the camera tokens that each layer of the language model sees.

        Raises:
            PruneError: the model does not show its layers.
        """
        if self.depth is None:
            raise PruneError(f"{self.method}: this model does not show the layers of its language model")
        starts = [*self.layers, self.depth]
        out = []
        for number, row in enumerate(self._views):
            seen = [sum(len(view) for view in row)] * min(starts[0], self.depth)
            for stage in range(len(self._kept)):
                kept = sum(cell.kept for cell in self.stage(stage)[number].values())
                seen += [kept] * (starts[stage + 1] - starts[stage])
            out.append(seen)
        return out

    @property
    def layer_averaged(self) -> list[float]:
        """Per sample, the camera tokens that a layer sees on average; errors as `layer_tokens`."""
        return [sum(seen) / len(seen) for seen in self.layer_tokens]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "method": self.method,
            "sequence": {"before": self.sequence[0], "after": self.sequence[1]},
            "structure_tokens": self.structure,
            "encode_ms": self.encode_ms,
            "select_ms": self.select_ms,
            "layer_averaged": self.layer_averaged if self.depth else None,
            "samples": [
                {name: {"before": c.before, "kept": c.kept, "indices": c.indices} for name, c in row.items()}
                for row in self.samples
            ],
        }

    def to_json(self, **options: Any) -> str:
        """`to_dict` as a JSON string; options go to `json.dumps`."""
        return json.dumps(self.to_dict(), **options)

    def __str__(self) -> str:
        lines = [f"{self.method}: prompt {self.sequence[0]} -> {self.sequence[1]} tokens"]
        for number, sample in enumerate(self.samples):
            if len(self.samples) > 1:
                lines.append(f"sample {number}")
            width = max((len(name) for name in sample), default=0)
            for name, cell in sample.items():
                share = cell.kept / cell.before if cell.before else 0.0
                lines.append(f"  {name:<{width}}  {cell.before:>6} -> {cell.kept:<6} {share:6.1%}")
        before, after = self.tokens
        share = after / before if before else 0.0
        lines.append(f"  cameras together {before} -> {after} ({share:.1%})")
        if self.depth and any(self.layers) and self._views:
            mean = sum(self.layer_averaged) / len(self._views)
            whole = before / len(self._views)
            lines.append(f"  a layer sees {mean:.1f} of {whole:.0f} on average ({mean / whole:.1%})")
        lines.append(f"  encode {self.encode_ms:.1f} ms, choose {self.select_ms:.1f} ms")
        return "\n".join(lines)
