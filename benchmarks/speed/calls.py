"""Calls of a model, unpruned and pruned, eager and captured: measured in turns, told as rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import prune2drive as p2d
from prune2drive.engine.clock import Clock
from prune2drive.profiling.counted import flops_parts
from prune2drive.profiling.memory import peak_of
from prune2drive.profiling.sides import PrunedBefore, PrunedInside, Side, Unpruned
from prune2drive.profiling.timing import clocked, summary

from .bench import Bench
from .setting import Setting, rig

PARTS = ("vision_ms", "projector_ms", "select_ms", "prefill_ms", "ttft_ms", "decode_ms_per_token")


class Eager:
    """A call as ``model(**inputs)`` makes it, kernel by kernel from Python.

    ``pruned`` is what `prune2drive.prune` returned; None measures the model as it is.
    """

    def __init__(self, model: Any, inputs: Mapping[str, Any], pruned: Any = None) -> None:
        self.device = inputs["input_ids"].device
        self.side: Side
        if pruned is None:
            self.side = Unpruned(model, inputs)
        else:
            self.side = (PrunedInside if pruned.works_inside else PrunedBefore)(model, inputs, pruned)
        self.projecting = _Projecting(model, self.device)
        if self.device.type == "cuda":  # libraries make their workspaces in the first call
            self.side.whole_call()
        self.peak = self.side.peak = peak_of(self.side.whole_call, self.device)
        self.side.prepare(count=False)
        self.stages: dict[str, str] | None = None
        self.reserved: int | None = None

    def round(self, new_tokens: int) -> None:
        with self.projecting:
            self.side.repetition(new_tokens)

    @property
    def times(self) -> dict[str, list[float]]:
        out = dict(self.side.times)
        if spent := self.projecting.times():
            # Part of what is timed as vision. The unpruned side encodes twice a round: the whole call, too.
            project = spent[:: len(spent) // len(out["vision_ms"])]
            out["vision_ms"] = [v - p for v, p in zip(out["vision_ms"], project, strict=True)]
            out["projector_ms"] = project
        return out

    def after_encoding(self) -> list[float]:
        """Milliseconds of each round from features to the first token: choosing, cutting, prefill."""
        times = self.side.times
        if isinstance(self.side, Unpruned):
            return list(times["prefill_ms"])
        return [whole - v for whole, v in zip(times["ttft_ms"], times["vision_ms"], strict=True)]

    @property
    def tokens(self) -> int:
        return self.side.lengths[-1]

    @property
    def lengths(self) -> list[int]:
        return self.side.lengths

    @property
    def kv_bytes(self) -> int:
        return self.side.kv_bytes


class Captured:
    """The same call by `prune2drive.capture`: planned once and, on CUDA, replayed as graphs."""

    def __init__(
        self, model: Any, inputs: Mapping[str, Any], pruned: Any = None, *, new_tokens: int = 0, **how: Any
    ) -> None:
        self.device, self.pixels = inputs["input_ids"].device, inputs["pixel_values"]
        made: list[Any] = []

        def make() -> None:
            made.append(p2d.capture(pruned or model, inputs, new_tokens=new_tokens + 1, **how))
            made[0](pixel_values=self.pixels)

        # The pool of the graphs stays: what counts is the most there was from the first moment on.
        before = torch.cuda.memory_reserved(self.device) if self.device.type == "cuda" else 0
        self.peak = peak_of(make, self.device)
        after = torch.cuda.memory_reserved(self.device) if self.device.type == "cuda" else 0
        self.reserved = max(0, after - before) or None
        self.captured: Any = made[0]
        self.times: dict[str, list[float]] = {name: [] for name in PARTS}
        self.stages: dict[str, str] | None = self.captured.stages

    def round(self, new_tokens: int) -> None:
        c = self.captured
        for name, work in (("vision_ms", c.encode), ("select_ms", c.choose), ("prefill_ms", c.prefill)):
            self.times[name].append(clocked(work, self.device)[0])
        ttft = clocked(partial(c, pixel_values=self.pixels), self.device)[0]
        self.times["ttft_ms"].append(ttft)
        if new_tokens:
            c.generate(new_tokens + 1, eos_token_id=-1)
            self.times["decode_ms_per_token"].append(c.decode_ms / new_tokens)

    def after_encoding(self) -> list[float]:
        """As of `Eager`."""
        return [a + b for a, b in zip(self.times["select_ms"], self.times["prefill_ms"], strict=True)]

    @property
    def tokens(self) -> int:
        return self.captured.length  # type: ignore[no-any-return]

    @property
    def lengths(self) -> list[int]:
        return [self.captured.length] * self.captured.model.config.get_text_config().num_hidden_layers

    @property
    def kv_bytes(self) -> int:
        return self.captured.kv_bytes  # type: ignore[no-any-return]


Variant = Eager | Captured


class _Projecting:
    """Times every call of the module between tower and language model, where there is one."""

    def __init__(self, model: Any, device: torch.device) -> None:
        core, self.device = model.base_model, device
        vision = getattr(core, "visual", None)
        self.module = getattr(core, "multi_modal_projector", None) or getattr(vision, "merger", None)
        self.clocks: list[Clock] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> None:
        if self.module is None:
            return

        def begin(*_: Any) -> None:
            self.clocks.append(Clock(self.device))
            self.clocks[-1].__enter__()

        def end(*_: Any) -> None:
            self.clocks[-1].__exit__(None, None, None)

        self._hooks = [
            self.module.register_forward_pre_hook(begin),
            self.module.register_forward_hook(end),
        ]

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def times(self) -> list[float]:
        return [clock.ms for clock in self.clocks]


@torch.no_grad()
def alternate(variants: Mapping[Any, Variant], rounds: int, new_tokens: int) -> None:
    """Let all variants have their turn ``rounds`` times; answers are timed in the first round only."""
    order = list(variants.values())
    for number in range(rounds):
        for variant in order if number % 2 == 0 else order[::-1]:
            variant.round(new_tokens if number == 0 else 0)


@dataclass(frozen=True)
class Measured:
    """What is kept of a variant when the device's memory is given to the next one."""

    times: Mapping[str, list[float]]
    tokens: int
    lengths: list[int]
    kv_bytes: int
    growth: int | None
    reserved: int | None
    stages: dict[str, str] | None

    @classmethod
    def of(cls, variant: Variant) -> Measured:
        v = variant
        return cls(
            v.times,
            v.tokens,
            list(v.lengths),
            v.kv_bytes,
            v.peak.growth,
            v.reserved,
            v.stages and dict(v.stages),
        )


