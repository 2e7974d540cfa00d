"""A prompt on its way through the decoder stack: what is planned for it, and where its tokens are now.

Three ways to count a token are in use here: its *column* in the prompt as it entered the model, its
*place* in the rows as they are now (a row lists the column of each place in ``Run.columns``), and its
*index* among its view's tokens (``alive``), which is what records and methods speak of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import PruneError
from ..families.base import Prompt
from ..layer_pruners.base import LayerPruner
from ..rig import Rig
from ..tokens import View
from .attention import Seen
from .bias import Rope
from .cutter import CutPrompt
from .record import Record
from .rewrite import is_right_padded
from .sources import instruction, padded


@dataclass(eq=False)
class Plan:
    """A prompt as it enters the language model, and what each stage keeps of it.

    ``columns`` int64 ``(V, N)``: prompt column of each view's tokens, -1 beyond its end.
    ``alive`` int64 ``(V, N)``: the same tokens as indices into the full view.
    ``valid`` bool ``(B, L)``: real tokens. ``text``: tokens of each row that always stay.
    ``instruction`` int64 ``(B, T)``: columns of each row's instruction, -1 beyond its end.
    ``sizes`` ``(V, N)``: tokens that each of ``columns`` stands for, or None. ``cut``: bool ``(B,)`` rows
    that lost tokens before the language model.
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
    rig: Rig | None
    instruction: Tensor
    sizes: Tensor | None
    cut: Tensor
    memory: dict[str, Any] = field(default_factory=dict)
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


@dataclass(frozen=True, eq=False)
class Kept:
    """What a layer read of the prompt, as its decode steps must know it.

    ``columns``, ``valid`` ``(R, n)``; ``log_sizes``, ``visual`` the bias of these keys (see `bias`) and
    ``unit`` their rope vectors, None where nothing is added.
    """

    columns: Tensor
    valid: Tensor
    ragged: bool
    log_sizes: Tensor | None = None
    visual: Tensor | None = None
    unit: Tensor | None = None

    @property
    def biased(self) -> bool:
        return self.log_sizes is not None or self.visual is not None


@dataclass(eq=False)
class Run:
    """One sequence batch on its way through the stack: which prompt column each place holds.

    ``log_sizes`` float32 ``(R, length)`` and ``visual`` bool ``(R, length)`` by column: what keys gain in
    the layers to come, None for nothing.
    """

    length: int
    columns: Tensor
    valid: Tensor
    ragged: bool
    view_columns: Tensor
    alive: Tensor
    lengths: list[int]
    stages: int = 0
    """Stages done. Lengths do not tell: the longest row of a batch may be all text."""
    log_sizes: Tensor | None = None
    visual: Tensor | None = None
    per_layer: dict[int, Kept] = field(default_factory=dict)
    masks: dict[Any, Any] = field(default_factory=dict)
    hidden: dict[int, Tensor] = field(default_factory=dict)
    """Hidden states entering a layer, noted for a later stage."""
    seen: dict[int, Seen] = field(default_factory=dict)
    """Attention calls of a layer, noted for the stage behind it."""
    ropes: dict[int, Rope] = field(default_factory=dict)

    @property
    def shortened(self) -> bool:
        """Whether layers from here on see another sequence, or other weights, than the model made."""
        return self.stages > 0 or self.log_sizes is not None or self.visual is not None

    def move(self, device: torch.device) -> None:
        """Follow the hidden states: the layers of a model may live on several devices."""
        if self.columns.device != device:
            for name in ("columns", "valid", "view_columns", "alive", "log_sizes", "visual"):
                if (tensor := getattr(self, name)) is not None:
                    setattr(self, name, tensor.to(device))

    def forget_prefill(self) -> None:
        """Let go of what only the prefill needs: the cache carries the run on through decode."""
        for notes in (self.masks, self.hidden, self.seen, self.ropes):
            notes.clear()


def start(plan: Plan, hidden: Tensor, calibrated: bool) -> Run:
    """The state of a sequence batch as it enters the stack: every column still in its place."""
    rows, length = hidden.shape[:2]
    batch = len(plan.text)
    if rows % batch or length < plan.length:
        raise PruneError(
            f"the language model got {rows} sequences of {length} tokens, "
            f"the prompt had {batch} of {plan.length}; "
            "with a layer pruner the prefill must be one piece (no prefill_chunk_size)"
        )
    repeat = rows // batch
    grown = torch.ones(rows, length - plan.length, dtype=torch.bool, device=hidden.device)
    valid = torch.cat([plan.valid.to(hidden.device).repeat_interleave(repeat, 0), grown], 1)
    columns = torch.arange(length, device=hidden.device).expand(rows, length)
    # The first layer concerned may live on another device than the prompt.
    here, alive = plan.columns.to(hidden.device), plan.alive.to(hidden.device)
    run = Run(length, columns, valid, True, here, alive, plan.lengths)
    if plan.sizes is not None:
        add_sizes(run, plan.views, here, plan.sizes.to(hidden.device), repeat)
    if calibrated and bool(plan.cut.any()):
        mark_visual(run, plan.views, plan.cut.to(hidden.device), repeat)
    return run


