"""What the vision tower knows of each visual token: features before the projector, attention, keys.

Encoder features are read at the projector's door, attention is recomputed from the queries and keys of one
block (`probe`), and each family brings patches to visual tokens (`VisionSide.per_token`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import PruneError
from ..tokens import Signal
from .probe import watch

if TYPE_CHECKING:
    from .base import Family

SIGNALS = "_prune2drive_signals"
"""Attribute of an encoder's output that holds its `VisionSignals`."""

VISION: frozenset[Signal] = frozenset({Signal.ENCODER, Signal.SALIENCY, Signal.VISION_KEYS})
"""The signals that come from the vision tower."""

CHUNK = 2**25
"""Attention weights in memory at once (float32: 128 MiB)."""


@dataclass(frozen=True, eq=False)
class VisionSignals:
    """One row per placeholder of the batch, in order; None where not asked for. No gradients.

    Rows that no patch stands behind (newlines at the end of a row) hold zeros.
    """

    encoder: Tensor | None = None
    """``(T, C)``, the encoder's dtype: features as the projector receives them; where the projector itself
    merges patches, their mean."""
    saliency: Tensor | None = None
    """``(T,)`` float32: the attention a token's patches receive, mean over them. With a CLS token that of
    the CLS token, mean over heads; else mean over heads and all patches of the same picture (tile, frame)."""
    keys: Tensor | None = None
    """``(T, C)``: key vectors as the kernel receives them (rotated where the tower rotates), mean over heads
    and over a token's patches."""


class VisionSide:
    """The half of a family that knows its vision tower; see `Family`."""

    core: Any
    config: Any

    tower: ClassVar[str] = "vision_tower"
    """Where the vision tower is, below the core."""
    projector: ClassVar[str] = "multi_modal_projector"
    """Where the module is that takes the tower's features, below the core."""
    vision_lacks: ClassVar[str | None] = None
    """Why this family cannot give any of `VISION`; None if it can."""

    def lacks(self, signal: Signal) -> str | None:
        """Why a signal of the vision tower cannot be had from this model; None if it can.

        Signals of the language model are not decided here: always None.
        """
        if signal not in VISION:
            return None
        if self.vision_lacks is not None:
            return self.vision_lacks
        if signal is Signal.ENCODER:
            if _below(self.core, self.projector) is None:
                return f"{type(self.core).__name__} has no {self.projector} that takes the tower's features"
            return None
        blocks = self.vision_blocks()
        if not blocks or not hasattr(_attention(blocks[-1]), "config"):
            tower = type(_below(self.core, self.tower)).__name__
            return f"the vision tower {tower} has no attention blocks that can be watched"
        return None

    def vision_blocks(self) -> Sequence[nn.Module]:
        """The attention blocks of the tower in order, empty if it has none that are known."""
        tower = _below(self.core, self.tower)
        for module in tower.modules() if tower is not None else ():
            if isinstance(module, nn.ModuleList) and len(module) and _attention(module[0]) is not None:
                return list(module)
        return []

    def feature_block(self, depth: int, encoder_kwargs: dict[str, Any]) -> int:
        """Which of ``depth`` blocks put out the features; of several the deepest."""
        layers = self.encoder_option("vision_feature_layer", encoder_kwargs)
        if layers is None:
            return depth - 1
        layers = [layers] if isinstance(layers, int) else layers
        # Hidden state 0 enters block 0, hidden state n leaves block n - 1.
        return max(0, max(layer % (depth + 1) for layer in layers) - 1)

    def vision_attention(self, encoder_kwargs: dict[str, Any]) -> nn.Module:
        """The attention module that is watched: that of `feature_block`."""
        blocks = self.vision_blocks()
        found = _attention(blocks[self.feature_block(len(blocks), encoder_kwargs)])
        assert found is not None
        return found

    def encoder_option(self, name: str, encoder_kwargs: dict[str, Any]) -> Any:
        """An option of the encoder: the call's, else the config's, else None."""
        given = encoder_kwargs.get(name)
        return getattr(self.config, name, None) if given is None else given

    def has_cls(self) -> bool:
        """The tower's first token is a CLS token."""
        names = (name.rpartition(".")[2] for name, _ in _below(self.core, self.tower).named_parameters())
        return any(name in ("class_embedding", "cls_token") for name in names)

    def leading(self, encoder_kwargs: dict[str, Any]) -> int:
        """Tokens of the tower, from the first, that the model drops before the projector."""
        return int(self.encoder_option("vision_feature_select_strategy", encoder_kwargs) == "default")

    def patch_lengths(self, encoder_kwargs: dict[str, Any]) -> list[int] | None:
        """Patches of each picture, where the tower lays all pictures into one row; None where it does not."""
        return None

    def per_token(self, values: Tensor, encoder_kwargs: dict[str, Any], out: Any) -> Tensor:
        """Values of patches -> values of visual tokens.

        Args:
            values: ``(P, C)``, the patches of all pictures as the tower puts them out, CLS token dropped.
            out: the encoder's output, for its shapes.

        Returns:
            ``(T, C)``: one row per placeholder; where several patches make one, their mean; zeros where none.
        """
        return values

    def projected(self, rows: Tensor, encoder_kwargs: dict[str, Any], out: Any) -> Tensor:
        """The projector's input, one row each ``(R, C)`` -> ``(T, C)``. Default: its rows are patches."""
        return self.per_token(rows, encoder_kwargs, out)


