"""A call whose shapes never change, taken apart into functions of tensors that never wait for the device.

Everything the host decides (which columns are pictures, how many tokens a camera keeps, position ids) is
decided once, from an example call. What is left are three functions:

    encode: pixels                       -> features of all placeholders
    choose: token ids, features          -> shortened ids, positions, kept features
    prefill: those                       -> logits of the last token, keys and values of every layer
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ..errors import PruneError
from ..families.base import Family, Prompt
from ..rig import Rig
from ..selectors.base import Selector
from ..tokens import ImageTokens, PositionPolicy, View
from .attach import MARK
from .caches import Shortened
from .choose import Rows, batch_views, choose, counts_mask
from .cutter import Cutter, check_filled
from .lengths import pad_id, prompt_mask
from .rewrite import (
    FILL,
    Shortening,
    cut_positions,
    is_right_padded,
    live_columns,
    new_lengths,
    next_positions,
    shorten,
)

OURS = ("input_ids", "attention_mask", "past_key_values", "use_cache", "logits_to_keep", "labels")
"""Inputs that the stages give themselves."""


@dataclass(frozen=True, eq=False)
class Cutting:
    """What the prompt alone says of the cut: host facts, and their tensors on the device.

    ``counts`` tokens kept of each view; ``rows`` where the views' tokens are; ``valid`` bool ``(V, K)`` as
    `counts_mask`; ``live`` bool ``(B, L)`` real tokens; ``places`` int64 ``(T,)`` placeholders in the
    flattened prompt.
    """

    selector: Selector
    rig: Rig | None
    images: list[list[ImageTokens]]
    views: list[list[View]]
    counts: list[int]
    rows: Rows
    valid: Tensor
    live: Tensor
    places: Tensor
    right_padded: bool

    @classmethod
    def of(cls, cutter: Cutter, family: Family, prompt: Prompt, device: torch.device) -> Cutting:
        assert cutter.selector is not None
        images = family.images(prompt)
        there = prompt.mask[prompt.visual]
        views = cutter.views(images, there)
        counts = cutter.budgets(views)[0]
        return cls(
            cutter.selector,
            cutter.rig,
            images,
            views,
            counts,
            Rows.of(images, views, device, there),
            counts_mask(counts, device),
            prompt.mask.to(device),
            prompt.visual.flatten().nonzero().flatten().to(device),
            is_right_padded(prompt.mask),
        )


class Frozen:
    """The call ``model(**inputs)``, or its pruned form, with static shapes.

    Args:
        family: of the model.
        inputs: what the processor gave, an example of the calls to come.
        cutter: how to prune; None does not.
        positions: as for `prune2drive.prune`.

    ``names`` are the floating inputs of the vision encoder, which change from call to call; the prompt's
    words may change as well. Everything else is as in the example. ``length`` is the prompt's new length.

    Raises:
        PruneError: as the call itself would.
    """

    @torch.no_grad()
    def __init__(
        self, family: Family, inputs: Mapping[str, Any], cutter: Cutter | None, positions: PositionPolicy
    ) -> None:
        self.family, self.model, self.policy = family, family.model, positions
        self.device = inputs["input_ids"].device
        self.ids = inputs["input_ids"].cpu()
        self.mask = prompt_mask(self.ids, dict(inputs), self.model, generating=False)
        self.visual = self.ids == family.image_token_id

        known = family.encoder_names()
        encoder = {k: v for k, v in inputs.items() if k in known}
        self.names = [k for k, v in encoder.items() if isinstance(v, Tensor) and v.is_floating_point()]
        others = {k: v for k, v in encoder.items() if k not in self.names}
        self.encoder = family.frozen_encoder_kwargs(others, self.device)
        rest = {k: v for k, v in inputs.items() if k not in known and k not in OURS}
        # One value per token: shortened with the prompt. Anything else is passed on as it is.
        self.per_token = {k: v.to(self.device) for k, v in rest.items() if k in FILL and v is not None}
        self.rest = {k: v for k, v in rest.items() if k not in FILL}

        # One example is encoded: how many tokens a picture has is the model's to say.
        out = self._tower(*(encoder[k] for k in self.names))
        flat, entries = family.flatten(out.pooler_output)
        check_filled(self.visual, len(flat))
        sizes = cutter.picture_sizes if cutter else lambda row, n: [None] * n
        prompt = Prompt(self.ids, self.mask, self.visual, entries, encoder, sizes)
        self.shell = self._shell(out)
        self.cutting = Cutting.of(cutter, family, prompt, self.device) if cutter else None
        self.per_row = prompt.per_row()
        if self.cutting is not None:
            self.per_row = self.cutting.rows.per_row(self.cutting.counts)
        lengths = new_lengths(self.mask, self.visual, self.per_row)
        self.length = self.ids.shape[1] if self.cutting is None else max(lengths)
        # No padding, and no tokens that see both ways: kernels are told "causal" instead of given a mask,
        # which is the fast way through attention, and nothing about the mask has to be read back.
        self.causal = all(n == self.length for n in lengths) and "token_type_ids" not in self.per_token
        self.full = family.positions(prompt, False, {**self.per_token, **self.rest}).to(self.device)
        self.full_mask = self.mask.long().to(self.device)
        self.kept_rows = torch.arange(sum(self.per_row), device=self.device)

    def _tower(self, *pixels: Tensor) -> Any:
        """The encoder's output object for the pixels, in the order of ``names``."""
        return self.family.encode_frozen({**self.encoder, **dict(zip(self.names, pixels, strict=True))})

    def _shell(self, out: Any) -> Any:
        """The output object the model will be handed, without the features: those come with each call."""
        shell = copy.copy(out)
        for name in list(shell.keys()):
            if name not in self.family.constant_outputs:
                shell[name] = None
        listed = not isinstance(out.pooler_output, Tensor)
        shell.pooler_output = [] if listed else torch.empty(0, device=self.device)
        planes: Any = getattr(out, "deepstack_features", None) or ()
        self.planes_listed = bool(planes) and not isinstance(planes[0], Tensor)
        return shell

    # -- every call, on the device --------------------------------------------------------------

    def encode(self, *pixels: Tensor) -> tuple[Tensor, ...]:
        """Features of all placeholders ``(T, D)``, and one more tensor for each deepstack plane."""
        out = self._tower(*pixels)
        planes = getattr(out, "deepstack_features", None) or ()
        return tuple(self.family.flatten(each)[0].to(self.device) for each in (out.pooler_output, *planes))

    def choose(self, ids: Tensor, flat: Tensor, *planes: Tensor) -> tuple[Tensor, ...]:
        """Ids ``(B, n)``, mask, positions and per-token inputs; picks ``(V, K)``; kept rows and planes."""
        cutting = self.cutting
        assert cutting is not None
        tokens = batch_views(flat, cutting.views, cutting.rows.table, None, cutting.rig)
        chosen = choose(cutting.selector, tokens, cutting.counts)
        if list(chosen.counts) != cutting.counts:
            raise PruneError(
                f"{cutting.selector.name} splits the total between cameras by what it sees, so shapes change "
                "from call to call; capture a method with fixed counts, such as tfps"
            )
        kept, flat = cutting.rows.keep(flat, chosen, cutting.valid)
        live = live_columns(cutting.live, cutting.places, kept)
        short = shorten(live, self.length, cutting.right_padded)
        return (
            *self._shortened(ids, short),
            chosen.indices,
            flat.index_select(0, kept),
            *(plane.index_select(0, kept) for plane in planes),
        )

    def whole(self, ids: Tensor, flat: Tensor, *planes: Tensor) -> tuple[Tensor, ...]:
        """As `choose`, keeping everything: the unpruned call."""
        fields = tuple(self.per_token[name] for name in sorted(self.per_token))
        none = torch.empty(0, 0, dtype=torch.long, device=self.device)
        return ids, self.full_mask, self.full, *fields, none, flat, *planes

    def _shortened(self, ids: Tensor, short: Shortening) -> tuple[Tensor, ...]:
        fields = tuple(short.gather(self.per_token[name], FILL[name]) for name in sorted(self.per_token))
        positions = cut_positions(self.full, short, self.policy)
        pad = pad_id(self.model, self.family.image_token_id)
        return short.gather(ids, pad), short.valid.long(), positions, *fields

    def prefill(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """From `choose`'s outputs: logits ``(B, 1, vocabulary)``, then keys and values of layer 0, 1, ..."""
        self.cache: Any = None  # of the last call: one cache less beside the new one
        out = self.forward(*inputs)
        layers = out.past_key_values.layers
        self.cache = out.past_key_values
        """The cache object as the prefill left it; its tensors are those returned."""
        return out.logits, *(tensor for layer in layers for tensor in (layer.keys, layer.values))

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor, *others: Tensor) -> Any:
        fields = dict(zip(sorted(self.per_token), others, strict=False))
        _, flat, *planes = others[len(fields) :]
        common = {
            **self.rest,
            "position_ids": positions,
            "attention_mask": None if self.causal else mask,
            "past_key_values": DynamicCache(config=self.model.config.get_text_config(decoder=True)),
            "use_cache": True,
            "logits_to_keep": 1,
        }
        if self.family.scatters and not planes:
            return self.model(**common, inputs_embeds=self.embedded(ids, flat))
        shell = copy.copy(self.shell)
        if planes:
            shell.deepstack_features = [[plane] if self.planes_listed else plane[None] for plane in planes]
        out = self.family.hand_over(shell, self.kept_rows, flat, self.per_row)
        setattr(out, MARK, Shortened(self.ids.shape[1] - self.length, self.length, None))
        return self.model(**common, **fields, input_ids=ids, mm_encoder_outputs={"image": out})

    def embedded(self, ids: Tensor, flat: Tensor) -> Tensor:
        """The prompt's embeddings ``(B, n, D)`` with features in place of the placeholders.

        What the model does with them, less its comparison of their counts, which reads the device.
        """
        visual = ids == self.family.image_token_id
        embeds = self.model.get_input_embeddings()(ids)
        return embeds.masked_scatter(visual[..., None], flat.to(embeds.dtype))

    def following(self, positions: Tensor) -> Tensor:
        """Position id of the next token: int64 ``(B,)``."""
        if self.family.mrope:
            return positions[1:].amax((0, 2)) + 1
        return next_positions(self.full, self.full_mask > 0, positions, self.policy)
