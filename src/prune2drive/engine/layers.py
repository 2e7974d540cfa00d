"""Tokens that leave in the middle of the decoder stack.

One forward pre-hook on every layer from the first stage on. In the prefill it cuts the hidden states
at a stage's layer and gathers what later layers need to the shorter sequence; in decode it only
rebuilds the mask, since every layer's cache has its own length. Layers below the first stage keep
full caches, and generation asks layer 0 how long the sequence is, so decode positions continue after
the full prompt by themselves.

Three ways to count a token are in use here: its *column* in the prompt as it entered the model, its
*place* in the rows as they are now (a row lists the column of each place in ``Run.columns``), and its
*index* among its view's tokens (``alive``), which is what records and methods speak of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..families.base import Family, Prompt
from ..layer_pruners.base import LayerPruner
from ..tokens import View, VisualTokens
from .choose import padded, select
from .clock import Clock
from .cutter import CutPrompt
from .masks import decode_mask, prefill_mask
from .record import Record
from .rewrite import is_right_padded, shorten

STATE = "_prune2drive_state"
"""Attribute of a cache that carries a sequence's cut through decode."""


@dataclass(eq=False)
class Plan:
    """A prompt as it enters the language model, and what each stage keeps of it.

    ``columns`` int64 ``(V, N)``: prompt column of each view's tokens, -1 beyond its end.
    ``alive`` int64 ``(V, N)``: the same tokens as indices into the full view.
    ``valid`` bool ``(B, L)``: real tokens. ``text``: tokens of each row that always stay.
    """

    length: int
    valid: Tensor
    text: list[int]
    right_padded: bool
    views: list[list[View]]
    lengths: list[int]
    columns: Tensor
    alive: Tensor
    stages: list[tuple[LayerPruner, list[int]]]
    record: Record
    recorded: set[int] = field(default_factory=set)


@dataclass(frozen=True, eq=False)
class Call:
    """One call from outside: its prompt, and what it asks of the output.

    ``restore``: put the last layer's output back to full length, since columns are asked for by place.
    ``wanted``: columns whose logits are asked for; they must still be there.
    """

    plan: Plan
    restore: bool
    wanted: Tensor | None

    @classmethod
    def of(cls, plan: Plan | None, inputs: dict[str, Any]) -> Call:
        assert plan is not None
        wanted = inputs.get("logits_to_keep")
        wanted = wanted if isinstance(wanted, Tensor) else None
        if wanted is not None and wanted.dtype is torch.bool:
            wanted = wanted.nonzero().flatten()
        return cls(plan, inputs.get("labels") is not None or wanted is not None, wanted)


@dataclass(eq=False)
class Run:
    """One sequence batch on its way through the stack: which prompt column each place holds."""

    length: int
    columns: Tensor
    valid: Tensor
    ragged: bool
    view_columns: Tensor
    alive: Tensor
    lengths: list[int]
    stages: int = 0
    """Stages done. Lengths do not tell: the longest row of a batch may be all text."""
    per_layer: dict[int, tuple[Tensor, Tensor, bool]] = field(default_factory=dict)
    masks: dict[Any, Any] = field(default_factory=dict)

    def move(self, device: torch.device) -> None:
        """Follow the hidden states: the layers of a model may live on several devices."""
        if self.columns.device != device:
            for name in ("columns", "valid", "view_columns", "alive"):
                setattr(self, name, getattr(self, name).to(device))


