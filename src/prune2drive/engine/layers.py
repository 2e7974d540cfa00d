"""Tokens that leave in the middle of the decoder stack, and keys that gain weight.

One forward pre-hook on every layer from the first one concerned. In the prefill it cuts the hidden states
at a stage's layer and gathers what later layers need to the shorter sequence; in decode it only
rebuilds the mask, since every layer's cache has its own length. Layers below the first stage keep
full caches, and generation asks layer 0 how long the sequence is, so decode positions continue after
the full prompt by themselves. Where keys gain weight (merged tokens, calibrated positions, see `bias`) the
same hooks add it to the mask, also when nothing but a cut before the language model came first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..families.base import Family
from ..layer_pruners.base import LayerPruner
from ..tokens import VisualTokens
from .bias import Rope, add_bias, key_bias, unit_rope
from .choose import select, with_gradient
from .clock import Clock
from .masks import decode_mask, prefill_mask
from .rewrite import shorten
from .run import (
    Call,
    Kept,
    Run,
    add_sizes,
    mark_visual,
    places,
    sample_rows,
    sorted_picks,
    start,
    subset,
)
from .signals import LayerSignals

STATE = "_prune2drive_state"
"""Attribute of a cache that carries a sequence's cut through decode."""


class LayerPruning:
    """The hooks of a model's layer stages; active while attached and a plan is set.

    ``calibrated``: undo distance for visual keys, and let merged tokens weigh as many as they are.
    ``weighted``: a method before the language model asks for the second by itself.
    """

    def __init__(
        self,
        family: Family,
        pruners: Sequence[LayerPruner],
        calibrated: bool = False,
        weighted: bool = False,
    ) -> None:
        self.stack = family.language_model
        if not hasattr(self.stack, "layers"):
            raise PruneError(
                f"{type(self.stack).__name__} does not show its decoder "
                "layers; choose before it (method='tfps')"
            )
        self.layers = list(self.stack.layers)
        self.calibrated = calibrated
        self.weighs_before = calibrated or weighted
        self._rotates = [family.rotates(layer) for layer in self.layers]
        self.by_layer = {pruner.layer: number for number, pruner in enumerate(pruners)}
        if list(self.by_layer) != sorted(self.by_layer) or len(self.by_layer) < len(pruners):
            raise PruneError(
                f"stages at layers {[p.layer for p in pruners]}; give them in ascending order, one each"
            )
        if min(self.by_layer, default=1) < 1:
            raise PruneError(
                "a layer pruner starts at layer 1 or later; before the first one stands a selector"
            )
        if max(self.by_layer, default=0) >= len(self.layers):
            raise PruneError(
                f"layer {max(self.by_layer)} asked, the language model has layers 0 to {len(self.layers) - 1}"
            )
        self.signals = LayerSignals(family, self.layers, pruners)
        begin = [*self.by_layer, self.signals.first]
        self.first = 0 if self.weighs_before else min(n for n in begin if n is not None)
        biased = self.weighs_before or any(p.proportional for p in pruners)
        if biased and "flash" in self._attention(0):
            what = "positions='calibrate'" if calibrated else "a method that gives merged tokens weight"
            raise PruneError(
                f"{what} adds to attention logits, which {self._attention(0)} cannot; "
                "load the model with attn_implementation='sdpa'"
            )
        self.call: Call | None = None
        self._handles: list[Any] = []
        self._deepstack: Any = None

    def attach(self) -> None:
        self.signals.attach()
        for number, layer in enumerate(self.layers):
            if number >= self.first:
                hook = self._enter(number)
                self._handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        self._handles.append(self.layers[-1].register_forward_hook(self._leave))
        if hasattr(self.stack, "_deepstack_process"):
            self._deepstack = self.stack._deepstack_process
            self.stack._deepstack_process = self._add_deepstack

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.signals.detach()
        if self._deepstack is not None:
            del self.stack._deepstack_process
            self._deepstack = None
        self.call = None

    @property
    def run(self) -> Run | None:
        """The prefill that is going on."""
        return self.signals.current

    @contextmanager
    def bystander(self, inputs: dict[str, Any]) -> Iterator[None]:
        """Leave a forward inside ``generate`` alone that is not of the prompt's pictures.

        Guidance reads a prompt of its own on the way; only calls that hand the pictures' features over
        are of the plan.
        """
        call, pictures = self.call, (inputs.get("mm_encoder_outputs") or {}).get("image")
        self.call = call if pictures is not None else None
        try:
            yield
        finally:
            self.call = call

    def forget_run(self) -> None:
        """Let go of a prefill, also of one that did not reach its last layer."""
        if self.run is not None:
            self.run.forget_prefill()
        self.signals.current = None

    # -- hooks ----------------------------------------------------------------------------------

    def _enter(self, number: int) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            cache = kwargs.get("past_key_values")
            if getattr(cache, "is_compileable", False):
                raise PruneError(
                    "a static cache has one length for all layers, and its masks are the model's own; with a "
                    "layer pruner or weighted keys use the dynamic cache, or choose before the language "
                    "model (method='tfps')"
                )
            if cache is None or cache.get_seq_length(number) == 0:
                if self.call is None:
                    forget(cache)
                    return None
                check_checkpointing(layer)
                hidden = self._prefill(number, hidden, cache, kwargs)
            else:
                run = getattr(cache, STATE, None)
                if run is None:
                    return None
                if cache.get_seq_length() < run.length:  # emptied and filled anew with something else
                    forget(cache)
                    return None
                self._decode(number, run, hidden, cache, kwargs)
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        return hook

    def _leave(self, layer: nn.Module, args: Any, output: Any) -> Any:
        run, call, self.signals.current = self.run, self.call, None
        hidden = output[0] if isinstance(output, tuple) else output
        if run is None or call is None:
            return None
        run.forget_prefill()
        if not call.restore or not run.stages:
            return None
        run.move(hidden.device)
        # Invalid places aim at a spare column that is cut off again.
        target = torch.where(run.valid, run.columns, run.length)
        place = torch.full((len(hidden), run.length + 1), -1, dtype=torch.long, device=hidden.device)
        place.scatter_(1, target, torch.arange(hidden.shape[1], device=hidden.device).expand_as(target))
        place = place[:, :-1]
        if call.wanted is not None and bool((place[:, call.wanted.to(place.device)] < 0).any()):
            raise PruneError(
                f"logits_to_keep={call.wanted.tolist()} names columns that "
                "were pruned; ask for others, or for "
                "the last ones with an integer"
            )
        # A dropped column answers with the last token still there before it, as in a short sequence.
        place = place.cummax(1).values.clamp(min=0)
        full = hidden.gather(1, place[..., None].expand(-1, -1, hidden.shape[-1]))
        return (full, *output[1:]) if isinstance(output, tuple) else full

    def _add_deepstack(self, hidden: Tensor, visual: Tensor, planes: Tensor) -> Tensor:
        """Qwen3-VL adds vision features after the first layers: to the tokens still there."""
        run = self.run
        if run is not None and run.stages:
            run.move(hidden.device)
            visual = visual.to(hidden.device)
            rank = visual.flatten().long().cumsum(0).reshape(visual.shape) - 1
            visual = visual.gather(1, run.columns) & run.valid
            planes = planes[rank.gather(1, run.columns)[visual].to(planes.device)]
        return self._deepstack(hidden, visual, planes)

    # -- prefill --------------------------------------------------------------------------------

    def _prefill(self, number: int, hidden: Tensor, cache: Any, kwargs: dict[str, Any]) -> Tensor:
        assert self.call is not None
        if number == self.first:
            self.signals.current = start(self.call.plan, hidden, self.calibrated)
            if cache is not None:
                setattr(cache, STATE, self.run)
        run = self.run
        if run is None:
            return hidden
        run.move(hidden.device)
        if (stage := self.by_layer.get(number)) is not None:
            hidden = self._stage(stage, run, hidden, kwargs)
        if run.shortened:
            kwargs |= self._fitting(number, run, hidden, kwargs)
        self.signals.enter(number, run, hidden, kwargs.get("position_embeddings"))
        return hidden

    def _fitting(self, number: int, run: Run, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """A layer's keywords for the tokens still there; what its decode steps need is noted."""
        out: dict[str, Any] = {}
        given, rope = kwargs.get("attention_mask"), kwargs.get("position_embeddings")
        # The model hands the same mask and positions to all layers of a kind: gather them once.
        key = run.stages, id(given), id(rope), hidden.device, self._rotates[number]
        if key not in run.masks:
            here = given.to(hidden.device) if isinstance(given, Tensor) else given
            if rope is not None:
                parts = [gather_rows(part.to(hidden.device), run.columns, -2) for part in rope]
                out["position_embeddings"] = tuple(parts)
            kept = self._kept(run, out.get("position_embeddings") if self._rotates[number] else None)
            mask = prefill_mask(
                here, run.columns, run.valid, run.ragged or kept.biased, self._attention(number)
            )
            bias = key_bias(kept.log_sizes, kept.visual, kept.unit, kept.unit)
            if bias is not None:
                mask = add_bias(mask, bias, hidden.dtype)
            # What was given is held too, which keeps its id from being reused.
            run.masks[key] = {"attention_mask": mask, **out}, kept, given, rope
        out, kept = run.masks[key][:2]
        run.per_layer[number] = kept
        if isinstance(ids := kwargs.get("position_ids"), Tensor):
            out = {**out, "position_ids": gather_rows(ids.to(hidden.device), run.columns, -1)}
        return out

    def _kept(self, run: Run, rope: Rope | None) -> Kept:
        sizes = None if run.log_sizes is None else run.log_sizes.gather(1, run.columns)
        if run.visual is None or rope is None:  # distance takes nothing where nothing is rotated
            return Kept(run.columns, run.valid, run.ragged, sizes)
        visual, unit = run.visual.gather(1, run.columns) & run.valid, unit_rope(rope)
        return Kept(run.columns, run.valid, run.ragged, sizes, visual, unit)

    def _stage(self, stage: int, run: Run, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        assert self.call is not None
        plan = self.call.plan
        pruner, asked = plan.stages[stage]
        batch, device = len(plan.text), hidden.device
        # Beams and return sequences repeat each sample's row; the prompt's states are the same in all.
        repeat = hidden.shape[0] // batch
        sample = sample_rows(plan.views, device)
        old = run.view_columns
        where = places(run.columns[::repeat], run.length)
        features = hidden[::repeat][sample, where[sample, old.clamp(min=0)]]
        features = features.masked_fill((old < 0)[..., None], 0)
        names = [view for views in plan.views for view in views]
        alive = subset(names, run.alive, run.lengths)
        rows_of = [row for row, views in enumerate(plan.views) for _ in views]
        clock = Clock(device)
        with clock:
            here = kwargs
            if pruner.needs and run.shortened:
                here = {**kwargs, **self._fitting(pruner.layer, run, hidden, kwargs)}
            signals = self.signals.gather(pruner, plan, run, hidden, here, repeat)
        tokens = VisualTokens(features, alive, rows_of, signals, plan.rig)
        chooser = Clock(device)
        chosen = select(pruner, tokens, fitting_counts(asked, run.lengths, rows_of), chooser)
        counts = list(chosen.counts)
        run.seen.pop(pruner.layer - 1, None)
        spots = old.gather(1, chosen.indices.clamp(min=0)).masked_fill(chosen.indices < 0, -1)
        if chosen.features is not None:
            merged = with_gradient(chosen.features, features, chosen.indices)
            hidden = write_rows(hidden, merged, spots, where, sample, repeat)
        if chosen.sizes is not None and (pruner.proportional or self.calibrated):
            add_sizes(run, plan.views, spots, chosen.sizes, repeat)

        picks, beyond = sorted_picks(chosen.indices, old.shape[1])
        new = old.gather(1, picks).masked_fill(beyond, -1)
        run.alive = run.alive.gather(1, picks).masked_fill(beyond, -1)
        lost = [n for n, k in zip(rows_of, zip(run.lengths, counts, strict=True), strict=True) if k[0] > k[1]]
        run.view_columns, run.lengths = new, counts
        if stage not in plan.recorded:
            plan.recorded.add(stage)
            plan.record.add_stage(counts, run.alive, lambda: clock.ms + chooser.ms, pruner.layer)

        stay = torch.ones(batch, run.length + 1, dtype=torch.bool, device=device)
        stay[sample, torch.where(old < 0, run.length, old)] = False
        stay[sample, torch.where(new < 0, run.length, new)] = True
        live = run.valid & stay.repeat_interleave(repeat, 0).gather(1, run.columns)
        kept = iter(counts)
        grown = run.length - plan.length
        rows = [
            n + grown + sum(next(kept) for _ in views) for n, views in zip(plan.text, plan.views, strict=True)
        ]
        short = shorten(live, max(rows), plan.right_padded)
        run.columns = run.columns.gather(1, short.columns)
        run.valid, run.ragged = short.valid, len(set(rows)) > 1
        run.stages += 1
        if self.calibrated and lost:
            mark_visual(run, plan.views, torch.tensor([n in lost for n in range(batch)]), repeat)
        return hidden.gather(1, short.columns[..., None].expand(-1, -1, hidden.shape[-1]))

    # -- decode ---------------------------------------------------------------------------------

    def _decode(self, number: int, run: Run, hidden: Tensor, cache: Any, kwargs: dict[str, Any]) -> None:
        kept = run.per_layer.get(number)
        if kept is None:
            return
        layer = self.layers[number]
        window = getattr(layer.self_attn, "sliding_window", None)
        if window is None:
            window = getattr(cache.layers[number], "sliding_window", None)
        cached, query = cache.layers[number].keys.shape[-2], hidden.shape[1]
        mask = decode_mask(
            kwargs.get("attention_mask"),
            kept.columns,
            kept.valid,
            kept.ragged,
            prompt=run.length,
            cached=cached,
            total=cache.get_seq_length(number) + query,
            query=query,
            window=window,
            attention=self._attention(number),
            dtype=hidden.dtype,
        )
        bias = cached_bias(cache, number, kwargs.get("position_embeddings"))
        if bias is not None:
            grown = cache.get_seq_length(number) + query - bias.shape[-1]
            bias = torch.nn.functional.pad(bias, (0, grown))[..., -(cached + query) :]
            mask = add_bias(mask, bias, hidden.dtype)
        kwargs["attention_mask"] = mask

    def _attention(self, number: int) -> str:
        # A watched layer has a copy of its config, with a probe's name in it: ask the stack.
        config = getattr(self.stack, "config", None) or self.layers[number].self_attn.config
        return str(getattr(config, "_attn_implementation", None) or "eager")


def cached_bias(cache: Any, number: int, rope: Rope | None) -> Tensor | None:
    """What the kept prompt's keys in a layer's cache gain: float32 ``(R, 1, m or 1, n)``, None for nothing.

    ``rope``: positions of the m tokens that ask, as the layer gets them.
    """
    run = getattr(cache, STATE, None)
    kept = None if run is None else run.per_layer.get(number)
    if kept is None:
        return None
    queries = unit_rope(rope) if kept.unit is not None and rope is not None else None
    if queries is not None and len(queries) == 1:  # positions that all rows share
        queries = queries.expand(len(kept.unit), -1, -1)
    return key_bias(kept.log_sizes, kept.visual, queries, kept.unit)


def fitting_counts(asked: Sequence[int], lengths: Sequence[int], samples: Sequence[int]) -> list[int]:
    """The counts asked, moved within a sample where an earlier stage left a view fewer tokens.

    Happens only behind methods that rank a sample's tokens together or split its total by themselves.
    """
    counts = [min(k, n) for k, n in zip(asked, lengths, strict=True)]
    for sample in dict.fromkeys(samples):
        views = [v for v, s in enumerate(samples) if s == sample]
        missing = sum(asked[v] - counts[v] for v in views)
        while missing and (room := [v for v in views if counts[v] < lengths[v]]):
            for v in room[:missing]:
                counts[v] += 1
            missing -= len(room[:missing])
    return counts


def write_rows(
    hidden: Tensor, features: Tensor, columns: Tensor, where: Tensor, sample: Tensor, repeat: int
) -> Tensor:
    """Hidden states with merged rows ``(V, K, D)`` written at prompt ``columns`` ``(V, K)``, -1 for none."""
    spare = hidden.shape[1]
    target = where[sample, columns.clamp(min=0)].masked_fill(columns < 0, spare)
    out = torch.cat([hidden, hidden.new_zeros(len(hidden), 1, hidden.shape[-1])], 1)
    for copy in range(repeat):
        out[sample * repeat + copy, target] = features.to(hidden.dtype)
    return out[:, :-1]


def check_checkpointing(layer: Any) -> None:
    """Refuse checkpointing that runs the hooks a second time in the backward pass (transformers < 5.23)."""
    if layer.training and getattr(layer, "gradient_checkpointing", False):
        base = next((c for c in type(layer).__mro__ if c.__name__ == "GradientCheckpointingLayer"), None)
        if base is not None and "__call__" in vars(base):
            raise PruneError(
                "this transformers version checkpoints a layer together with its hooks; with a layer pruner "
                "turn gradient checkpointing off, upgrade transformers, or use method='tfps'"
            )


def forget(cache: Any) -> None:
    """Drop the cut of a prompt that a cache no longer holds."""
    if hasattr(cache, STATE):
        delattr(cache, STATE)


def gather_rows(tensor: Tensor, columns: Tensor, dim: int) -> Tensor:
    """Gather along the sequence dimension ``dim`` (-1 or -2) with the batch just before it."""
    if dim == -1:
        tensor = tensor[..., None]
    lead = (*tensor.shape[:-3], columns.shape[0])
    index = columns[..., None].expand(*lead, *columns.shape[1:], tensor.shape[-1])
    out = tensor.expand(*lead, *tensor.shape[-2:]).gather(-2, index)
    return out[..., 0] if dim == -1 else out
