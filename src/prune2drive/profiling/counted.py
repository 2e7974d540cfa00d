"""FLOPs of a call that was made, by part: from its config, its inputs and the lengths of its cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import PruneError
from . import flops as counting

ONCE = ("vision", "projector", "select", "prefill", "head")
"""Parts of a call before its first token."""


def flops_parts(model: Any, inputs: Mapping[str, Any], unpruned: Any, side: Any) -> dict[str, int] | None:
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
