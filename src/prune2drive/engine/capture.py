"""The pruned call with static shapes: replayed as CUDA graphs, for calls that come again frame after frame.

A vehicle asks the same prompt about the same cameras at every frame. With fixed rates the pruned prompt has
the same length each time, so the call can be recorded once: tower and projector, choosing, prefill. What
changes from call to call is pixels and words.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..errors import PruneError
from ..families import find_family
from ..families.remote import RemoteFamily
from ..tokens import PositionPolicy
from .attach import MARK, Pruned, unwrapped
from .caches import Shortened, mark_cache
from .clock import Clock
from .decoding import FixedSteps, GrowingSteps, greedy
from .frozen import Frozen
from .graphs import Pool, Stage, Tensors, unchecked
from .record import Record

STAGES = ("encode", "choose", "prefill")


def capture(
    target: Pruned | nn.Module,
    inputs: Mapping[str, Any],
    *,
    graphs: bool | None = None,
    compile: bool = False,
    new_tokens: int = 0,
) -> Captured:
    """Record ``model(**inputs)``, pruned or not, to be replayed on new pixels and words.

        pruned = p2d.prune(model, method="tfps", retention=0.10, rig="nuscenes")
        captured = p2d.capture(pruned, inputs)
        for frame in drive:
            out = captured(pixel_values=frame)         # .logits (B, 1, vocabulary), .past_key_values
        answer = captured.generate(64, pixel_values=frame)

    Args:
        target: what `prune2drive.prune` returned, with a method that chooses before the language model from
            features alone and rates that do not depend on the input; or a bare model, for the unpruned call
            with the same treatment.
        inputs: what the processor gave for an example: ``input_ids``, ``pixel_values``, ... Calls to come
            must have the same shapes and the placeholders in the same places.
        graphs: record CUDA graphs. None: where the model is on one CUDA device, falling back to plain calls
            stage by stage (``captured.stages`` tells). True: raise where a stage cannot be recorded.
        compile: also ``torch.compile`` the tower and the prefill; the first call then takes a while.
        new_tokens: also record a decode step, with room for answers of so many tokens. Longer ones, and
            models whose layers keep only a window of keys, decode on a growing cache, step by step.

    Returns:
        A `Captured`. Outputs equal those of the pruned call up to the rounding of other kernels; without
        graphs and compilation they are the same operations.

    Raises:
        PruneError: legacy models, layer pruners, calibrated positions, methods that need more than features,
            models in training mode, and whatever the pruned call itself refuses.

    Memory: buffers of every stage stay allocated as long as the object lives.
    """
    return Captured(target, inputs, graphs=graphs, compile=compile, new_tokens=new_tokens)


class Captured:
    """A recorded call. Made by `capture`; see there."""

    def __init__(
        self,
        target: Pruned | nn.Module,
        inputs: Mapping[str, Any],
        *,
        graphs: bool | None = None,
        compile: bool = False,
        new_tokens: int = 0,
    ) -> None:
        pruned = target if isinstance(target, Pruned) else None
        self.model: Any = pruned.model if pruned else unwrapped(target)  # type: ignore[arg-type]
        found: Any = pruned.family if pruned else find_family(self.model)
        _check(self.model, found, pruned, inputs)
        self.pruned, self.family = pruned, found
        device = inputs["input_ids"].device
        recordable = _recordable(self.model, device)
        if graphs and not recordable:
            places = ", ".join(sorted({str(p.device) for p in self.model.parameters()}))
            raise PruneError(
                "graphs=True needs the whole model and its inputs on one CUDA device; input_ids is on "
                f"{device}, weights on {places}; leave graphs out for plain calls"
            )
        self.frozen = Frozen(
            found,
            inputs,
            pruned.cutter if pruned else None,
            pruned.positions if pruned else PositionPolicy.KEEP,
        )
        self._example = {k: v for k, v in inputs.items() if isinstance(v, Tensor)}
        record = recordable and graphs is not False
        pool = Pool() if record else None
        middle = self.frozen.choose if pruned else self.frozen.whole
        functions: dict[str, Callable[..., Tensors]] = {
            "encode": self.frozen.encode,
            "choose": middle,
            "prefill": self.frozen.prefill,
        }
        if compile:
            for name in ("encode", "prefill"):
                functions[name] = torch.compile(functions[name], dynamic=False)
        self._stages = {name: Stage(name, functions[name], record, pool) for name in STAGES}
        if pruned is None:  # nothing is done there
            self._stages["choose"].record = False
        self._clocks = {name: Clock(device) for name in (*STAGES, "decode")}
        self._record: Record | None = None
        self._steps: int | None = None
        self._fixed = FixedSteps(self.frozen, new_tokens, record, pool) if new_tokens > 1 else None
        self._prepare(inputs)
        if graphs:
            stages = list(self._stages.values())
            if self._fixed is not None and self._fixed.why_not is None:
                stages.append(self._fixed.stage)
            for stage in stages:
                if stage.record and not stage.recorded:
                    raise PruneError(f"{stage.name} cannot be recorded: {stage.how}") from stage.error

    @torch.no_grad()
    def _prepare(self, inputs: Mapping[str, Any]) -> None:
        self._pixels: Tensors = tuple(inputs[name].detach().clone() for name in self.frozen.names)
        self._ids = inputs["input_ids"].clone()
        with unchecked(), self._passing():
            self._encoded = self._stages["encode"].prepare(*self._pixels)
            self._cut = self._stages["choose"].prepare(self._ids, *self._encoded)
            self._read = self._stages["prefill"].prepare(*self._cut)
            # The cache as the recording left it: its tensors are the graph's.
            self._cache = self.frozen.cache
            if self._fixed is not None:
                first = self._read[0][:, -1:].argmax(-1)
                position = self.frozen.following(self._cut[2])[:, None]
                self._fixed.prepare(self._read, self._cut[1], first, position)

    @property
    def stages(self) -> dict[str, str]:
        """How each stage runs: "graph", "plain", or "plain: why it could not be recorded"."""
        decode = self._fixed.how if self._fixed is not None else "plain"
        return {name: stage.how for name, stage in self._stages.items()} | {"decode": decode}

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values after the prompt."""
        return sum(t.nbytes for t in self._read[1:])

    @property
    def length(self) -> int:
        """Prompt tokens that reach the language model, padding included."""
        return self.frozen.length

    @property
    def record(self) -> Record:
        """What the last call kept and how long it took to choose."""
        if self.pruned is None:
            raise PruneError("nothing is pruned here: the capture was made of a bare model")
        if self._record is None:
            raise PruneError("nothing recorded yet: call the captured object first")
        return self._record

    # -- calls ----------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(self, **inputs: Any) -> CausalLMOutputWithPast:
        """Run on new inputs; what is left out stays as it was in the last call.

        Args:
            inputs: ``pixel_values`` (host or device, the example's shape) and ``input_ids`` (other words,
                placeholders in the same places; on the host to spare a wait). Anything else the processor
                gives may be passed along and must equal the example's.

        Returns:
            ``logits`` ``(B, 1, vocabulary)`` of the last token and ``past_key_values``, the caller's own.

        Raises:
            PruneError: a shape, a placeholder or a fixed input differs from the example.
        """
        self._refresh(inputs)
        logits = self._read[0].clone()
        return CausalLMOutputWithPast(logits=logits, past_key_values=self._own_cache())

    def _refresh(self, inputs: Mapping[str, Any]) -> None:
        self.load(**inputs)
        self.encode()
        self.choose()
        self.prefill()

    @torch.no_grad()
    def load(self, **inputs: Any) -> None:
        """Check new inputs and copy them into the buffers; as in a call."""
        for name, value in inputs.items():
            if name not in self._example:
                raise PruneError(f"{name} was not among the captured inputs: {', '.join(self._example)}")
            example = self._example[name]
            if not isinstance(value, Tensor) or value.shape != example.shape:
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise PruneError(
                    f"{name} of shape {shape}, captured with {tuple(example.shape)}; "
                    "capture again for other sizes"
                )
            if name in self.frozen.names:
                self._pixels[self.frozen.names.index(name)].copy_(value, non_blocking=True)
            elif name == "input_ids":
                host = value.cpu()
                if not torch.equal(host == self.family.image_token_id, self.frozen.visual):
                    raise PruneError(
                        "input_ids has image placeholders elsewhere than captured; capture again"
                    )
                self._ids.copy_(value, non_blocking=True)
            elif not torch.equal(value.to(example.device), example):
                raise PruneError(f"{name} differs from what was captured; capture again")

    @torch.no_grad()
    def encode(self) -> None:
        """Run the tower and projector on the pixels in the buffers."""
        self._encoded = self._run("encode", *self._pixels)

    @torch.no_grad()
    def choose(self) -> None:
        """Choose among the features of the last `encode`, and shorten the prompt."""
        self._cut = self._run("choose", self._ids, *self._encoded)
        frozen, cutting = self.frozen, self.frozen.cutting
        if self.pruned is None or cutting is None:
            return
        at = 3 + len(frozen.per_token)
        encoding, choosing = self._clocks["encode"], self._clocks["choose"]
        self._record = self.pruned.cutter.record(
            cutting.images, cutting.views, (frozen.ids.shape[1], frozen.length), lambda: encoding.ms
        )
        self._record.add_stage(cutting.counts, self._cut[at].clone(), lambda: choosing.ms, 0)

    @torch.no_grad()
    def prefill(self) -> None:
        """Read the prompt as the last `choose` left it."""
        self._read = self._run("prefill", *self._cut)
        self.family.remember(self._cut[2], self._cut[1])

    def _run(self, name: str, *inputs: Tensor) -> Tensors:
        _check_free(self.model, self.pruned)
        with unchecked(), self._passing(), self._here(), self._clocks[name]:
            return self._stages[name](*inputs)

    def _own_cache(self) -> Any:
        """The prefill's cache, with tensors that the next call does not overwrite."""
        recorded = self._stages["prefill"].recorded
        cache = copy.copy(self._cache if recorded else self.frozen.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        for layer, keys, values in zip(cache.layers, self._read[1::2], self._read[2::2], strict=True):
            layer.keys, layer.values = (keys.clone(), values.clone()) if recorded else (keys, values)
        removed = self.frozen.ids.shape[1] - self.frozen.length
        following = None if self.family.mrope else self.frozen.following(self._cut[2])
        mark_cache(cache, Shortened(removed, self.frozen.length, following))
        return cache

    # -- answers --------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, max_new_tokens: int, *, eos_token_id: int | None = None, **inputs: Any) -> Tensor:
        """The greedy answer: int64 ``(B, n)`` new tokens, n at most ``max_new_tokens``.

        Rows that ended repeat ``eos_token_id`` (default: the model's; -1 for none). ``inputs`` as in a call.
        """
        if max_new_tokens < 1:
            raise PruneError(f"max_new_tokens={max_new_tokens}: ask for at least 1.")
        if not self.frozen.causal and not bool(self.frozen.mask[:, -1].all()):
            raise PruneError("the prompts are padded on the right, so answers cannot follow; pad on the left")
        self._refresh(inputs)
        fixed = self._fixed if self._fixed is not None and self._fixed.serves(max_new_tokens) else None
        if fixed is not None:
            fixed.begin(self._read)
        step = fixed or GrowingSteps(self.frozen, self._own_cache(), self._cut[1])
        first = self._read[0][:, -1:].argmax(-1)
        position = self.frozen.following(self._cut[2])
        with unchecked(), self._passing(), self._here(), self._clocks["decode"]:
            answer = greedy(first, position, step, max_new_tokens, self._ends(eos_token_id))
        self._steps = answer.shape[1] - 1
        return answer

    @property
    def decode_ms(self) -> float:
        """Milliseconds that the steps of the last `generate` took, those behind the first token."""
        if self._steps is None:
            raise PruneError("no answer yet: call generate() first")
        return self._clocks["decode"].ms if self._steps else 0.0

    def _ends(self, given: int | None) -> list[int]:
        if given is not None:
            return [] if given < 0 else [given]
        known = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        return [] if known is None else list(known) if isinstance(known, list | tuple) else [known]

    def _here(self) -> AbstractContextManager[Any]:
        """Inside, the model's GPU is the current one, whose streams clocks and replays go to."""
        device = self._ids.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def _passing(self) -> AbstractContextManager[None]:
        """Inside, a model that `prune` has wrapped takes calls as they are."""
        return self.pruned.passing() if self.pruned is not None else nullcontext()


def _recordable(model: Any, device: torch.device) -> bool:
    return device.type == "cuda" and {p.device for p in model.parameters()} == {device}


def _check_free(model: Any, pruned: Pruned | None) -> None:
    """Refuse a model that something else is pruning: its calls would be cut once more."""
    if model.__dict__.get(MARK) not in (None, pruned):
        raise PruneError("another prune() holds this model; leave its context before capturing or calling")


def _check(model: Any, family: Any, pruned: Pruned | None, inputs: Mapping[str, Any]) -> None:
    if isinstance(family, RemoteFamily):
        raise PruneError(
            f"{type(model).__name__} brings its own code, whose calls cannot be taken apart; "
            "use the transformers class of this architecture"
        )
    _check_free(model, pruned)
    if model.training:
        raise PruneError("the model is in training mode; call model.eval() first")
    for name in ("input_ids", "pixel_values"):
        if not isinstance(inputs.get(name), Tensor):
            raise PruneError(
                f"capture needs {name}; got {', '.join(inputs)}; pass everything the processor gives"
            )
    if pruned is None:
        return
    if pruned.works_inside:
        raise PruneError(
            "capture takes methods that choose before the language model; layer pruners, calibrated "
            "positions and weighted merged tokens change lengths or attention inside it"
        )
    selector = pruned.cutter.selector
    assert selector is not None
    if selector.needs:
        raise PruneError(
            f"{selector.name} needs {', '.join(sorted(selector.needs))} besides features, which a capture "
            "does not carry; capture a method of features alone, such as tfps or divprune"
        )
