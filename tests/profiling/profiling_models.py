"""Tiny models of each family whose FLOPs are worked out, and inputs with two pictures for them."""

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from prune2drive.profiling import shapes

TEXT = {
    "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": False,
}  # fmt: skip
VIT = {"hidden_size": 32, "intermediate_size": 80, "num_attention_heads": 2}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
FIXED_TOWER = {**VIT, "num_hidden_layers": 2, "image_size": 24, "patch_size": 4}

TINY = {
    "llava": {
        "vision_config": {"model_type": "clip_vision_model", **FIXED_TOWER},
        "text_config": {"model_type": "llama", **TEXT},
        "image_token_index": 500,
    },
    "llava_onevision": {
        "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False, **FIXED_TOWER},
        "text_config": {"model_type": "qwen2", **TEXT},
        "image_token_index": 500, "video_token_index": 501,
    },
    "internvl": {
        "vision_config": {"model_type": "internvl_vision", **FIXED_TOWER},
        "text_config": {"model_type": "qwen3", "head_dim": 24, **TEXT},
        "image_token_id": 500, "image_seq_length": 9, "tie_word_embeddings": False,
    },
    "qwen2_5_vl": {
        "vision_config": {
            "model_type": "qwen2_5_vl_vision", "hidden_size": 32, "intermediate_size": 80, "num_heads": 2,
            "depth": 3, "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1],
            "out_hidden_size": 64,
        },
        "text_config": {"model_type": "qwen2_5_vl_text", **TEXT, **ROPE},
        "image_token_id": 500, "video_token_id": 501,
    },
}  # fmt: skip
ROWS = {"llava": [36, 36], "llava_onevision": [37, 37], "internvl": [9, 9], "qwen2_5_vl": [15, 8]}
GRIDS = [(6, 10), (4, 8)]  # neither side a multiple of the window: cut-off windows are counted too
TEXT_TOKENS = 11


def build(family):
    config = AutoConfig.for_model(family, **TINY[family])
    # Eager attention: torch's FLOP counter has no entry for the CPU's fused kernel.
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    shapes.fill_weights(model)
    rows = ROWS[family]
    ids = [1] * 4 + [500] * rows[0] + [2] * 3 + [500] * rows[1] + [3] * 4
    inputs = {"input_ids": torch.tensor([ids])}
    if family == "qwen2_5_vl":
        inputs["pixel_values"] = torch.randn(sum(r * c for r, c in GRIDS), 3 * 2 * 16)
        inputs["image_grid_thw"] = torch.tensor([[1, *grid] for grid in GRIDS])
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == 500).int()
    else:
        inputs["pixel_values"] = torch.randn(2, 3, 24, 24)
    if family == "llava_onevision":
        inputs |= {"image_sizes": torch.tensor([[24, 24]] * 2), "batch_num_images": torch.tensor([2])}
    return model, inputs
