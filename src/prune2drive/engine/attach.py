"""One context manager that makes a stock model read fewer visual tokens.

`Pruned` wraps ``forward`` and ``generate`` of one instance. A call with pictures is rewritten before
it reaches the model: encode once, choose, cut the dropped placeholders out of the inputs, gather the
position ids, and hand the kept features over through the official keyword ``mm_encoder_outputs``.
Nothing inside the language model is touched, so caches, masks, beams and gradients are its own.
Stages inside the language model add hooks (see `layers`).
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ..allocators import Allocator, load_allocator
from ..errors import PruneError, did_you_mean
from ..families import find_family
from ..families.base import Family, Prompt
from ..layer_pruners.base import LayerPruner
from ..layout import Layout, load_layout
from ..registry import resolve_method
from ..rig import Rig, load_rig
from ..selectors.base import Selector
from ..tokens import PositionPolicy, View
from .choose import Cut, allocate, assign_views, cut_features, padded
from .clock import Clock
from .layers import LayerPruning, Plan
from .lengths import check_layer_stages, prompt_lengths, restore_prompt
from .record import Record
from .rewrite import cut_positions, cut_prompt, is_right_padded, new_lengths, remap_logits_to_keep, shorten

Method = str | Selector | LayerPruner
Retention = float | Mapping[str, float] | Allocator | str | Path

MARK = "_prune2drive"
"""Attribute of an attached model, and of encoder outputs that are already pruned."""

_ABSENT: Any = object()


def prune(
    model: nn.Module,
    method: Method | Sequence[Method] = "tfps",
    retention: Retention | Sequence[Retention] | None = None,
    *,
    rig: Any = None,
    layout: Layout | str | None = None,
    cameras: Sequence[str] | Sequence[Sequence[str]] | None = None,
    positions: PositionPolicy | str = "keep",
) -> Pruned:
    """Prune the visual tokens of ``model`` inside a ``with`` block.

    Args:
        model: a Hugging Face vision-language model of a family in `list_families`, PEFT-wrapped or not.
        method: a name from `list_methods`, a selector, a layer pruner, or several of them in the order
            in which a token meets them.
        retention: the share of each camera's tokens to keep, in (0, 1]; a mapping camera -> share with
            ``"*"`` for the rest; an allocator; or a preset file. With several methods one each, every
            share counted against the camera's original tokens.
        rig: name, file or `Rig` of the vehicle's cameras; None lets every picture be its own view.
        layout: how pictures map to cameras; default one picture per camera.
        cameras: names of the prompt's pictures in order (per sample if nested), if not the rig's order.
        positions: "keep" the position ids of the full prompt, or "reindex" them without gaps.

    Returns:
        A context manager, also with ``attach()`` and ``detach()``; its ``record`` tells what the last
        call kept.

    Raises:
        PruneError: anything that cannot work, before the model is touched.
    """
    return Pruned(model, method, retention, rig=rig, layout=layout, cameras=cameras, positions=positions)


@dataclass(frozen=True)
class Stage:
    """A method and the budget it works to."""

    method: Selector | LayerPruner
    allocator: Allocator


class Pruned(AbstractContextManager["Pruned"]):
    """A model and how to prune it. Made by `prune`; see there."""

    def __init__(
        self,
        model: nn.Module,
        method: Method | Sequence[Method] = "tfps",
        retention: Retention | Sequence[Retention] | None = None,
        *,
        rig: Any = None,
        layout: Layout | str | None = None,
        cameras: Sequence[str] | Sequence[Sequence[str]] | None = None,
        positions: PositionPolicy | str = "keep",
    ) -> None:
        # A PEFT model forwards to the model it holds, whose instance attributes it respects.
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        stages = resolve_stages(method, retention)
        if positions not in list(PositionPolicy):
            raise PruneError(f"unknown position policy {positions!r}.{did_you_mean(str(positions), PositionPolicy)}")
        self.positions = PositionPolicy(positions)
        self.rig: Rig | None = load_rig(rig)
        self.layout: Layout = load_layout(layout, cameras)
        self.selector = next((s for s in stages if isinstance(s.method, Selector)), None)
        self.layer_stages = [s for s in stages if isinstance(s.method, LayerPruner)]
        self.family: Family = find_family(self.model)
        self._layers = (
            LayerPruning(self.family, [s.method for s in self.layer_stages]) if self.layer_stages else None  # type: ignore[misc]
        )
        self._name = " + ".join(repr(s.method) for s in stages)
        self._record: Record | None = None
        self._own: dict[str, Any] = {}
        self._busy = False

    # -- attaching ------------------------------------------------------------------------------

    def attach(self) -> Pruned:
        """Wrap the model until `detach`."""
        if MARK in self.model.__dict__:
            raise PruneError("the model is already pruned; detach() that first, or pass several methods to one prune()")
        wrappers = {"forward": self._wrap_forward, "generate": self._wrap_generate}
        for name, wrap in wrappers.items():
            # Device maps put a forward of their own on the instance; it is wrapped and put back.
            self._own[name] = self.model.__dict__.get(name, _ABSENT)
            object.__setattr__(self.model, name, wrap(getattr(self.model, name)))
        if self._layers:
            self._layers.attach()
        object.__setattr__(self.model, MARK, self)
        return self

    def detach(self) -> None:
        """Give the model its own methods back; harmless if not attached."""
        if self.model.__dict__.get(MARK) is not self:
            return
        for name, own in self._own.items():
            if own is _ABSENT:
                object.__delattr__(self.model, name)
            else:
                object.__setattr__(self.model, name, own)
        object.__delattr__(self.model, MARK)
        self._own.clear()
        if self._layers:
            self._layers.detach()

    def __enter__(self) -> Pruned:
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    @property
    def record(self) -> Record:
        """What the last call kept and what choosing cost."""
        if self._record is None:
            raise PruneError("nothing recorded yet: call model(...) or model.generate(...) with pictures first")
        return self._record

    def rewrite(self, **inputs: Any) -> dict[str, Any]:
        """The shortened inputs of ``model(**inputs)``, for a model that is not attached.

        For decode loops of one's own: after ``out = model(**pruned.rewrite(**inputs))`` the next
        token's ``position_ids`` continue the full prompt under "keep". Stages inside the language
        model cannot be written as inputs.
        """
        if self._layers:
            raise PruneError("rewrite() covers stages before the language model; drop the layer pruner")
        return self._prepare(inputs, generating=False)[0]

    # -- wrappers -------------------------------------------------------------------------------

    def _wrap_forward(self, own: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(own)

        @functools.wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._busy:
                return own(*args, **kwargs)
            inputs = bound(signature, args, kwargs)
            if not self._to_prune(inputs):
                return own(**inputs)
            inputs, plan, _ = self._prepare(inputs, generating=False)
            return self._call(own, inputs, plan, scatter=inputs.get("labels") is not None)

        return forward

    def _wrap_generate(self, own: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(own)

        @functools.wraps(own)
        def generate(*args: Any, **kwargs: Any) -> Any:
            inputs = bound(signature, args, kwargs)
            if (ids := inputs.pop("inputs", None)) is not None:
                inputs["input_ids"] = ids
            if not self._to_prune(inputs):
                return own(**inputs)
            inputs.pop("labels", None)
            if self._layers:
                check_layer_stages(inputs, self.model)
            ids = inputs["input_ids"]
            with torch.no_grad():
                inputs, plan, cut = self._prepare(inputs, generating=True)
            inputs |= prompt_lengths(inputs, self.model, removed=cut)
            out = self._call(own, inputs, plan, scatter=False)
            return restore_prompt(out, ids, inputs["input_ids"].shape[1])

        return generate

    def _call(self, own: Callable[..., Any], inputs: dict[str, Any], plan: Plan | None, scatter: bool) -> Any:
        self._busy = True
        if self._layers:
            self._layers.plan, self._layers.scatter = plan, scatter
        try:
            return own(**inputs)
        finally:
            self._busy = False
            if self._layers:
                self._layers.plan = self._layers.run = None

    def _to_prune(self, inputs: dict[str, Any]) -> bool:
        """Whether a call brings pictures to prune; a call that continues a prompt does not."""
        if inputs.get("pixel_values_videos") is not None:
            raise PruneError("videos are not pruned; pass their frames as pictures (PerCamera(frames=...))")
        cache = inputs.get("past_key_values")
        filled = cache is not None and cache.get_seq_length() > 0
        encoded = (inputs.get("mm_encoder_outputs") or {}).get("image")
        if inputs.get("pixel_values") is None and encoded is None:
            if filled:
                return False
            raise PruneError(
                "the prompt has no images: pass pixel_values from the processor, or leave the prune context for "
                "text-only calls"
            )
        if getattr(encoded, MARK, False):
            return False
        if filled:
            raise PruneError(
                "new images on top of a filled cache cannot be pruned; start a new prompt, or drop past_key_values"
            )
        if not isinstance(inputs.get("input_ids"), Tensor):
            raise PruneError("visual tokens are found by their ids: pass input_ids, not inputs_embeds")
        return True

    # -- the cut --------------------------------------------------------------------------------

    def _prepare(self, inputs: dict[str, Any], generating: bool) -> tuple[dict[str, Any], Plan | None, int]:
        """Encode, choose and cut: the inputs to call the model with, the layer plan, columns removed."""
        family, kwargs = self.family, dict(inputs)
        ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
        if mask is not None and mask.dim() != 2:
            raise PruneError(f"attention_mask of shape {tuple(mask.shape)}: pass the processor's, (batch, length)")
        host_ids = ids.cpu()
        host_mask = mask.cpu().bool() if mask is not None else torch.ones_like(host_ids, dtype=torch.bool)
        visual = host_ids == family.image_token_id

        names = family.encoder_names()
        encoder_kwargs = {k: kwargs.pop(k) for k in list(kwargs) if k in names}
        given = (kwargs.pop("mm_encoder_outputs", None) or {}).get("image")
        clock = Clock(ids.device)
        with clock:
            out = copy.copy(given) if given is not None else family.encode(encoder_kwargs)
        flat, entries = family.flatten(out.pooler_output)
        if int(visual.sum()) != len(flat):
            raise PruneError(
                f"{int(visual.sum())} image placeholders in input_ids, {len(flat)} visual tokens from the pictures; "
                "pass exactly what the processor returned (was the prompt truncated?)"
            )
        flat = flat.to(ids.device)
        prompt = Prompt(host_ids, host_mask, visual, entries, encoder_kwargs, self._picture_sizes)
        images = family.images(prompt)
        views = assign_views(images, self.layout, self.rig)
        budgets = self._budgets(views)
        structure = sum(im.length for row in images for im in row) - sum(len(v) for row in views for v in row)

        short = None
        picks: Cut | None = None
        length = ids.shape[1]
        if self.selector is not None:
            picks = cut_features(flat, images, views, budgets[0], self.selector.method)  # type: ignore[arg-type]
            flat, kept, per_row = picks.features, picks.kept, picks.per_row
            length = max(new_lengths(host_mask, visual, per_row))
            if generating and kwargs.get("use_cache") is False and length < ids.shape[1]:
                # Without a cache an all-ones mask is dropped, and gaps in positions would be read as
                # packed sequences; one masked column keeps the mask.
                length += 1
            live = host_mask.to(ids.device, non_blocking=True)
            places = visual.flatten().nonzero().flatten().to(ids.device, non_blocking=True)
            keep = torch.zeros(len(flat), dtype=torch.bool, device=ids.device).index_fill_(0, kept, True)
            live = (live.flatten().index_put((places,), keep)).reshape(ids.shape)
            short = shorten(live, length, is_right_padded(host_mask))
            out = family.hand_over(out, kept, flat, per_row)
        positions = family.positions(prompt, generating, {**kwargs, "position_ids": inputs.get("position_ids")})
        if short is not None:
            kwargs = cut_prompt(kwargs, short, self._pad_id())
            kwargs["position_ids"] = cut_positions(positions.to(ids.device), short, self.positions)
            if isinstance(wanted := kwargs.get("logits_to_keep"), Tensor):
                kwargs["logits_to_keep"] = remap_logits_to_keep(wanted, short.columns)
        elif family.mrope:
            kwargs["position_ids"] = positions.to(ids.device)
        setattr(out, MARK, True)
        kwargs["mm_encoder_outputs"] = {"image": out}

        record = Record(self._name, views, (ids.shape[1], length), structure, lambda: clock.ms)
        if picks is not None:
            record.add_stage(picks.counts, picks.indices, picks.select_ms)
        self._record = record
        plan = self._plan(prompt, views, budgets, picks, short, record, ids.device) if self._layers else None
        return kwargs, plan, ids.shape[1] - length

    def _plan(
        self,
        prompt: Prompt,
        views: list[list[View]],
        budgets: list[list[int]],
        picks: Cut | None,
        short: Any,
        record: Record,
        device: torch.device,
    ) -> Plan:
        """The prompt as the layer stages will meet it: after the cut before the language model."""
        where = [row.nonzero().flatten() for row in prompt.visual]
        columns = padded([where[row][view.index] for row, group in enumerate(views) for view in group])
        lengths = [len(view) for group in views for view in group]
        alive = padded([torch.arange(n) for n in lengths])
        columns, alive = columns.to(device), alive.to(device)
        valid = prompt.mask.to(device)
        text = [int(m.sum()) - sum(len(v) for v in group) for m, group in zip(prompt.mask, views, strict=True)]
        if picks is not None and short is not None:
            sample = torch.tensor([row for row, group in enumerate(views) for _ in group]).to(device)[:, None]
            order = picks.indices.masked_fill(picks.indices < 0, alive.shape[1]).sort(-1).values
            beyond = order >= alive.shape[1]
            order = order.clamp(max=alive.shape[1] - 1)
            new = torch.zeros_like(prompt.ids).to(device)
            new.scatter_(1, short.columns, torch.arange(short.columns.shape[1], device=device).expand_as(short.columns))
            columns = new[sample, columns.gather(1, order)].masked_fill(beyond, -1)
            alive, lengths, valid = order.masked_fill(beyond, -1), picks.counts, short.valid
        stages = list(zip([s.method for s in self.layer_stages], budgets[-len(self.layer_stages) :], strict=True))
        right = is_right_padded(prompt.mask)
        length = valid.shape[1]
        return Plan(length, valid, text, right, views, lengths, columns, alive, stages, record)  # type: ignore[arg-type]

    def _budgets(self, views: list[list[View]]) -> list[list[int]]:
        """Tokens each stage keeps of each view, never more than the stage before it left."""
        stages = ([self.selector] if self.selector else []) + self.layer_stages
        budgets = [allocate(views, s.allocator, self.rig, s.method.rounding) for s in stages]
        names = [view.name for row in views for view in row]
        for before, after, stage in zip(budgets, budgets[1:], stages[1:], strict=False):
            for name, left, asked in zip(names, before, after, strict=True):
                if asked > left:
                    raise PruneError(
                        f"{name}: {type(stage.method).__name__} asked for {asked} tokens, the stage before left {left}; "
                        "every retention counts against the original tokens, so it must not grow"
                    )
        return budgets

    def _picture_sizes(self, row: int, count: int) -> Sequence[tuple[int, int] | None]:
        return self.layout.image_sizes(count, self.rig, row)

    def _pad_id(self) -> int:
        pad = getattr(getattr(self.model, "generation_config", None), "pad_token_id", None)
        pad = pad[0] if isinstance(pad, list) else pad
        return 0 if pad is None or pad == self.family.image_token_id else int(pad)


def resolve_stages(
    method: Method | Sequence[Method], retention: Retention | Sequence[Retention] | None
) -> list[Stage]:
    """Methods with their budgets: at most one before the language model, then layer stages in order."""
    several = isinstance(method, Sequence) and not isinstance(method, str)
    methods = [resolve_method(m) for m in (method if several else [method])]  # type: ignore[union-attr, list-item]
    if retention is None:
        raise PruneError("say how many tokens to keep: retention=0.10 keeps 10% of every camera")
    if several:
        if not isinstance(retention, Sequence) or isinstance(retention, str) or len(retention) != len(methods):
            raise PruneError(f"{len(methods)} methods need {len(methods)} retentions in a list, got {retention!r}")
        budgets = list(retention)
    else:
        budgets = [retention]  # type: ignore[list-item]
    if not methods:
        raise PruneError("no method given; see prune2drive.list_methods()")
    if any(isinstance(m, Selector) for m in methods[1:]):
        raise PruneError("only the first method may choose before the language model; the others need a layer")
    return [Stage(m, load_allocator(r)) for m, r in zip(methods, budgets, strict=True)]


def bound(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments by name."""
    arguments = dict(signature.bind_partial(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= arguments.pop(parameter.name, {})
    return arguments
