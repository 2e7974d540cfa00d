"""What layer stages see besides hidden states: collected while the prefill runs, gathered when they choose.

Queries and keys are noted as a layer's own attention receives them, so every family's projections, norms
and rotary positions are its own; only the few rows that a method asks for become probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..families.base import Family
from ..families.probe import Probe, watch
from ..layer_pruners.base import LayerPruner
from ..tokens import READS_QUESTION, Signal, Signals
from .attention import Seen, attention_rows, rope_rows
from .bias import Rope
from .run import Plan, Run, places, sample_rows
from .sources import check_text

BEFORE = frozenset({Signal.ATTENTION, Signal.LAST_ATTENTION, Signal.KEYS, Signal.ROPE})
"""Signals of the layer before the stage's."""


class LayerSignals:
    """The probes and notes of a model's layer stages.

    ``current`` is the prefill that is going on, None outside one.
    """

    def __init__(self, family: Family, layers: Sequence[nn.Module], pruners: Sequence[LayerPruner]) -> None:
        self.family, self.stack, self.layers = family, family.language_model, layers
        self.current: Run | None = None
        self.noted = {p.layer - 1 for p in pruners if Signal.PREVIOUS in p.needs}
        self.noted |= {0 for p in pruners if Signal.INPUT in p.needs}
        watched = sorted({p.layer - 1 for p in pruners if p.needs & BEFORE})
        for pruner in pruners:
            early = pruner.needs & (BEFORE | {Signal.PREVIOUS})
            if pruner.layer < 1 and early:
                raise PruneError(f"{pruner.name} reads the layer before its own: give it layer 1 or later")
        self.watched = set(watched)
        self._probes = [Probe(attention_of(layers[n]), self._note(n)) for n in watched]

    @property
    def first(self) -> int | None:
        """The first layer at which something is noted, None for none."""
        return min(self.noted | self.watched, default=None)

    def attach(self) -> None:
        for probe in self._probes:
            probe.attach()

    def detach(self) -> None:
        for probe in reversed(self._probes):
            probe.detach()
        self.current = None

    def _note(self, number: int) -> Any:
        def on_call(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, kwargs: dict[str, Any]
        ) -> None:
            run = self.current
            if run is not None and query.shape[2] == key.shape[2] == run.columns.shape[1]:
                run.seen[number] = seen_of(module, query, key, mask, kwargs)

        return on_call

    def enter(self, number: int, run: Run, hidden: Tensor, rope: Rope | None) -> None:
        """Note what a later stage needs of layer ``number``, whose input is ``hidden``."""
        if number in self.noted:
            run.hidden[number] = hidden.detach()
        if number in self.watched and rope is not None:
            run.ropes[number] = rope

    def gather(
        self,
        pruner: LayerPruner,
        plan: Plan,
        run: Run,
        hidden: Tensor,
        kwargs: dict[str, Any],
        repeat: int,
    ) -> Signals:
        """The signals of a stage at the input of its layer.

        Args:
            hidden: ``(R, n, D)`` entering the layer, nothing cut by this stage yet.
            kwargs: the layer's keywords, mask and rotary positions gathered to those ``n`` tokens.
        """
        needs, device = pruner.needs, hidden.device
        if not needs:
            return Signals(memory=plan.memory)
        sample = sample_rows(plan.views, device)
        width = run.length
        by_place = places(run.columns[::repeat], width)
        spots = by_place[sample, run.view_columns.clamp(min=0)]
        gone = run.view_columns < 0
        asked = plan.instruction.to(device)
        real = asked >= 0
        rows = by_place.gather(1, asked.clamp(min=0))
        valid = run.valid[::repeat]

        def of_views(by_sample: Tensor, at: Tensor = spots) -> Tensor:
            out = by_sample[sample, at]
            return out.masked_fill(gone.reshape(*gone.shape, *[1] * (out.dim() - 2)), 0)

        def of_text(by_sample: Tensor, at: Tensor = rows) -> Tensor:
            out = by_sample.gather(1, at[..., None].expand(-1, -1, by_sample.shape[-1]))
            return out.masked_fill(~real[..., None], 0)

        def of_rows(paid: Tensor, who: Tensor) -> Tensor:  # (S, H, T, n) -> (V, N, H, T)
            return of_views(paid.masked_fill(~who[:, None, :, None], 0).permute(0, 3, 1, 2))

        out: dict[str, Any] = {"norm": getattr(self.stack, "norm", None), "memory": plan.memory}
        if needs & READS_QUESTION:
            check_text(asked, pruner.name)
            out["text_mask"] = real
        if Signal.TEXT in needs:
            out["text"] = of_text(hidden[::repeat])
        before = run.seen.get(pruner.layer - 1)
        if needs & BEFORE and before is None:
            raise PruneError(
                f"{pruner.name}: layer {pruner.layer - 1} made no attention call that could be watched; "
                "load the model with attn_implementation='sdpa', 'eager' or 'flash_attention_2'"
            )
        if Signal.PREVIOUS in needs:
            out["previous"] = of_views(run.hidden[pruner.layer - 1].to(device)[::repeat])
        if Signal.INPUT in needs:
            first = run.hidden[0].to(device)[::repeat]
            out["input"] = of_views(first, run.view_columns.clamp(min=0))
            out["text_input"] = of_text(first, asked.clamp(min=0))
        if before is not None and Signal.ATTENTION in needs:
            out["attention"] = of_rows(attention_rows(before, rows, valid, repeat), real)
        if before is not None and Signal.LAST_ATTENTION in needs:
            last = (real.sum(-1, keepdim=True) - 1).clamp(min=0)
            row = attention_rows(before, rows.gather(1, last), valid, repeat)
            out["last_attention"] = of_rows(row, real.any(-1, keepdim=True))[..., 0]
        if before is not None and Signal.ROPE in needs:
            rope = run.ropes[pruner.layer - 1]
            if not self.family.rotates(self.layers[pruner.layer - 1]):
                rope = still(rope)
            alone = rope_rows(rope, rows, before.query.shape[-1], repeat)
            out["rope"] = of_rows(alone, real)[:, :, 0]
        if before is not None and Signal.KEYS in needs:
            keys = side_by_side(before.key[::repeat])
            out["keys"], out["text_keys"] = of_views(keys), of_text(keys)
        if Signal.OWN_ATTENTION in needs:
            own = self._ask(pruner.layer, hidden, kwargs)
            out["own_attention"] = of_rows(attention_rows(own, rows, valid, repeat), real)
        if Signal.OWN_KEYS in needs:
            rotated = self._ask(pruner.layer, hidden, kwargs)
            rest = {**kwargs, "position_embeddings": still(kwargs["position_embeddings"])}
            plain = self._ask(pruner.layer, hidden, rest)
            ratio = plain.query.shape[1] // plain.key.shape[1]
            out["own_queries"] = of_views(plain.query[::repeat].transpose(1, 2))
            out["own_keys"] = of_views(plain.key[::repeat].repeat_interleave(ratio, 1).transpose(1, 2))
            out["own_rotated_keys"] = of_views(side_by_side(rotated.key[::repeat]))
        return Signals(**out)

    def _ask(self, number: int, hidden: Tensor, kwargs: dict[str, Any]) -> Seen:
        """Queries and keys that a layer would make of ``hidden``; it stops there, its cache untouched."""
        layer: Any = self.layers[number]
        found: list[Seen] = []

        def stop(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, given: dict[str, Any]
        ) -> None:
            found.append(seen_of(module, query, key, mask, given))
            raise _Enough

        with watch(attention_of(layer), stop), torch.no_grad():
            try:
                layer.forward(hidden, **{**kwargs, "past_key_values": None, "use_cache": False})
            except _Enough:
                return found[0]
        raise PruneError(f"layer {number} made no attention call that could be watched")


class _Enough(Exception):
    """Ends a layer's forward once its queries and keys are known."""


def attention_of(layer: Any) -> nn.Module:
    """The attention module of a decoder layer."""
    found = getattr(layer, "self_attn", None)
    if found is None:
        raise PruneError(
            f"{type(layer).__name__} does not show its attention; use a method that needs no attention "
            "(method='tfps-layer')"
        )
    return found  # type: ignore[no-any-return]


def seen_of(module: nn.Module, query: Tensor, key: Tensor, mask: Any, kwargs: dict[str, Any]) -> Seen:
    """What an attention call was given, without its gradient."""
    scaling = kwargs.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    return Seen(
        query.detach(),
        key.detach(),
        mask.detach() if isinstance(mask, Tensor) else None,
        scaling,
        kwargs.get("softcap"),
    )


def still(rope: Rope) -> Rope:
    """Rotary positions that turn nothing."""
    return torch.ones_like(rope[0]), torch.zeros_like(rope[1])


def side_by_side(keys: Tensor) -> Tensor:
    """``(S, G, n, d)`` -> ``(S, n, G d)``."""
    return keys.transpose(1, 2).flatten(2)
