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
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PruneError, did_you_mean
from ..families import find_family
from ..families.base import Family, Prompt, bound
from ..families.remote import RemoteFamily, Wrap
from ..families.vision import VISION, encode_with_signals
from ..layout import Layout, load_layout
from ..rig import load_rig
from ..tokens import PositionPolicy, Signal
from .caches import Shortened, continue_shortened, mark_cache
from .clock import Clock
from .cutter import CutPrompt, Cutter, check_filled
from .layers import LayerPruning
from .lengths import check_layer_stages, pad_id, prompt_lengths, prompt_mask, restore_prompt, setting
from .record import Record
from .rewrite import cut_positions, cut_prompt, next_positions, remap_logits_to_keep
from .run import Call, Plan, make_plan
from .sources import sources_of
from .stages import USUAL_DEPTH, Method, Retention, resolve_stages

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
    positions: PositionPolicy | str | None = None,
) -> Pruned:
    """Prune the visual tokens of ``model`` inside a ``with`` block.

    Args:
        model: a Hugging Face vision-language model of a family in `list_families`, PEFT-wrapped or not.
        method: a name from `list_methods`, a selector, a layer pruner, a schedule, or several selectors
            and pruners in the order in which a token meets them.
        retention: the share of each camera's tokens to keep, in (0, 1]; a mapping camera -> share with
            ``"*"`` for the rest; an allocator; or a preset file. With several methods one each, every
            share counted against the camera's original tokens; or one `LayerAveraged` for all of them,
            which is also what a single number means to a schedule.
        rig: name, file or `Rig` of the vehicle's cameras; None lets every picture be its own view.
        layout: how pictures map to cameras; default one picture per camera.
        cameras: names of the prompt's pictures in order (per sample if nested), if not the rig's order.
        positions: "keep" the position ids of the full prompt (default), "reindex" them without gaps
            (all that legacy models can do, and their default), or "calibrate": keep them and undo what
            distance takes from attention to visual tokens. Tokens that leave inside the language model
            leave gaps in any case.

    Returns:
        A context manager, also with ``attach()`` and ``detach()``; its ``record`` tells what the last
        call kept.

    Raises:
        PruneError: anything that cannot work, before the model is touched.
    """
    return Pruned(model, method, retention, rig=rig, layout=layout, cameras=cameras, positions=positions)


def unwrapped(model: nn.Module) -> Any:
    """The model itself: a PEFT model forwards to the one it holds, whose instance attributes it respects."""
    unwrap: Any = getattr(model, "get_base_model", None)
    return unwrap() if unwrap else model


