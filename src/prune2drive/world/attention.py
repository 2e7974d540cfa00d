"""Attention while training: plain bfloat16 products, on a CPU several times faster than the fused kernel.

Registered with transformers under the name `QUICK`. It computes what the fused attention does, for
the three patterns that training meets: pictures see themselves, prompts are causal, and questions see
a prompt and themselves. Of the last it can tell where they look.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

QUICK = "prune2drive_quick"
_BLOCK = 292


@dataclass
class Watched:
    """Asks for the attention of one layer's first head group, from one token of every question.

    ``layer``: its index. ``marks``: int64 (rows, questions), the token. ``weights``: filled with their
    attention to the prompt, (rows, heads of the group, questions, prompt).
    """

    layer: int
    marks: Tensor
    weights: Tensor | None = None


def register() -> str:
    """Make the attention known to transformers; returns its name."""
    from transformers import AttentionInterface

    AttentionInterface.register(QUICK, attend)
    return QUICK


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    question_length: int = 0,
    watched: Watched | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over query (B, H, N, D) and key, value (B, G, M, D), with H a multiple of G.

    The pattern follows from the module and ``question_length``; ``mask`` is not read. ``watched`` takes
    the weights of its layer.

    Returns:
        (B, N, H, D), and no weights.
    """
    heads, width, groups = query.shape[1], query.shape[3], key.shape[1]
    value = value.to(torch.bfloat16) if query.device.type == "cpu" else value
    query, key = query.to(value.dtype) * width**-0.5, key.to(value.dtype)
    if question_length:
        watching = watched if watched is not None and module.layer_idx == watched.layer else None
        out = _questions(query, key, value, question_length, watching)
    elif getattr(module, "is_causal", False):
        out = _causal(query, key, value)
    else:
        assert heads == groups
        out = torch.matmul(torch.softmax(torch.matmul(query, key.transpose(-1, -2)), -1), value)
    return out.transpose(1, 2).contiguous(), None


def _grouped(query: Tensor, groups: int) -> Tensor:
    """Rows of query heads that share a key head, one under the other: (B * G, H/G * N, D)."""
    count, heads, length, width = query.shape
    return query.reshape(count * groups, heads // groups * length, width)


def _causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A causal prompt in blocks of queries, so that little of the upper triangle is computed."""
    count, heads, length, width = query.shape
    groups = key.shape[1]
    flat_key, flat_value = key.flatten(0, 1), value.flatten(0, 1)
    parts = []
    for start in range(0, length, _BLOCK):
        stop = min(start + _BLOCK, length)
        ahead = torch.full((stop - start, stop), float("-inf"), dtype=query.dtype, device=query.device)
        ahead = ahead.triu(start + 1).repeat(heads // groups, 1)[None]
        asked = _grouped(query[:, :, start:stop], groups)
        scores = torch.baddbmm(ahead, asked, flat_key[:, :stop].transpose(-1, -2))
        out = torch.bmm(torch.softmax(scores, -1), flat_value[:, :stop])
        parts.append(out.view(count, heads, stop - start, width))
    return torch.cat(parts, 2)


def _questions(query: Tensor, key: Tensor, value: Tensor, each: int, watched: Watched | None) -> Tensor:
    """Questions of ``each`` tokens after a prompt: each sees the prompt and, causally, itself."""
    count, heads, length, width = query.shape
    groups, before = key.shape[1], key.shape[2] - query.shape[2]
    ratio, questions = heads // groups, length // each
    prompt = torch.bmm(
        _grouped(query, groups), key[:, :, :before].flatten(0, 1).transpose(-1, -2)
    )  # (B G, ratio N, before)

    def own(x: Tensor, copies: int) -> Tensor:
        x = x.reshape(count, groups, copies, questions, each, width)
        return x.expand(-1, -1, ratio, -1, -1, -1).reshape(-1, each, width)

    ahead = torch.full((each, each), float("-inf"), dtype=query.dtype, device=query.device).triu(1)
    own_value = own(value[:, :, before:], 1)
    inner = torch.baddbmm(ahead[None], own(query, ratio), own(key[:, :, before:], 1).transpose(-1, -2))
    inner = inner.view(count * groups, ratio * length, each)
    # One split, not two slices: its gradient is one concatenation instead of two padded sums.
    weights, own_weights = torch.softmax(torch.cat([prompt, inner], -1), -1).split([before, each], -1)
    if watched is not None:
        first = weights.view(count, groups, ratio, questions, each, before)[:, 0]
        at = watched.marks[:, None, :, None, None].expand(-1, ratio, -1, 1, before)
        watched.weights = first.gather(3, at).squeeze(3)
    out = torch.bmm(weights, value[:, :, :before].flatten(0, 1))
    own_out = torch.bmm(own_weights.reshape(-1, each, each), own_value)
    return (out.view(-1, each, width) + own_out).view(count, heads, length, width)
