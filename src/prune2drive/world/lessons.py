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

from .labels import FIELDS, SIZES
from .model import pixels
from .scene import KINDS

READ_LAYER = 4
"""The decoder layer (counted from 1) after which visual tokens must know their camera and its traffic."""

_CENTRE_WEIGHT = 2.0


def quick_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    """Attention of the tower while training: plain products, 5 times faster on a CPU in bfloat16.

    (B, heads, N, D) each; nothing is masked. The fused kernel's backward pass is slow for 144 tokens.
    """
    scores = torch.matmul(query, key.transpose(-1, -2)) * query.shape[-1] ** -0.5
    out = torch.matmul(torch.softmax(scores, -1), value)
    return out.transpose(1, 2).contiguous(), None


class Heads(nn.Module):
    """Linear read-outs that exist only while training."""

    def __init__(self, width: int, views: int) -> None:
        super().__init__()
        self.patch = nn.Linear(width, sum(SIZES.values()) + len(KINDS))
        self.place = nn.Linear(width, views + 2 + views + 2)

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


def _encode(model: Any, images: Tensor) -> Tensor:
    """Projected tokens (B, V, tokens, width) of uint8 pictures (B, V, 3, side, side)."""
    count, views = images.shape[:2]
    out = model.model.get_image_features(pixel_values=pixels(images.flatten(0, 1)))
    features = out.pooler_output
    features = torch.stack(list(features)) if isinstance(features, tuple | list) else features
    return features.reshape(count, views, -1, features.shape[-1])
