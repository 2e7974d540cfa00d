"""A model size so small that a whole measurement of it takes a second."""

from prune2drive.profiling.shapes import Shape

TINY = Shape(
    "llava_onevision",
    {"model_type": "siglip_vision_model", "vision_use_head": False, "hidden_size": 32,
     "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
     "image_size": 24, "patch_size": 4},
    {"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
     "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1200, "tie_word_embeddings": False,
     "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    37, "tiny", extra={"image_token_index": 1100, "video_token_index": 1101},
)  # fmt: skip