class LayerPruning:
    """The hooks of a model's layer stages; active while attached and a plan is set."""

    def __init__(self, family: Family, pruners: Sequence[LayerPruner]) -> None:
        self.stack = family.language_model
        if not hasattr(self.stack, "layers"):
            raise PruneError(
                f"{type(self.stack).__name__} does not show its decoder "
                "layers; choose before it (method='tfps')"
            )
        self.layers = list(self.stack.layers)
        self.by_layer = {pruner.layer: number for number, pruner in enumerate(pruners)}
        if list(self.by_layer) != sorted(self.by_layer) or len(self.by_layer) < len(pruners):
            raise PruneError(
                f"stages at layers {[p.layer for p in pruners]}; give them in ascending order, one each"
            )
        self.first = min(self.by_layer)
        if max(self.by_layer) >= len(self.layers):
            raise PruneError(
                f"layer {max(self.by_layer)} asked, the language model has layers 0 to {len(self.layers) - 1}"
            )
        self.call: Call | None = None
        self.run: Run | None = None
        self._handles: list[Any] = []
        self._deepstack: Any = None

    def attach(self) -> None:
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
        if self._deepstack is not None:
            del self.stack._deepstack_process
            self._deepstack = None
        self.call = self.run = None

    # -- hooks ----------------------------------------------------------------------------------

    def _enter(self, number: int) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            cache = kwargs.get("past_key_values")
            if getattr(cache, "is_compileable", False):
                raise PruneError(
                    "a static cache has one length for all layers; with a layer "
                    "pruner use the dynamic cache, or "
                    "choose before the language model (method='tfps')"
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
        run, call, self.run = self.run, self.call, None
        hidden = output[0] if isinstance(output, tuple) else output
        if run is None or call is None:
            return None
        run.masks.clear()  # the cache carries the run on through decode, which needs no prefill masks
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
            self.run = start(self.call.plan, hidden)
            if cache is not None:
                setattr(cache, STATE, self.run)
        run = self.run
        if run is None:
            return hidden
        run.move(hidden.device)
        if (stage := self.by_layer.get(number)) is not None:
            hidden = self._stage(stage, run, hidden)
        run.per_layer[number] = (run.columns, run.valid, run.ragged)
        given = kwargs.get("attention_mask")
        key = run.stages, id(given), hidden.device
        if key not in run.masks:
            here = given.to(hidden.device) if isinstance(given, Tensor) else given
            mask = prefill_mask(here, run.columns, run.valid, run.ragged, self._attention(number))
            run.masks[key] = mask, given  # the second keeps the id from being reused
        kwargs["attention_mask"] = run.masks[key][0]
        if (rope := kwargs.get("position_embeddings")) is not None:
            kwargs["position_embeddings"] = tuple(
                gather_rows(part.to(hidden.device), run.columns, -2) for part in rope
            )
        if isinstance(ids := kwargs.get("position_ids"), Tensor):
            kwargs["position_ids"] = gather_rows(ids.to(hidden.device), run.columns, -1)
        return hidden

    def _stage(self, stage: int, run: Run, hidden: Tensor) -> Tensor:
        assert self.call is not None
        plan = self.call.plan
        pruner, counts = plan.stages[stage]
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
        tokens = VisualTokens(features, alive, rows_of)
        clock = Clock(device)
        chosen = select(pruner, tokens, counts, clock)
        if chosen.features is not None:
            raise PruneError(
                f"{type(pruner).__name__} merges tokens; inside the language model that is not supported"
            )

        picks, beyond = sorted_picks(chosen.indices, old.shape[1])
        new = old.gather(1, picks).masked_fill(beyond, -1)
        run.alive = run.alive.gather(1, picks).masked_fill(beyond, -1)
        run.view_columns, run.lengths = new, counts
        if stage not in plan.recorded:
            plan.recorded.add(stage)
            plan.record.add_stage(counts, run.alive, lambda: clock.ms)

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
        return hidden.gather(1, short.columns[..., None].expand(-1, -1, hidden.shape[-1]))

    # -- decode ---------------------------------------------------------------------------------

    def _decode(self, number: int, run: Run, hidden: Tensor, cache: Any, kwargs: dict[str, Any]) -> None:
        columns, valid, ragged = run.per_layer[number]
        layer = self.layers[number]
        window = getattr(layer.self_attn, "sliding_window", None)
        if window is None:
            window = getattr(cache.layers[number], "sliding_window", None)
        kwargs["attention_mask"] = decode_mask(
            kwargs.get("attention_mask"),
            columns,
            valid,
            ragged,
            prompt=run.length,
            cached=cache.layers[number].keys.shape[-2],
            total=cache.get_seq_length(number) + hidden.shape[1],
            query=hidden.shape[1],
            window=window,
            attention=self._attention(number),
            dtype=hidden.dtype,
        )

    def _attention(self, number: int) -> str:
        return str(getattr(self.layers[number].self_attn.config, "_attn_implementation", None) or "eager")


def start(plan: Plan, hidden: Tensor) -> Run:
    """The state of a sequence batch at the first stage's layer: every column still in its place."""
    rows, length = hidden.shape[:2]
    batch = len(plan.text)
    if rows % batch or length < plan.length:
        raise PruneError(
            f"the language model got {rows} sequences of {length} tokens, "
            f"the prompt had {batch} of {plan.length}; "
            "with a layer pruner the prefill must be one piece (no prefill_chunk_size)"
        )
    grown = torch.ones(rows, length - plan.length, dtype=torch.bool, device=hidden.device)
    valid = torch.cat([plan.valid.to(hidden.device).repeat_interleave(rows // batch, 0), grown], 1)
    columns = torch.arange(length, device=hidden.device).expand(rows, length)
    return Run(length, columns, valid, True, plan.columns, plan.alive, plan.lengths)


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


def subset(views: Sequence[View], alive: Tensor, lengths: Sequence[int]) -> list[View]:
    """The views with only their remaining tokens; asks the device only after an earlier stage."""
    if all(len(view) == n for view, n in zip(views, lengths, strict=True)):
        return list(views)
    rows = alive.cpu()
    return [view.subset(row[:n]) for view, row, n in zip(views, rows, lengths, strict=True)]


def make_plan(prompt: Prompt, done: CutPrompt, pruners: Sequence[LayerPruner], device: torch.device) -> Plan:
    """The prompt as the layer stages meet it: after the cut before the language model, if any."""
    views = done.views
    where = [row.nonzero().flatten() for row in prompt.visual]
    columns = padded([where[row][view.index] for row, group in enumerate(views) for view in group]).to(device)
    lengths = [len(view) for group in views for view in group]
    alive = padded([torch.arange(n) for n in lengths]).to(device)
    valid = prompt.mask.to(device)
    text = [int(m.sum()) - sum(len(v) for v in group) for m, group in zip(prompt.mask, views, strict=True)]
    if done.cut is not None and done.short is not None:
        valid, lengths = done.short.valid, done.cut.counts
        order, beyond = sorted_picks(done.cut.indices, alive.shape[1])
        alive = order.masked_fill(beyond, -1)
        columns = places(done.short.columns, prompt.ids.shape[1])[
            sample_rows(views, device), columns.gather(1, order)
        ].masked_fill(beyond, -1)
    stages = list(zip(pruners, done.budgets[-len(pruners) :], strict=True))
    right = is_right_padded(prompt.mask)
    return Plan(valid.shape[1], valid, text, right, views, lengths, columns, alive, stages, done.record)


def sample_rows(views: Sequence[Sequence[View]], device: torch.device) -> Tensor:
    """Batch row of each view: int64 ``(V, 1)``."""
    return torch.tensor([row for row, group in enumerate(views) for _ in group]).to(device)[:, None]


def places(columns: Tensor, length: int) -> Tensor:
    """Inverse of a gather: ``(B, n)`` columns of ``length`` -> ``(B, length)`` places, 0 if dropped."""
    out = torch.zeros(columns.shape[0], length, dtype=torch.long, device=columns.device)
    return out.scatter_(1, columns, torch.arange(columns.shape[1], device=columns.device).expand_as(columns))


def sorted_picks(indices: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Picks ``(V, K)`` in ascending order, safe to gather with, and bool ``(V, K)`` where there is none."""
    order = indices.masked_fill(indices < 0, width).sort(-1).values
    return order.clamp(max=width - 1), order >= width