def add_sizes(run: Run, views: Sequence[Sequence[View]], columns: Tensor, sizes: Tensor, repeat: int) -> None:
    """Let the tokens at ``columns`` ``(V, K)`` (-1 for none) weigh as many as ``sizes`` says.

    A token merged twice stands for the product.
    """
    device, rows = columns.device, run.valid.shape[0]
    flat = torch.zeros(rows // repeat, run.length + 1, device=device)
    target = torch.where(columns < 0, run.length, columns)
    logs = sizes.float().clamp(min=1).log().masked_fill(columns < 0, 0)
    flat[sample_rows(views, device), target] = logs
    added = flat[:, :-1].repeat_interleave(repeat, 0)
    run.log_sizes = added if run.log_sizes is None else run.log_sizes + added


def mark_visual(run: Run, views: Sequence[Sequence[View]], rows: Tensor, repeat: int) -> None:
    """Undo distance for the views' tokens of samples that lost some: ``rows`` bool ``(B,)``."""
    device = run.view_columns.device
    flags = torch.zeros(len(rows), run.length + 1, dtype=torch.bool, device=device)
    target = torch.where(run.view_columns < 0, run.length, run.view_columns)
    sample = sample_rows(views, device)
    flags[sample, target] = rows.to(device)[sample].expand_as(target)
    flags = flags[:, :-1].repeat_interleave(repeat, 0)
    run.visual = flags if run.visual is None else run.visual | flags


def make_plan(
    prompt: Prompt,
    done: CutPrompt,
    pruners: Sequence[LayerPruner],
    rig: Rig | None,
    device: torch.device,
    weighs: bool = False,
) -> Plan:
    """The prompt as the layer stages meet it: after the cut before the language model, if any.

    ``weighs``: tokens merged there weigh as many as they are.
    """
    views = done.views
    where = [row.nonzero().flatten() for row in prompt.visual]
    columns = padded([where[row][view.index] for row, group in enumerate(views) for view in group]).to(device)
    lengths = [len(view) for group in views for view in group]
    alive = padded([torch.arange(n) for n in lengths]).to(device)
    valid = prompt.mask.to(device)
    text = [int(m.sum()) - sum(len(v) for v in group) for m, group in zip(prompt.mask, views, strict=True)]
    asked = padded(instruction(prompt)).to(device)
    sizes = None
    cut = torch.zeros(len(views), dtype=torch.bool)
    if done.cut is not None and done.short is not None:
        full = lengths
        valid, lengths = done.short.valid, done.cut.counts
        for row, before, after in zip(
            (row for row, group in enumerate(views) for _ in group), full, lengths, strict=True
        ):
            cut[row] |= after < before
        order, beyond = sorted_picks(done.cut.indices, alive.shape[1])
        alive = order.masked_fill(beyond, -1)
        if weighs and done.cut.sizes is not None:
            by_pick = done.cut.indices.masked_fill(done.cut.indices < 0, columns.shape[1])
            sizes = done.cut.sizes.gather(1, by_pick.argsort(dim=-1, stable=True))
        short = places(done.short.columns, prompt.ids.shape[1])
        columns = short[sample_rows(views, device), columns.gather(1, order)].masked_fill(beyond, -1)
        asked = short.gather(1, asked.clamp(min=0)).masked_fill(asked < 0, -1)
    stages = list(zip(pruners, done.budgets[len(done.budgets) - len(pruners) :], strict=True))
    right = is_right_padded(prompt.mask)
    return Plan(
        valid.shape[1],
        valid,
        text,
        right,
        views,
        lengths,
        columns,
        alive,
        stages,
        done.record,
        rig,
        asked,
        sizes,
        cut,
    )


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


def subset(views: Sequence[View], alive: Tensor, lengths: Sequence[int]) -> list[View]:
    """The views with only their remaining tokens; asks the device only after an earlier stage."""
    if all(len(view) == n for view, n in zip(views, lengths, strict=True)):
        return list(views)
    rows = alive.cpu()
    return [view.subset(row[:n]) for view, row, n in zip(views, rows, lengths, strict=True)]
