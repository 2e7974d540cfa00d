"""The variants a measurement compares: how each is called, and what is timed of it."""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from . import flops as counting
from .counted import ONCE, flops_parts
from .memory import Peak
from .result import KEYS, TIMES
from .timing import clocked


class Side:
    """One variant: how it is called, and what was measured of it."""

    name = ""

    def __init__(self, model: Any, inputs: Mapping[str, Any]) -> None:
        self.model, self.inputs = model, dict(inputs)
        self.device = inputs["input_ids"].device
        self.times: dict[str, list[float]] = {name: [] for name in TIMES}
        self.peak = Peak(None, None)
        self.lengths: list[int] = []
        self.kv_bytes = 0
        self.cameras: dict[str, Any] = {}
        """Of the first sample: camera -> what the engine's record says of it."""

    # What the variants differ in.

    def context(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def prepare(self, count: bool = True) -> None:
        """Do, once and untimed, what prefills reuse; ``count`` its FLOPs, which `result` needs."""

    def repetition(self, new_tokens: int) -> None:
        raise NotImplementedError

    # What they share.

    def forward(self, kwargs: Mapping[str, Any]) -> Any:
        return self.model(**kwargs, use_cache=True, logits_to_keep=1)

    def whole_call(self) -> Any:
        with self.context():
            return self.forward(self.inputs)

    def timed(self, name: str, call: Callable[[], Any]) -> Any:
        spent, out = clocked(call, self.device)
        self.times[name].append(spent)
        return out

    def after_prefill(self, out: Any, kwargs: Mapping[str, Any], new_tokens: int) -> None:
        """Take the cache's size, then time steps on it, fed as ``generate`` feeds them."""
        layers = out.past_key_values.layers
        self.lengths = [layer.keys.shape[-2] for layer in layers]
        self.kv_bytes = sum(t.nbytes for layer in layers for t in (layer.keys, layer.values))
        mask = kwargs.get("attention_mask")
        mask = torch.ones_like(kwargs["input_ids"]) if mask is None else mask
        positions = kwargs.get("position_ids")
        token = out.logits[:, -1:].argmax(-1)
        for _ in range(new_tokens):
            mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], 1)
            step = {"input_ids": token, "attention_mask": mask, "past_key_values": out.past_key_values}
            if positions is not None:
                positions = positions[..., -1:] + 1
                step["position_ids"] = positions
            elif (deltas := getattr(self.model.base_model, "rope_deltas", None)) is not None:
                # M-RoPE models, given a mask alone, compute positions of the whole sequence again.
                step["position_ids"] = (mask.sum(-1, keepdim=True) - 1 + deltas).expand(3, -1, -1)
            out = self.timed("decode_ms_per_token", partial(self.forward, step))
            token = out.logits[:, -1:].argmax(-1)

    def result(self, unpruned: Unpruned) -> dict[str, Any]:
        median = {k: statistics.median(v) if v else None for k, v in self.times.items()}
        parts = flops_parts(self.model, self.inputs, unpruned, self)
        peak = self.peak.growth if self.peak.total is None else self.peak.total
        named = {
            **median,
            "peak_bytes": peak,
            "kv_bytes": self.kv_bytes,
            "flops": sum(v for k, v in parts.items() if k in ONCE) if parts else None,
            "tokens": self.lengths[-1],
        }
        return {
            **{key: named[key] for key in KEYS},
            "flops_parts": parts,
            "tokens_per_camera": {},
            "layer_averaged_tokens": counting.layer_averaged_tokens(self.lengths),
            "peak_growth_bytes": self.peak.growth,
            "spread": {k: {"min": min(v), "max": max(v), "runs": len(v)} for k, v in self.times.items() if v},
        }


class Unpruned(Side):
    name = "unpruned"

    def prepare(self, count: bool = True) -> None:
        core = self.model.base_model
        known = set(inspect.signature(core.get_image_features).parameters) - {"kwargs"}
        self.encoder_kwargs = {k: v for k, v in self.inputs.items() if k in known}
        self.rest = {k: v for k, v in self.inputs.items() if k != "pixel_values"}
        self.encode_flops, self.features = _counted(self.encode, count)

    def encode(self) -> Any:
        return self.model.base_model.get_image_features(**self.encoder_kwargs, return_dict=True)

    def repetition(self, new_tokens: int) -> None:
        self.timed("vision_ms", self.encode)
        self.times["select_ms"].append(0.0)
        kwargs = {**self.rest, "mm_encoder_outputs": {"image": self.features}}
        out = self.timed("prefill_ms", lambda: self.forward(kwargs))
        self.after_prefill(out, kwargs, new_tokens)
        del out
        self.timed("ttft_ms", lambda: self.forward(self.inputs))


class _Pruned(Side):
    name = "pruned"

    def __init__(self, model: Any, inputs: Mapping[str, Any], pruned: Any) -> None:
        super().__init__(model, inputs)
        self.handle = pruned

    def context(self) -> AbstractContextManager[Any]:
        return self.handle

    def timed_call(self) -> Any:
        """The whole call, and from the engine's account of it the parts."""
        out = self.timed("ttft_ms", lambda: self.forward(self.inputs))
        record = self.handle.record
        self.times["vision_ms"].append(record.encode_ms)
        self.times["select_ms"].append(record.select_ms)
        self.cameras = record.samples[0]
        return out


class PrunedBefore(_Pruned):
    """Pruned before the language model: the prefill runs on inputs rewritten beforehand."""

    def prepare(self, count: bool = True) -> None:
        with self.handle:
            self.rewrite_flops, self.rewritten = _counted(lambda: self.handle.rewrite(**self.inputs), count)

    def repetition(self, new_tokens: int) -> None:
        out = self.timed("prefill_ms", lambda: self.forward(self.rewritten))
        self.after_prefill(out, self.rewritten, new_tokens)
        del out
        with self.handle:
            self.timed_call()


class PrunedInside(_Pruned):
    """Pruned inside the language model: no shorter input says the same, so the call stays whole."""

    rewrite_flops = None

    def repetition(self, new_tokens: int) -> None:
        with self.handle:
            out = self.timed_call()
            self.times["prefill_ms"].append(self.times["ttft_ms"][-1] - self.times["vision_ms"][-1])
            self.after_prefill(out, self.inputs, new_tokens)


def _counted(call: Callable[[], Any], count: bool) -> tuple[int, Any]:
    """FLOPs of a call as torch counts them (0 if they are not asked for), and its result."""
    if not count:
        return 0, call()
    with FlopCounterMode(display=False) as counter:
        out = call()
    return counter.get_total_flops(), out
