"""FLOPs of a vision-language model from its config and token counts, and what caches hold.

Counted are the multiply-adds of matrix products and convolutions, 2 FLOPs each, as
`torch.utils.flop_counter` counts them; norms, activations, softmax, rotary embeddings and biases are
not. For what is counted the numbers are exact (the tests hold them against the counter, to the last
FLOP), with grouped-query attention and the three matrices of a gated MLP taken as they are. The
papers' usual ``4nd² + 2n²d + 2ndm`` per layer has neither, and leaves out the vision tower and the head.

Attention over n tokens is counted as the full n x n square, causal or not: the counter's convention,
and what a kernel without causal skipping does. ``prefill_causal`` is the other convention: only the
n(n+1)/2 pairs a causal model uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import PruneError, did_you_mean

DENSE_LANGUAGE_MODELS = (
    "llama", "mistral", "qwen2", "qwen2_5_vl_text", "qwen2_vl_text", "qwen3", "qwen3_vl_text",
)  # fmt: skip
"""Text configs with grouped-query attention, a gated MLP, and no experts: what this file counts."""
VISION_TOWERS = ("clip_vision_model", "siglip_vision_model", "internvl_vision", "qwen2_5_vl_vision")
FAMILIES = ("llava", "llava_onevision", "internvl", "qwen2_5_vl")

Grid = tuple[int, int]


def language_flops(
    text_config: Any, keys: Sequence[int], *, queries: Sequence[int] | None = None, causal: bool = False
) -> int:
    """FLOPs of the decoder layers for one sample, head and embedding excluded.

    Args:
        keys: tokens each layer attends to, one number per layer (pruning inside the model makes them
            differ).
        queries: tokens each layer computes; default all of ``keys`` (prefill). All 1 is a decode step.
        causal: count only the pairs with key position <= query position.

    Raises PruneError for an architecture it does not know or a wrong number of layers.
    """
    _known(text_config.model_type, DENSE_LANGUAGE_MODELS, "language model")
    if len(keys) != text_config.num_hidden_layers:
        raise PruneError(
            f"{len(keys)} entries in keys; the model has {text_config.num_hidden_layers} layers."
        )
    d, mlp = text_config.hidden_size, text_config.intermediate_size
    q_width = text_config.num_attention_heads * head_dim(text_config)
    kv_width = text_config.num_key_value_heads * head_dim(text_config)
    per_token = 2 * d * (2 * q_width + 2 * kv_width) + 2 * 3 * d * mlp
    total = 0
    for n, m in zip(keys, queries or keys, strict=True):
        # Query i of the last m sees the n - m older keys and the first i of the new ones.
        pairs = m * (n - m) + m * (m + 1) // 2 if causal else m * n
        total += m * per_token + 2 * 2 * pairs * q_width
    return total


def head_flops(text_config: Any, positions: int = 1) -> int:
    """FLOPs of the vocabulary projection. Current transformers compute it for the last token only."""
    return 2 * positions * text_config.hidden_size * text_config.vocab_size


def vision_flops(vision_config: Any, *, pictures: int = 0, grids: Sequence[Grid] = ()) -> int:
    """FLOPs of the vision tower, projector excluded; a pooling head, which no VLM uses, is not counted.

    Args:
        pictures: squares through a fixed-size tower (CLIP, SigLIP, InternViT), tiles counted each.
        grids: patches (rows, columns) of each picture, for the window-attention tower of Qwen2.5-VL.
    """
    c = vision_config
    _known(c.model_type, VISION_TOWERS, "vision tower")
    d, mlp = c.hidden_size, c.intermediate_size
    if c.model_type == "qwen2_5_vl_vision":
        if not grids:
            raise PruneError("Qwen2.5-VL attends in windows: give grids=[(rows, columns), ...] in patches.")
        patches = sum(rows * cols for rows, cols in grids)
        full = sum((rows * cols) ** 2 for rows, cols in grids)
        window = c.window_size // c.spatial_merge_size // c.patch_size * c.spatial_merge_size
        windowed = sum(sum(n * n for n in _windows(grid, window)) for grid in grids)
        embed = 2 * patches * c.in_channels * c.temporal_patch_size * c.patch_size**2 * d
        linear = c.depth * patches * (2 * d * 4 * d + 2 * 3 * d * mlp)
        n_full = len([i for i in c.fullatt_block_indexes if i < c.depth])
        return embed + linear + 4 * d * (n_full * full + (c.depth - n_full) * windowed)

    size, patch = _pair(c.image_size), _pair(c.patch_size)
    patches = (size[0] // patch[0]) * (size[1] // patch[1])
    tokens = patches if c.model_type == "siglip_vision_model" else patches + 1  # the others carry a CLS token
    embed = 2 * patches * c.num_channels * patch[0] * patch[1] * d
    layer = tokens * (2 * d * 4 * d + 2 * 2 * d * mlp) + 4 * tokens**2 * d
    return pictures * (embed + c.num_hidden_layers * layer)


def projector_flops(config: Any, tokens: int) -> int:
    """FLOPs of the two-layer projector (Qwen: the merger) for ``tokens`` tokens coming out of it."""
    _known(config.model_type, FAMILIES, "model")
    if config.model_type == "qwen2_5_vl":
        v = config.vision_config
        wide = v.hidden_size * v.spatial_merge_size**2
        return 2 * tokens * (wide * wide + wide * v.out_hidden_size)
    d = config.text_config.hidden_size
    wide = config.vision_config.hidden_size
    if config.model_type == "internvl":
        wide *= int(1 / config.downsample_ratio) ** 2
    elif not isinstance(config.vision_feature_layer, int):
        wide *= len(config.vision_feature_layer)
    return 2 * tokens * (wide * d + d * d)


def gram_flops(tokens_per_view: Sequence[int], dim: int) -> int:
    """FLOPs of all pairwise products of each view's features, ``N x N x D`` per view.

    The matrix a distance-based selector starts from; one that uses its symmetry needs little more than
    half. The picks that follow only add and compare.
    """
    return sum(2 * n * n * dim for n in tokens_per_view)


def vlm_flops(
    config: Any,
    visual_tokens_per_view: Sequence[int],
    text_tokens: int,
    *,
    kept: Sequence[int] | None = None,
    prune_layer: int | None = None,
    pictures: int | None = None,
    grids: Sequence[Grid] = (),
    structure: int = 0,
    batch: int = 1,
) -> dict[str, int]:
    """FLOPs of one call, by part, for ``batch`` equal samples.

    Args:
        config: the model's transformers config (`FAMILIES`).
        visual_tokens_per_view: sequence rows of each view before pruning, structure rows included.
        text_tokens: all other rows of the prompt.
        kept: rows of each view after pruning, structure rows included; None is the unpruned model.
        prune_layer: None prunes before the language model; K inside it, at the input of layer K
            (0 the first).
        pictures: squares through a fixed-size tower. Default: one per view, InternVL rows / 256.
        grids: patches (rows, columns) of each picture, Qwen2.5-VL only.
        structure: rows of each view that are no projected features (OneVision's newline: 1).

    Returns:
        ``vision``, ``projector``, ``select`` (the Gram matrices; 0 if nothing is pruned), ``prefill``,
        ``prefill_causal``, ``head`` (last token only), ``decode`` (the first cached step, head included),
        and ``total``: all before the first token, causal pairs counted in full.
    """
    _known(config.model_type, FAMILIES, "model")
    text, views = config.text_config, len(visual_tokens_per_view)
    if kept is not None and len(kept) != views:
        raise PruneError(f"kept has {len(kept)} entries for {views} views.")
    if kept is not None and any(k > n for k, n in zip(kept, visual_tokens_per_view, strict=True)):
        raise PruneError(f"kept={list(kept)} keeps more than the views have: {list(visual_tokens_per_view)}.")
    features = sum(visual_tokens_per_view) - structure * views
    if pictures is None:
        pictures = features // config.image_seq_length if config.model_type == "internvl" else views
    before = sum(visual_tokens_per_view) + text_tokens
    after = before if kept is None else sum(kept) + text_tokens
    lengths = layer_lengths(text.num_hidden_layers, before, after, prune_layer)
    cached = [n + 1 for n in lengths]
    compared = [n - structure for n in visual_tokens_per_view]
    if kept is None or list(kept) == list(visual_tokens_per_view):
        compared = []
    parts = {
        "vision": vision_flops(config.vision_config, pictures=pictures, grids=grids),
        "projector": projector_flops(config, features),
        "select": gram_flops(compared, text.hidden_size),
        "prefill": language_flops(text, lengths),
        "prefill_causal": language_flops(text, lengths, causal=True),
        "head": head_flops(text),
        "decode": language_flops(text, cached, queries=[1] * len(cached)) + head_flops(text),
    }
    parts = {name: batch * value for name, value in parts.items()}
    parts["total"] = sum(parts[name] for name in ("vision", "projector", "select", "prefill", "head"))
    return parts


def layer_lengths(layers: int, before: int, after: int, prune_layer: int | None = None) -> list[int]:
    """Tokens each decoder layer sees when pruning happens at the input of ``prune_layer`` (None: before)."""
    at = 0 if prune_layer is None else prune_layer
    if not 0 <= at <= layers:
        raise PruneError(f"prune_layer={prune_layer}: the model has layers 0 to {layers - 1}.")
    return [before] * at + [after] * (layers - at)


def layer_averaged_tokens(lengths: Sequence[int]) -> float:
    """Mean of the tokens each layer sees: the number that makes methods at different layers comparable."""
    if not lengths:
        raise PruneError("No layers to average over.")
    return sum(lengths) / len(lengths)


def kv_cache_bytes(text_config: Any, lengths: Sequence[int], *, batch: int = 1, dtype: torch.dtype) -> int:
    """Bytes of keys and values of ``lengths[i]`` tokens in layer i, for ``batch`` samples."""
    row = 2 * text_config.num_key_value_heads * head_dim(text_config) * dtype.itemsize
    return batch * row * sum(lengths)


def head_dim(text_config: Any) -> int:
    """Width of one attention head."""
    c = text_config
    return getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads


def _windows(grid: Grid, side: int) -> list[int]:
    """Patches of each attention window of a picture: side x side squares, cut off at the far edges."""
    rows, cols = ([min(side, n - at) for at in range(0, n, side)] for n in grid)
    return [r * c for r in rows for c in cols]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _known(name: str, known: Sequence[str], what: str) -> None:
    if name not in known:
        raise PruneError(f"FLOPs of the {what} {name!r} are not worked out.{did_you_mean(name, known)}")