def rows_of(
    measured: Mapping[float, Measured], bench: Bench, shape: str, batch: int, cameras: int
) -> dict[float, dict[str, Any]]:
    """Rows by retention; 1.0 is the unpruned model, which ratios refer to."""
    medians = {r: _medians(m.times) for r, m in measured.items()}
    flops = _flops(measured, bench, shape, batch, cameras)
    base, first = medians.get(1.0), flops.get(1.0)
    out = {}
    for r, m in measured.items():
        own, parts = medians[r], flops[r]
        row: dict[str, Any] = {
            name: summary(spent) if (spent := m.times.get(name)) else None for name in PARTS
        }
        read = None if parts is None else parts["prefill_causal"] + parts["head"]
        whole = None if parts is None or read is None else read + parts["vision"] + parts["projector"]
        ratio = base["prefill_ms"] / own["prefill_ms"] if base else None
        limit = (first["prefill_causal"] + first["head"]) / read if first and read else None
        row |= {
            "tokens": m.tokens,
            "peak_bytes": None if m.growth is None else bench.weights + m.growth,
            "growth_bytes": m.growth,
            "reserved_bytes": m.reserved,
            "kv_bytes": m.kv_bytes,
            "flops_prefill": read,
            "flops_ttft": whole,
            "prefill_ratio": ratio,
            "ttft_ratio": base["ttft_ms"] / own["ttft_ms"] if base else None,
            "flops_ratio": limit,
            "share_of_limit": ratio / limit if ratio and limit else None,
            "stages": m.stages,
        }
        out[r] = row
    return out


@torch.no_grad()
def _flops(
    measured: Mapping[float, Measured], bench: Bench, shape: str, batch: int, cameras: int
) -> dict[float, dict[str, int] | None]:
    """FLOPs of the whole batch by part: those of one sample, whose features are encoded for their shapes."""
    model, inputs = bench.model(shape), bench.inputs(shape, 1, cameras)
    encoded = Unpruned(model, inputs)
    encoded.prepare(count=False)
    out: dict[float, dict[str, int] | None] = {}
    for r, m in measured.items():
        one = flops_parts(model, inputs, encoded, m)
        out[r] = None if one is None else {name: batch * value for name, value in one.items()}
    return out


def _medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: summary(spent)["median"] for name, spent in times.items() if spent}


def prune_at(model: Any, retention: Any, cameras: int, method: Any = "tfps") -> Any:
    """How the suite prunes: T-FPS before the language model, if nothing else is said."""
    return p2d.prune(model, method=method, retention=retention, rig=rig(cameras))


def make(
    kind: str,
    bench: Bench,
    shape: str,
    inputs: Mapping[str, Any],
    retention: float,
    cameras: int,
    new_tokens: int,
) -> Variant:
    """One variant of a call, with room for an answer; retention 1.0 is the unpruned model."""
    setting: Setting = bench.setting
    model = bench.model(shape)
    pruned = None if retention == 1.0 else prune_at(model, retention, cameras)
    build: Callable[..., Variant] = Captured if kind == "captured" else Eager
    how: dict[str, Any] = {}
    if kind == "captured":
        how = {"new_tokens": new_tokens, "compile": setting.compile}
    with torch.no_grad():
        return build(model, inputs, pruned, **how)