def encode_with_signals(family: Family, encoder_kwargs: dict[str, Any], needs: Collection[Signal]) -> Any:
    """Encode pictures and note what methods need of the vision tower.

    Args:
        encoder_kwargs: as for `Family.encode`.
        needs: signals; those that are not in `VISION` are passed over.

    Returns:
        What `Family.encode` returns, bit for bit, with a `VisionSignals` in its attribute `SIGNALS`.

    Raises:
        PruneError: this model cannot give a signal.
    """
    wanted = VISION.intersection(needs)
    for signal in sorted(wanted):
        if (reason := family.lacks(signal)) is not None:
            raise PruneError(f"the signal {signal.value!r} cannot be had: {reason}")
    noted = _Noted(wanted, family, encoder_kwargs)
    with ExitStack() as stack:
        if Signal.ENCODER in wanted:
            stack.enter_context(_door(_below(family.core, family.projector), noted.rows))
        if wanted - {Signal.ENCODER}:
            stack.enter_context(watch(family.vision_attention(encoder_kwargs), noted.on_call))
        out = family.encode(encoder_kwargs)
    setattr(out, SIGNALS, noted.collect(out))
    return out


@dataclass(eq=False)
class _Noted:
    """What was seen during one encode."""

    wanted: frozenset[Signal]
    family: VisionSide
    encoder_kwargs: dict[str, Any]
    rows: list[Tensor] = field(default_factory=list)
    saliency: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)

    @torch.no_grad()
    def on_call(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, kwargs: dict[str, Any]
    ) -> None:
        """Reduce one call of the watched block to its patches' saliency and keys, in the tower's order."""
        first = self.family.leading(self.encoder_kwargs)
        if Signal.VISION_KEYS in self.wanted:
            self.keys.append(key.mean(1)[:, first:].flatten(0, 1))
        if Signal.SALIENCY not in self.wanted:
            return
        scaling, cls = kwargs.get("scaling"), self.family.has_cls()
        if (lengths := self._packed(kwargs)) is None:
            self.saliency.append(received(query, key, scaling, mask, cls)[:, first:].flatten())
            return
        # Pictures in one row see only themselves; computed one by one, the mask that says so is not needed.
        for q, k in zip(query.split(lengths, 2), key.split(lengths, 2), strict=True):
            self.saliency.append(received(q, k, scaling, cls=cls)[:, first:].flatten())

    def _packed(self, kwargs: dict[str, Any]) -> list[int] | None:
        edges = kwargs.get("cu_seq_lens_k")
        if edges is not None:
            return [int(n) for n in edges.diff()]
        return self.family.patch_lengths(self.encoder_kwargs)

    @torch.no_grad()
    def collect(self, out: Any) -> VisionSignals:
        """All that was noted, one row per placeholder."""
        encoder = saliency = keys = None
        family, call = self.family, self.encoder_kwargs
        if Signal.ENCODER in self.wanted:
            encoder = family.projected(self._joined(self.rows, family.projector), call, out)
        if Signal.SALIENCY in self.wanted:
            column = self._joined(self.saliency, "attention")[:, None]
            saliency = family.per_token(column, call, out)[:, 0]
        if Signal.VISION_KEYS in self.wanted:
            keys = family.per_token(self._joined(self.keys, "attention"), call, out)
        tokens = sum(entry.shape[:-1].numel() for entry in out.pooler_output)
        for value in (encoder, saliency, keys):
            if value is not None and len(value) != tokens:
                raise PruneError(
                    f"{type(family).__name__}: {len(value)} rows were brought together for {tokens} visual "
                    "tokens; is the vision tower one that this family does not know?"
                )
        return VisionSignals(encoder, saliency, keys)

    def _joined(self, pieces: list[Tensor], where: str) -> Tensor:
        if not pieces:
            raise PruneError(f"{type(self.family).__name__}: the vision tower ran without its {where}")
        return torch.cat(pieces)