@dataclass(eq=False)
class Prepared:
    """A call's inputs after the cut, and what has to be known while and after it runs."""

    inputs: dict[str, Any]
    plan: Plan | None
    shortened: Shortened
    record: Record


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
        positions: PositionPolicy | str | None = None,
    ) -> None:
        self.model: Any = unwrapped(model)
        if positions not in (None, *PositionPolicy):
            raise PruneError(
                "unknown position policy "
                f"{positions!r}.{did_you_mean(str(positions), [p.value for p in PositionPolicy])}"
            )
        found = find_family(self.model)
        self.remote = found if isinstance(found, RemoteFamily) else None
        self.family: Family = found  # type: ignore[assignment]
        self.positions = PositionPolicy(positions or ("reindex" if self.remote else "keep"))
        depth = None if self.remote else self.family.depth
        stages = resolve_stages(method, retention, depth or USUAL_DEPTH)
        self.cutter = Cutter(stages, load_rig(rig), load_layout(layout, cameras), depth)
        pruners, selector = self.cutter.layer_pruners, self.cutter.selector
        if self.remote:
            self.remote.check(self.positions, pruners)
        self._check_signals(found)
        calibrated = self.positions is PositionPolicy.CALIBRATE
        weighted = selector is not None and selector.proportional
        self._layers = None
        if pruners or calibrated or weighted:
            self._layers = LayerPruning(self.family, pruners, calibrated, weighted)
        self._record: Record | None = None
        self._own: dict[str, Any] = {}
        self._busy = False

    def _check_signals(self, family: Family | RemoteFamily) -> None:
        """Refuse a method that needs what the model's family cannot give."""
        for stage in self.cutter.stages:
            for signal in sorted(stage.method.needs):
                if (reason := family.lacks(signal)) is not None:
                    raise PruneError(
                        f"{stage.method.name} needs {signal} of {type(self.model).__name__}: {reason}"
                    )

    def __deepcopy__(self, memo: dict[int, Any]) -> Pruned:
        raise PruneError(
            "leave the prune context before copying the model: the copy would run this model's weights"
        )

    # -- attaching ------------------------------------------------------------------------------

    def attach(self) -> Pruned:
        """Wrap the model until `detach`."""
        if MARK in self.model.__dict__:
            raise PruneError(
                "the model is already pruned; detach() that first, or pass several methods to one prune()"
            )
        wrappers: dict[str, Wrap] = {"forward": self._wrap_forward, "generate": self._wrap_generate}
        if self.remote:
            wrappers = self.remote.wrappers(self._cut_remote)
        wrapped = {name: wrap(getattr(self.model, name)) for name, wrap in wrappers.items()}
        # Device maps put a forward of their own on the instance; it is wrapped and put back.
        self._own = {name: self.model.__dict__.get(name, _ABSENT) for name in wrapped}
        for name, wrapper in {**wrapped, MARK: self}.items():
            object.__setattr__(self.model, name, wrapper)
        try:
            if self._layers:
                self._layers.attach()
        except BaseException:
            self.detach()
            raise
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
    def works_inside(self) -> bool:
        """Whether something is done inside the language model, which inputs alone cannot express."""
        return self._layers is not None

    @property
    def needs(self) -> frozenset[Signal]:
        """Signals that a call's pictures must be encoded with: see `families.vision.encode_with_signals`."""
        selector = self.cutter.selector
        return VISION & selector.needs if selector is not None else frozenset()

    @property
    def record(self) -> Record:
        """What the last call kept and what choosing cost."""
        if self._record is None:
            raise PruneError(
                "nothing recorded yet: call model(...) or model.generate(...) with pictures first"
            )
        return self._record

    def rewrite(self, **inputs: Any) -> dict[str, Any]:
        """The shortened inputs of ``model(**inputs)``, to call the model with, attached or not.

        For decode loops of one's own: after ``out = model(**pruned.rewrite(**inputs))`` the next
        token's ``position_ids`` continue the full prompt under "keep". Stages inside the language
        model cannot be written as inputs.
        """
        if self._layers or self.remote:
            raise PruneError(
                "rewrite() gives inputs, and inputs cannot say what is done inside a language model (layer "
                "pruners, calibrated positions) or by legacy code; call the model inside the prune context"
            )
        prepared = self._prepare(inputs, generating=False)
        self._record = prepared.record
        return prepared.inputs

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Inside, calls pass through the wrappers as they are: they are parts of a pruned call."""
        was_busy, self._busy = self._busy, True
        try:
            yield
        finally:
            self._busy = was_busy

    # -- wrappers -------------------------------------------------------------------------------

    def _wrap_forward(self, own: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(own)

        @functools.wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            inputs = bound(signature, args, kwargs)
            if not self._to_prune(inputs, generating=False):
                with self._layers.bystander(inputs) if self._layers else nullcontext():
                    out = own(**inputs)
                rewritten = getattr((inputs.get("mm_encoder_outputs") or {}).get("image"), MARK, None)
                mark_cache(getattr(out, "past_key_values", None), rewritten)
                return out
            prepared = self._prepare(inputs, generating=False)
            out = self._call(own, prepared)
            mark_cache(getattr(out, "past_key_values", None), prepared.shortened)
            return out

        return forward

    def _wrap_generate(self, own: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(own)

        @functools.wraps(own)
        def generate(*args: Any, **kwargs: Any) -> Any:
            inputs = bound(signature, args, kwargs)
            if (ids := inputs.pop("inputs", None)) is not None:
                inputs["input_ids"] = ids
            if not self._to_prune(inputs, generating=True):
                return own(**inputs)
            inputs.pop("labels", None)
            if self._layers:
                check_layer_stages(inputs, self.model)
            ids = inputs["input_ids"]
            with torch.no_grad():
                prepared = self._prepare(inputs, generating=True)
            prepared.inputs |= prompt_lengths(inputs, self.model, prepared.shortened.removed)
            out = self._call(own, prepared)
            for cache in (getattr(out, "past_key_values", None), inputs.get("past_key_values")):
                mark_cache(cache, prepared.shortened)
            return restore_prompt(out, ids, prepared.inputs["input_ids"].shape[1])

        return generate

    def _call(self, own: Callable[..., Any], prepared: Prepared) -> Any:
        """Call the model's own method on prepared inputs; its own calls to ``forward`` pass through."""
        layers, was_busy = self._layers, self._busy
        before = layers.call if layers else None
        if layers:
            layers.call = Call.of(prepared.plan, prepared.inputs)
        self._busy = True
        try:
            out = own(**prepared.inputs)
        except BaseException:
            self._record = None
            raise
        finally:
            self._busy = was_busy
            if layers:
                layers.call = before
                layers.forget_run()
        # Only now, so that a failed call leaves no record and a nested one not the last word.
        self._record = prepared.record
        return out

    def _to_prune(self, inputs: dict[str, Any], generating: bool) -> bool:
        """Whether a call brings pictures to prune; a call that continues a prompt does not."""
        if inputs.get("pixel_values_videos") is not None:
            raise PruneError("videos are not pruned; pass their frames as pictures (PerCamera(frames=...))")
        cache = inputs.get("past_key_values")
        filled = cache is not None and cache.get_seq_length() > 0
        encoded = (inputs.get("mm_encoder_outputs") or {}).get("image")
        if inputs.get("pixel_values") is None and (self._busy or getattr(encoded, MARK, False)):
            return False  # a step of a call that was pruned when it came in, or inputs from rewrite()
        if inputs.get("pixel_values") is None and encoded is None:
            if filled:
                continue_shortened(inputs, cache, self.family, generating)
                return False
            raise PruneError(
                "the prompt has no images: pass pixel_values from the processor, "
                "or leave the prune context for text-only calls"
            )
        if filled:
            raise PruneError(
                "new images on top of a filled cache cannot be pruned; "
                "start a new prompt, or drop past_key_values"
            )
        if not isinstance(inputs.get("input_ids"), Tensor):
            raise PruneError("visual tokens are found by their ids: pass input_ids, not inputs_embeds")
        return True

    # -- the cut --------------------------------------------------------------------------------

    def _prepare(self, inputs: dict[str, Any], generating: bool) -> Prepared:
        """Encode, choose and cut: everything a call needs."""
        self._record = None
        family, ids = self.family, inputs["input_ids"]
        kwargs = dict(inputs)
        host_ids = ids.cpu()
        mask = prompt_mask(host_ids, inputs, self.model, generating)
        visual = host_ids == family.image_token_id

        names = family.encoder_names()
        encoder_kwargs = {k: kwargs.pop(k) for k in list(kwargs) if k in names}
        others = dict(kwargs.pop("mm_encoder_outputs", None) or {})
        given = others.pop("image", None)
        clock = Clock(ids.device)
        with clock:
            out = (
                copy.copy(given)
                if given is not None
                else encode_with_signals(family, encoder_kwargs, self.needs)
            )
        flat, entries = family.flatten(out.pooler_output)
        check_filled(visual, len(flat))
        prompt = Prompt(host_ids, mask, visual, entries, encoder_kwargs, self.cutter.picture_sizes)
        # Without a cache, generation drops an all-ones mask, and gaps in the positions would then be read
        # as packed sequences; one masked column keeps the mask.
        lone = generating and setting(inputs, self.model, "use_cache") is False
        sources = sources_of(self.cutter.selector, out, prompt, ids, self.model)
        flat = flat.to(ids.device)
        done = self.cutter(flat, family.images(prompt), mask, visual, lambda: clock.ms, lone, sources)
        full = family.positions(prompt, generating, {**kwargs, "position_ids": inputs.get("position_ids")})
        following = None
        if done.cut is not None and done.short is not None:
            out = family.hand_over(out, done.cut.kept, done.cut.features, done.cut.per_row)
            kwargs = cut_prompt(kwargs, done.short, pad_id(self.model, family.image_token_id))
            kwargs["position_ids"] = cut_positions(full.to(ids.device), done.short, self.positions)
            if isinstance(wanted := kwargs.get("logits_to_keep"), Tensor):
                kwargs["logits_to_keep"] = remap_logits_to_keep(wanted, done.short, ids.shape[1])
            if not family.mrope:
                following = next_positions(full, mask, kwargs["position_ids"], self.positions).to(ids.device)
                following = following + (family.first_position if generating else 0)
        elif family.mrope:
            kwargs["position_ids"] = full.to(ids.device)
        family.remember(kwargs.get("position_ids"), kwargs.get("attention_mask"))
        shortened = Shortened(ids.shape[1] - done.length, done.length, following)
        setattr(out, MARK, shortened)
        kwargs["mm_encoder_outputs"] = {**others, "image": out}
        plan = None
        if self._layers:
            plan = make_plan(
                prompt,
                done,
                self.cutter.layer_pruners,
                self.cutter.rig,
                ids.device,
                self._layers.weighs_before,
            )
        return Prepared(kwargs, plan, shortened, done.record)

    def _cut_remote(self, *args: Any, **kwargs: Any) -> CutPrompt:
        """The cutter for legacy models, which keep their own calling conventions."""
        done = self.cutter(*args, **kwargs)
        self._record = done.record
        return done
