"""What the engine's contract tests share: cached models and inputs, and how to compare with the oracle."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oracle
import prune2drive as p2d
from families_table import BY_NAME, FAMILIES, FAMILY_IDS, FamilyCase

TOLERANCE = 1e-4
TEETH = 0.1
"""Pruning must move the logits by more than this, or a comparison proves nothing."""
RETENTION = 0.3
BATCHES = {"one": ([6], "left"), "left": ([6, 3], "left"), "right": ([6, 3], "right")}

families = pytest.mark.parametrize("case", FAMILIES, ids=FAMILY_IDS)
batches = pytest.mark.parametrize("batch", ["one", "left", "right"])
kernels = pytest.mark.parametrize("attn", ["sdpa", "eager"])


def some(*names: str):
    """Parametrise over the named families only."""
    return pytest.mark.parametrize("case", [BY_NAME[name] for name in names], ids=names)


@functools.cache
def shared_model(
    case: FamilyCase, attn: str = "sdpa", wide: bool = True, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A model for tests that leave it as it was; ``wide`` opens sliding windows."""
    model = case.model(attn=attn, dtype=dtype)
    return oracle.widen(model) if wide else model


@functools.cache
def _inputs(case: FamilyCase, batch: str) -> dict[str, Tensor]:
    counts, side = BATCHES[batch]
    return case.inputs(counts, padding_side=side)


def prompt(case: FamilyCase, batch: str = "one") -> dict[str, Tensor]:
    """Inputs of a named batch, safe to change."""
    return {name: value.clone() for name, value in _inputs(case, batch).items()}


def image_id(case: FamilyCase) -> int:
    """The placeholder id of a family."""
    return case.image_token_id(shared_model(case))


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit."""
    return a.shape == b.shape and bool(a.equal(b))


def close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE, what: str = "") -> None:
    """Largest absolute difference below a tolerance; shown when SHOW_WORST is set."""
    assert actual.shape == expected.shape
    worst = float((actual.float() - expected.float()).abs().max())
    if os.environ.get("SHOW_WORST"):
        test = os.environ.get("PYTEST_CURRENT_TEST", "").split(" ")[0]
        print(f"\nWORST {test} {what or 'difference'} {worst:.2e}")
    assert worst <= tolerance, f"{what}: off by {worst:.3g}"


def gather_live(full: Tensor, columns: Sequence[Sequence[int]]) -> Tensor:
    """Logits of the live columns of all rows, one after the other."""
    return torch.cat([full[row, cols] for row, cols in enumerate(columns)])


def gather_short(short: Tensor, columns: Sequence[Sequence[int]], right: bool) -> Tensor:
    """The same of a shortened sequence, whose tokens stand at its left or right end."""
    width = short.shape[1]
    rows = []
    for row, cols in enumerate(columns):
        rows.append(short[row, : len(cols)] if right else short[row, width - len(cols) :])
    return torch.cat(rows)


def is_right(batch: str) -> bool:
    return BATCHES[batch][1] == "right"


def positions_for(case: FamilyCase, inputs: dict, dropped: Tensor, policy: str, generating: bool) -> dict:
    """Keyword arguments that give the oracle the positions of a policy."""
    if policy == "keep":
        return {}
    first = 1 if case.one_indexed else 0
    return {"position_ids": oracle.reindexed(inputs, dropped, image_id(case), case.mrope, generating, first)}


def forward(model: nn.Module, inputs: dict, **extra: Any) -> Tensor:
    """Logits without gradients."""
    with torch.no_grad():
        return model(**inputs, **extra).logits


def method_of(*layers: int, before: bool = False) -> Any:
    """The ``method`` argument for stages at layers, with or without one before the language model."""
    stages: list[Any] = ["tfps"] if before else []
    stages += [p2d.layer_pruners.TFPSLayer(layer=layer) for layer in layers]
    return stages if len(stages) > 1 else stages[0]


def stages_of(inputs: dict, record: Any, token: int, *layers: int) -> list[tuple[int, Tensor]]:
    """Oracle stages of a record whose stages start at ``layers`` (0: before the language model)."""
    return [(layer, oracle.dropped_columns(inputs, record, token, n)) for n, layer in enumerate(layers)]


def compare_forward(
    case: FamilyCase,
    model: nn.Module,
    inputs: dict,
    right: bool,
    method: Any = "tfps",
    retention: Any = RETENTION,
    layers: Sequence[int] = (0,),
    policy: str = "keep",
    what: str = "logits",
    **options: Any,
) -> Any:
    """Pruned forward against the oracle on every live column; returns the record."""
    full = forward(model, inputs)
    with p2d.prune(model, method=method, retention=retention, positions=policy, **options) as pruned:
        short = forward(model, inputs)
    stages = stages_of(inputs, pruned.record, image_id(case), *layers)
    gone = stages[-1][1]
    assert bool(gone.any()), "nothing was dropped"
    live = oracle.live_columns(inputs, gone)
    with oracle.masked(model, stages):
        expected = forward(model, inputs, **positions_for(case, inputs, gone, policy, False))
    assert short.shape[1] == max(len(columns) for columns in live)
    close(gather_short(short, live, right), gather_live(expected, live), what=what)
    last = [columns[-1] for columns in live]
    effect = max(float((expected[r, c] - full[r, c]).abs().max()) for r, c in enumerate(last))
    assert effect > TEETH, f"pruning moved the logits by {effect:.3g} only"
    return pruned.record


def compare_generate(
    case: FamilyCase,
    model: nn.Module,
    inputs: dict,
    settings: dict,
    method: Any = "tfps",
    retention: Any = RETENTION,
    layers: Sequence[int] = (0,),
    policy: str = "keep",
    oracle_settings: dict | None = None,
    **options: Any,
) -> Tensor:
    """Pruned generation against the oracle's; returns the sequences."""
    settings = {"max_new_tokens": 6, "do_sample": False, **settings}
    torch.manual_seed(0)
    with p2d.prune(model, method=method, retention=retention, positions=policy, **options) as pruned:
        got = model.generate(**inputs, **settings)
    stages = stages_of(inputs, pruned.record, image_id(case), *layers)
    explicit = positions_for(case, inputs, stages[-1][1], policy, True)
    torch.manual_seed(0)
    with oracle.masked(model, stages):
        expected = model.generate(**inputs, **{**settings, **(oracle_settings or {})}, **explicit)
    assert got.shape == expected.shape
    assert got.equal(expected), f"{got[:, -8:].tolist()} instead of {expected[:, -8:].tolist()}"
    return got


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Everything an attachment could leave behind: instance attributes, hooks, config entries."""
    out: dict[str, Any] = {}
    for name, module in model.named_modules():
        hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_hooks)
        out[name] = (sorted(module.__dict__), [len(h) for h in hooks], module.__class__)
    out["config"] = str(model.config.to_dict())
    out["generation_config"] = str(model.generation_config.to_dict())
    return out


def half_up(count: int, rate: Any) -> int:
    """Round half up in exact arithmetic, at least one."""
    from fractions import Fraction

    return max(1, int(Fraction(str(rate)) * count + Fraction(1, 2)))
