"""What the reference model is taught, in two stages: to see, then to answer.

see: every projected visual token predicts what its patch shows (`labels`); only the tower and the
projector learn. answer: the language model reads six pictures once and answers dozens of questions
about them, each of which sees the pictures and itself only, so that nothing leaks from one answer to
the next question. Heads for the extra targets are thrown away at the end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..rig import NUSCENES
from .attention import Watched
from .labels import FIELDS, LANES, SIZES
from .looks import look_loss
from .model import pixels
from .questions import ANSWERS
from .scene import KINDS

READ_LAYER = 4
"""The decoder layer (counted from 1) after which visual tokens must know their camera and its traffic."""

DECIDE_LAYER = 6
"""The layer after which the tokens of the last camera ahead must know the safe action's reason."""

LOOK_LAYER = 5
"""Index of the layer in which questions look at what they ask about (see `looks`)."""

_CENTRE_WEIGHT = 2.0


class Heads(nn.Module):
    """Linear read-outs that exist only while training."""

    def __init__(self, width: int, views: int) -> None:
        super().__init__()
        self.patch = nn.Linear(width, sum(SIZES.values()) + len(KINDS))
        self.place = nn.Linear(width, views + 2 + views + 2)
        self.road = nn.Linear(width, len(ANSWERS["steering"]))
        self.path = nn.Linear(width, 2)
        self.lane = nn.Linear(width, len(LANES))
        self.choice = nn.Linear(width, len(ANSWERS["reason"]))

    def patch_loss(self, tokens: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
        """Loss of tokens (..., width) against labels (..., fields) and centres (..., kinds)."""
        out = self.patch(tokens).float().flatten(0, -2)
        labels, centres = labels.flatten(0, -2), centres.flatten(0, -2)
        total = out.new_zeros(())
        at = 0
        for n, field in enumerate(FIELDS):
            total = total + F.cross_entropy(out[:, at : at + SIZES[field]], labels[:, n])
            at += SIZES[field]
        middle = F.binary_cross_entropy_with_logits(out[:, at:], centres.clamp(max=1), reduction="none")
        return total + _CENTRE_WEIGHT * middle.sum(-1).mean()

    def class_loss(self, name: str, tokens: Tensor, wanted: Tensor) -> Tensor:
        """Loss of one read-out of tokens (rows, V, P, width); wanted (rows, V[, P]), -1 where unknown."""
        if wanted.dim() == 2:
            wanted = wanted[..., None].expand(tokens.shape[:-1])
        known = wanted >= 0
        if not known.any():
            return tokens.new_zeros(())
        return F.cross_entropy(getattr(self, name)(tokens[known]).float(), wanted[known])

    def place_loss(self, tokens: Tensor, camera: Tensor, cross: Tensor, following: Tensor) -> Tensor:
        """Loss of tokens (..., width) against the camera, crossing (-1: unknown) and next camera (-1)."""
        out = self.place(tokens).float().flatten(0, -2)
        views = (out.shape[1] - 3) // 2
        total = F.cross_entropy(out[:, :views], camera.flatten())
        for part, wanted in (
            (out[:, views : views + 2], cross.flatten()),
            (out[:, views + 2 :], following.flatten()),
        ):
            known = wanted >= 0
            if known.any():
                total = total + F.cross_entropy(part[known], wanted[known])
        return total


def see(model: Any, heads: Heads, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of the first stage, and what to log."""
    tokens = _encode(model, batch["images"])
    loss = heads.patch_loss(tokens, batch["labels"], batch["centres"])
    with torch.no_grad():
        kind = heads.patch(tokens)[..., : SIZES["kind"]].argmax(-1)
        thing = batch["labels"][..., 0] > 0
        right = (kind == batch["labels"][..., 0])[thing].float().mean()
    return loss, {"patch": loss.detach(), "kind": right}


def answer(
    model: Any, heads: Heads, late: Heads, batch: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of the second stage, and what to log.

    The pictures are read once, into a cache; then all questions of a row follow in one pass in which
    each attends to the pictures and to itself, at the positions it would have alone.
    """
    features = _encode(model, batch["images"])
    inner = model.model.language_model
    embed = inner.embed_tokens
    prefix = embed(batch["prefix"])
    shown = (batch["prefix"] == model.config.image_token_id)[..., None].expand_as(prefix)
    prefix = prefix.masked_scatter(shown, features.to(prefix.dtype))
    # A row may show some cameras only; each stands where it stands in the prompt of all of them.
    segment = prefix.shape[1] // batch["views"].shape[1]
    places = batch["views"][..., None] * segment + torch.arange(segment, device=prefix.device)
    read = inner(
        inputs_embeds=prefix, position_ids=places.flatten(1), use_cache=True, output_hidden_states=True
    )

    text, target = batch["text"].flatten(1), batch["target"].flatten(1)
    each_long, length, before = batch["text"].shape[2], text.shape[1], prefix.shape[1]
    order = torch.arange(length, device=text.device)
    own = (order[:, None] // each_long == order // each_long) & (order[:, None] >= order)
    mask = torch.cat([own.new_ones(length, before), own], 1)[None, None]
    watched = Watched(LOOK_LAYER, (batch["target"] != -100).int().argmax(-1))
    out = inner(
        inputs_embeds=embed(text),
        attention_mask=mask,
        position_ids=len(NUSCENES) * segment + (order % each_long)[None],
        past_key_values=read.past_key_values,
        question_length=each_long,
        watched=watched,
    ).last_hidden_state
    asked = target != -100
    wanted = target[asked]
    logits = model.lm_head(out[asked]).float()
    each = F.cross_entropy(logits, wanted, reduction="none")
    end = wanted == model.config.text_config.eos_token_id
    weight = batch["weight"][..., None].expand_as(batch["target"]).flatten(1)[asked][~end]
    words = (each[~end] * weight).sum() / weight.sum()
    right = (logits.argmax(-1) == wanted)[~end].float().mean()

    tokens = read.hidden_states[READ_LAYER][shown[..., 0]].view(*batch["cross"].shape, -1)
    camera = batch["views"][..., None].expand_as(batch["cross"])
    place = late.place_loss(tokens, camera, batch["cross"], batch["following"])
    patch = heads.patch_loss(features, batch["labels"], batch["centres"])
    road = heads.class_loss("road", features, batch["road"])
    lane = heads.class_loss("lane", features, batch["lane"])
    path = late.class_loss("path", tokens, batch["path"])
    deep = read.hidden_states[DECIDE_LAYER][shown[..., 0]].view_as(tokens)
    choice = late.class_loss("choice", deep, batch["choice"])
    loss = words + 0.05 * each[end].mean() + 0.3 * (place + patch + path + choice) + road + lane
    facts = {"answer": words, "right": right, "place": place, "patch": patch}
    facts |= {"road": road, "lane": lane, "path": path, "choice": choice}
    if watched.weights is not None:
        facts["look"] = look_loss(watched.weights, batch["look"], batch["share"])
        loss = loss + 0.5 * facts["look"]
    return loss, {name: value.detach() for name, value in facts.items()}


def _encode(model: Any, images: Tensor) -> Tensor:
    """Projected tokens (B, V, tokens, width) of uint8 pictures (B, V, 3, side, side)."""
    count, views = images.shape[:2]
    out = model.model.get_image_features(pixel_values=pixels(images.flatten(0, 1)))
    features = out.pooler_output
    features = torch.stack(list(features)) if isinstance(features, tuple | list) else features
    return features.reshape(count, views, -1, features.shape[-1])
