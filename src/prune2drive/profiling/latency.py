"""Time, memory, cache and FLOPs of a model, unpruned and pruned, in one run.

Both variants are measured the same way, alternating (A B A B ...), so that a slow minute of the machine
hits both. Time to first token is one whole call from pixels to the logits of the last prompt token,
choosing and the rewrite of the inputs included. The unpruned side also computes last-token logits only,
as current transformers do: baselines that project every prompt token onto the vocabulary make pruning
look faster than it is.
"""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..errors import PruneError
from . import flops as counting
from .hardware import hardware, versions
from .memory import Peak, peak_of
from .result import KEYS, TIMES, ProfileResult, ratios

Progress = Callable[[str], None]


@torch.no_grad()
def profile(
    model: Any,
    inputs: Mapping[str, Any],
    *,
    method: Any = "tfps",
    retention: Any = 0.10,
    rig: Any = "nuscenes",
    new_tokens: int = 8,
    repeat: int = 5,
    warmup: int = 1,
    progress: Progress | None = None,
    **prune_kwargs: Any,
) -> ProfileResult:
    """Measure ``model`` on ``inputs`` without and with pruning.

    Args:
        model: a supported vision-language model, in eval mode, on one device.
        inputs: what the processor gives: ``input_ids``, ``pixel_values``, ...
        method, retention, rig, prune_kwargs: as for `prune2drive.prune`.
        new_tokens: cached decode steps timed per repetition; 0 leaves decode out (None).
        repeat: timed repetitions of each variant, interleaved.
        warmup: untimed calls of each variant first, at least 1; memory is taken in the last of them.
        progress: called with a line of text before each step.

    What is timed, each with the device synchronised before and after:

    - ``vision_ms``: ``base_model.get_image_features``. Pruned: the same part of the pruned call, by the
      engine's own clock (the work is equal; it is not run once more).
    - ``select_ms``: choosing, by the engine's clock, inside the pruned call.
    - ``prefill_ms``: the model on features already encoded (pruned: and already cut), last-token logits,
      with cache. Layer pruners choose inside the language model, so theirs is the whole call less the
      vision part: it includes choosing.
    - ``ttft_ms``: the whole call, from pixels.
    - ``decode_ms_per_token``: steps of one token on the prefill's cache.

    Raises:
        PruneError: inputs without pictures, a count below its minimum, a model in training mode, and
            whatever `prune2drive.prune` refuses.
    """
    if repeat < 1 or warmup < 1 or new_tokens < 0:
        raise PruneError(
            f"repeat={repeat}, warmup={warmup}, new_tokens={new_tokens}: need at least 1, 1 and 0."
        )
    if inputs.get("pixel_values") is None or inputs.get("input_ids") is None:
        raise PruneError(f"profile needs input_ids and pixel_values; got {', '.join(inputs)}.")
    if model.training:
        raise PruneError("The model is in training mode; call model.eval() first.")
    from .. import prune  # here, because the package's __init__ may import this module

    say = progress or (lambda line: None)
    pruned = prune(model, method=method, retention=retention, rig=rig, **prune_kwargs)
    with pruned:
        pass  # refuses a model that is already pruned, which would make both variants the same
    model = pruned.model
    if not hasattr(model.base_model, "get_image_features"):
        raise PruneError(
            f"{type(model).__name__} cannot encode pictures apart; profile a transformers model."
        )
    inside = pruned.works_inside
    sides = [_Unpruned(model, inputs), (_Inside if inside else _Before)(model, inputs, pruned)]

    for number in range(warmup):
        for side in sides:
            say(f"warm-up {number + 1}/{warmup}: {side.name}")
            side.peak = peak_of(side.whole_call, side.device)
    for side in sides:
        say(f"preparing: {side.name}")
        side.prepare()
    for number in range(repeat):
        for side in sides:
            say(f"repetition {number + 1}/{repeat}: {side.name}")
            side.repetition(new_tokens)

    results = [side.result(sides[0]) for side in sides]
    cameras = sides[1].cameras
    results[0]["tokens_per_camera"] = {name: cell.before for name, cell in cameras.items()}
    results[1]["tokens_per_camera"] = {name: cell.kept for name, cell in cameras.items()}
    input_ids = inputs["input_ids"]
    settings = {
        "model": type(model).__name__,
        "model_type": model.config.model_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn": model.config._attn_implementation,
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": model.config.get_text_config().num_hidden_layers,
        "method": _plain(method),
        "where": "inside the language model" if inside else "before the language model",
        "retention": dict(retention) if isinstance(retention, Mapping) else _plain(retention),
        "rig": _plain(rig),
        "positions": str(pruned.positions),
        **{name: _plain(value) for name, value in prune_kwargs.items() if name != "positions"},
        "batch": input_ids.shape[0],
        "prompt_tokens": input_ids.shape[1],
        "new_tokens": new_tokens,
        "repeat": repeat,
        "warmup": warmup,
    }
    return ProfileResult(
        unpruned=results[0],
        pruned=results[1],
        ratio=ratios(results[0], results[1]),
        settings=settings,
        hardware=hardware(sides[0].device),
        versions=versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


class _Side:
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

    def prepare(self) -> None:
        """Do, once and untimed, what prefills reuse."""

    def repetition(self, new_tokens: int) -> None:
        raise NotImplementedError

    # What they share.

    def forward(self, kwargs: Mapping[str, Any]) -> Any:
        return self.model(**kwargs, use_cache=True, logits_to_keep=1)

    def whole_call(self) -> Any:
        with self.context():
            return self.forward(self.inputs)

    def timed(self, name: str, call: Callable[[], Any]) -> Any:
        _wait(self.device)
        start = time.perf_counter()
        out = call()
        _wait(self.device)
        self.times[name].append((time.perf_counter() - start) * 1e3)
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

    def result(self, unpruned: _Side) -> dict[str, Any]:
        median = {k: statistics.median(v) if v else None for k, v in self.times.items()}
        parts = _flops_parts(self.model, self.inputs, unpruned, self)
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


class _Unpruned(_Side):
    name = "unpruned"

    def prepare(self) -> None:
        core = self.model.base_model
        known = set(inspect.signature(core.get_image_features).parameters) - {"kwargs"}
        self.encoder_kwargs = {k: v for k, v in self.inputs.items() if k in known}
        self.rest = {k: v for k, v in self.inputs.items() if k != "pixel_values"}
        with FlopCounterMode(display=False) as counter:
            self.features = self.encode()
        self.encode_flops = counter.get_total_flops()

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


class _Pruned(_Side):
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


class _Before(_Pruned):
    """Pruned before the language model: the prefill runs on inputs rewritten beforehand."""

    def prepare(self) -> None:
        with self.handle, FlopCounterMode(display=False) as counter:
            self.rewritten = self.handle.rewrite(**self.inputs)
        self.rewrite_flops = counter.get_total_flops()

    def repetition(self, new_tokens: int) -> None:
        out = self.timed("prefill_ms", lambda: self.forward(self.rewritten))
        self.after_prefill(out, self.rewritten, new_tokens)
        del out
        with self.handle:
            self.timed_call()


class _Inside(_Pruned):
    """Pruned inside the language model: no shorter input says the same, so the call stays whole."""

    rewrite_flops = None

    def repetition(self, new_tokens: int) -> None:
        with self.handle:
            out = self.timed_call()
            self.times["prefill_ms"].append(self.times["ttft_ms"][-1] - self.times["vision_ms"][-1])
            self.after_prefill(out, self.inputs, new_tokens)


ONCE = ("vision", "projector", "select", "prefill", "head")
"""Parts of a call before its first token."""


def _flops_parts(model: Any, inputs: Mapping[str, Any], unpruned: Any, side: Any) -> dict[str, int] | None:
    """FLOPs by part as `flops.vlm_flops` names them, for the whole batch, or None if not worked out.

    The language model's come from the cache's lengths, ``select`` from a counter around the rewrite
    (0 for layer pruners, whose choosing cannot be told apart; fused kernels are not counted).
    """
    config, batch = model.config, inputs["input_ids"].shape[0]
    text, cached = config.get_text_config(), [n + 1 for n in side.lengths]
    try:
        parts = _encoder_flops(config, inputs, unpruned.features)
        prefill = counting.language_flops(text, side.lengths)
        causal = counting.language_flops(text, side.lengths, causal=True)
        decode = counting.language_flops(text, cached, queries=[1] * len(cached)) + counting.head_flops(text)
    except PruneError:
        return None
    rewrite = getattr(side, "rewrite_flops", None)
    return {
        **parts,
        "select": 0 if rewrite is None else rewrite - unpruned.encode_flops,
        "prefill": batch * prefill,
        "prefill_causal": batch * causal,
        "head": batch * counting.head_flops(text),
        "decode": batch * decode,
    }


def _encoder_flops(config: Any, inputs: Mapping[str, Any], features: Any) -> dict[str, int]:
    """Vision tower and projector, from what went in and what came out."""
    rows = sum(entry.reshape(-1, entry.shape[-1]).shape[0] for entry in features.pooler_output)
    if config.model_type == "qwen2_5_vl":
        grids = [(int(h), int(w)) for _, h, w in inputs["image_grid_thw"].tolist()]
        vision = counting.vision_flops(config.vision_config, grids=grids)
    else:
        pictures, width = features.last_hidden_state.shape[:2]
        vision = counting.vision_flops(config.vision_config, pictures=pictures)
        if config.model_type in ("llava", "llava_onevision"):
            # Newlines are added, and padding is cut away, after the projector.
            rows = pictures * (width - int(config.vision_feature_select_strategy == "default"))
    return {"vision": vision, "projector": counting.projector_flops(config, rows)}


def _plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