def received(
    query: Tensor, key: Tensor, scaling: float | None = None, mask: Any = None, cls: bool = False
) -> Tensor:
    """Attention that each key receives, mean over heads and queries; computed in float32, chunk by chunk.

    Args:
        query: ``(B, H, Q, d)``; of these only the first counts if ``cls``.
        key: ``(B, Hk, K, d)``, Hk a divisor of H.
        scaling: of the logits, ``d ** -0.5`` if None.
        mask: None; bool (True: seen) or additive ``(B or 1, H or 1, Q or 1, K)``; or ``(B, K)``, 0: padding.

    Returns:
        float32 ``(B, K)``, each row summing to 1.
    """
    query = query[:, :, :1] if cls else query
    batch, heads, queries, width = query.shape
    scaling = width**-0.5 if scaling is None else scaling
    mask = _additive(mask)
    total = torch.zeros(batch, key.shape[2], device=key.device)
    step = max(1, CHUNK // (batch * heads * key.shape[2]))
    with torch.autocast(query.device.type, enabled=False):
        keys = key.float().repeat_interleave(heads // key.shape[1], 1).transpose(2, 3)
        for start in range(0, queries, step):
            logits = (query[:, :, start : start + step].float() * scaling) @ keys
            if mask is not None:
                logits = logits + (mask if mask.shape[2] == 1 else mask[:, :, start : start + step])
            total += logits.softmax(-1).sum((1, 2))
    return total / (heads * queries)


def _additive(mask: Any) -> Tensor | None:
    """A kernel's mask in the form that is added to logits: float32, four-dimensional."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        kind = type(mask).__name__
        raise PruneError(f"a vision mask of type {kind} cannot be read; use sdpa or flash attention")
    if mask.dim() == 2:
        mask = mask.bool()[:, None, None]
    if mask.dtype == torch.bool:
        # A finite number: a row that sees nothing is spread evenly instead of becoming nan.
        return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, torch.finfo(torch.float32).min)
    return mask.float()


def pooled(values: Tensor, grid: tuple[int, int], kernel: int, ceil: bool = False) -> Tensor:
    """Mean over squares of ``kernel`` x ``kernel`` patches of pictures that all have the same grid.

    Args:
        values: ``(pictures * rows * cols, C)``, row by row.
        grid: rows, columns.
        ceil: what is left over at the right and bottom makes squares of its own, else it is dropped.

    Returns:
        ``(pictures * rows' * cols', C)``, row by row.
    """
    planes = values.reshape(-1, *grid, values.shape[-1]).permute(0, 3, 1, 2)
    small = nn.functional.avg_pool2d(planes, kernel, ceil_mode=ceil)
    return small.flatten(2).transpose(1, 2).reshape(-1, values.shape[-1])


def pooled_tiles(values: Tensor, container: Tensor, ceil: bool = False) -> Tensor:
    """`pooled` for square tiles, given the features ``(tiles, tokens of a tile, D)`` they became."""
    tiles, tokens = container.shape[:2]
    side, small = math.isqrt(len(values) // tiles), math.isqrt(tokens)
    kernel = -(-side // small) if ceil else side // small
    return pooled(values, (side, side), kernel, ceil)


@contextmanager
def _door(module: Any, rows: list[Tensor]) -> Iterator[None]:
    """Append what enters a module to ``rows``, flattened to ``(R, C)``."""

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        rows.append(given.detach().flatten(0, -2))

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _below(core: Any, path: str) -> Any:
    """A module by its dotted path; None if there is none."""
    for name in path.split("."):
        core = getattr(core, name, None)
    return core


def _attention(block: nn.Module) -> nn.Module | None:
    """The attention module of a block."""
    for name in ("self_attn", "attention", "attn"):
        if isinstance(found := getattr(block, name, None), nn.Module):
            return found
    return None
