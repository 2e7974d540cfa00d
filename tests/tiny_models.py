"""Tiny random vision-language models, one config builder per family.

Every builder takes the tokenizer (for the token ids) and returns a transformers config. `build_model` turns a
config into a model whose weights are spread widely enough that dropping image tokens changes the logits.
"""

from __future__ import annotations

import torch
import transformers

from tiny_tokenizer import BOS, EOS, PAD

VOCAB = 512
HIDDEN, LAYERS, HEADS, KV_HEADS = 64, 4, 4, 2
IMAGE, PATCH = 24, 4
PATCHES = (IMAGE // PATCH) ** 2
PINPOINTS = [[24, 48], [48, 24], [48, 48]]
DEEPSTACK = [0, 1]
SLIDING_WINDOW = 16


def text_config(model_type: str, **extra) -> dict:
    return {
        "model_type": model_type,
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 128,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 4096,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "tie_word_embeddings": False,
        **extra,
    }


def _vision(model_type: str, **extra) -> dict:
    return {
        "model_type": model_type,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE,
        "patch_size": PATCH,
        **extra,
    }


def llava(tok) -> transformers.LlavaConfig:
    return transformers.LlavaConfig(
        vision_config=_vision("clip_vision_model", projection_dim=32),
        text_config=text_config("llama"),
        image_token_index=tok.image_token_id,
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )


def llava_next(tok) -> transformers.LlavaNextConfig:
    return transformers.LlavaNextConfig(
        vision_config=_vision("clip_vision_model", projection_dim=32),
        text_config=text_config("llama"),
        image_token_index=tok.image_token_id,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )


def llava_onevision(tok) -> transformers.LlavaOnevisionConfig:
    return transformers.LlavaOnevisionConfig(
        vision_config=_vision("siglip_vision_model", vision_use_head=False),
        text_config=text_config("qwen2"),
        image_token_index=tok.image_token_id,
        video_token_index=tok.video_token_id,
        image_grid_pinpoints=PINPOINTS,
        tie_word_embeddings=False,
    )


def internvl(tok) -> transformers.InternVLConfig:
    return transformers.InternVLConfig(
        vision_config=_vision("internvl_vision", image_size=[IMAGE, IMAGE], patch_size=[PATCH, PATCH]),
        text_config=text_config("qwen2"),
        image_token_id=tok.context_image_token_id,
        image_seq_length=PATCHES // 4,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )


def _qwen_ids(tok) -> dict:
    return {
        "image_token_id": tok.image_token_id,
        "video_token_id": tok.video_token_id,
        "vision_start_token_id": tok.vision_start_token_id,
        "vision_end_token_id": tok.vision_end_token_id,
        "tie_word_embeddings": False,
    }


_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


def qwen2_vl(tok) -> transformers.Qwen2VLConfig:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": HIDDEN, "num_heads": 2, "mlp_ratio": 2}
    vision |= {"patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2}
    text = text_config("qwen2_vl_text", rope_parameters=dict(_MROPE))
    return transformers.Qwen2VLConfig(vision_config=vision, text_config=text, **_qwen_ids(tok))


def qwen2_5_vl(tok) -> transformers.Qwen2_5_VLConfig:
    vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": HIDDEN, "num_heads": 2}
    vision |= {
        "intermediate_size": 64,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
    text = text_config("qwen2_5_vl_text", rope_parameters=dict(_MROPE))
    return transformers.Qwen2_5_VLConfig(vision_config=vision, text_config=text, **_qwen_ids(tok))


def qwen3_vl(tok) -> transformers.Qwen3VLConfig:
    vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": HIDDEN, "num_heads": 2}
    vision |= {
        "intermediate_size": 64,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    vision |= {"num_position_embeddings": 36, "deepstack_visual_indexes": DEEPSTACK}
    rope = dict(_MROPE, mrope_interleaved=True)
    text = text_config("qwen3_vl_text", head_dim=16, rope_parameters=rope)
    return transformers.Qwen3VLConfig(vision_config=vision, text_config=text, **_qwen_ids(tok))


def idefics3(tok) -> transformers.Idefics3Config:
    return transformers.Idefics3Config(
        vision_config=_vision("idefics3_vision"),
        text_config=text_config("llama"),
        image_token_id=tok.image_token_id,
        scale_factor=2,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )


def smolvlm(tok) -> transformers.SmolVLMConfig:
    return transformers.SmolVLMConfig(
        vision_config=_vision("smolvlm_vision"),
        text_config=text_config("llama"),
        image_token_id=tok.image_token_id,
        scale_factor=2,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )


def gemma3(tok) -> transformers.Gemma3Config:
    kinds = ["sliding_attention", "full_attention"] * (LAYERS // 2)
    text = text_config("gemma3_text", head_dim=16, query_pre_attn_scalar=16)
    return transformers.Gemma3Config(
        vision_config=_vision("siglip_vision_model", vision_use_head=False),
        text_config=dict(text, sliding_window=SLIDING_WINDOW, layer_types=kinds),
        mm_tokens_per_image=PATCHES // 4,
        image_token_index=tok.image_token_id,
        boi_token_index=tok.boi_token_id,
        eoi_token_index=tok.eoi_token_id,
        tie_word_embeddings=False,
    )


def paligemma(tok) -> transformers.PaliGemmaConfig:
    return transformers.PaliGemmaConfig(
        vision_config=_vision("siglip_vision_model", vision_use_head=False),
        text_config=text_config("gemma", head_dim=16),
        image_token_index=tok.image_token_id,
        projection_dim=HIDDEN,
        hidden_size=HIDDEN,
        vocab_size=VOCAB,
        tie_word_embeddings=False,
    )


def ovis2(tok) -> transformers.Ovis2Config:
    markers = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    return transformers.Ovis2Config(
        vision_config=_vision("ovis2_vision", vocab_size=64, hidden_stride=2, num_visual_indicator_tokens=5),
        text_config=text_config("qwen2"),
        image_token_id=tok.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=tok.convert_tokens_to_ids(markers),
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        tie_word_embeddings=False,
    )


def mistral3(tok) -> transformers.Mistral3Config:
    return transformers.Mistral3Config(
        vision_config=_vision("pixtral", image_size=2 * IMAGE, head_dim=16),
        text_config=text_config("mistral", head_dim=16, sliding_window=None),
        image_token_index=tok.image_token_id,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )


def aya_vision(tok) -> transformers.AyaVisionConfig:
    # Cohere2 rotates only in its sliding layers; the window is wide open, so it never hides anything.
    kinds = ["sliding_attention", "full_attention"] * (LAYERS // 2)
    text = text_config("cohere2", layer_types=kinds, sliding_window=4096, logit_scale=1.0)
    return transformers.AyaVisionConfig(
        vision_config=_vision("siglip_vision_model", vision_use_head=False),
        text_config=text,
        image_token_index=tok.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=2,
        tie_word_embeddings=False,
    )


def randomize_(model: torch.nn.Module, seed: int) -> None:
    """Overwrite the weights: matrices 0.15, biases 0.05, newline 0.3, layer scales 1, norms hardly moved."""
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, param in model.named_parameters():
            noise = torch.randn(param.shape, generator=gen, dtype=torch.float32)
            if "image_newline" in name:
                value = 0.3 * noise
            elif "head_norm.weight" in name:
                # Ovis2: a flat softmax over the visual words would make all tokens alike.
                value = 2.5 + 0.5 * noise
            elif "visual_embeddings_table" in name:
                value = 0.6 * noise
            elif "lambda_" in name:
                value = torch.ones_like(noise)
            elif name.endswith("bias"):
                value = 0.05 * noise
            elif param.ndim >= 2:
                value = 0.15 * noise
            else:
                value = param.float() + 0.05 * noise
            param.copy_(value)


def build_model(
    class_name: str, config, attn: str, dtype: torch.dtype, seed: int, quiet: range
) -> torch.nn.Module:
    """Return a model of `class_name` in eval mode that never stops at an end-of-sequence token.

    The output rows of the `quiet` ids are zero, so greedy decoding does not emit image tokens and markers.
    Some families embed those differently with an image at hand (prefill) and without (decode), which would
    make cached decoding and full recomputation differ for reasons that are not ours.
    """
    config._attn_implementation = attn
    with torch.random.fork_rng(devices=[]):  # some one-dimensional weights keep part of their random start
        torch.manual_seed(seed)
        model = getattr(transformers, class_name)(config)
    randomize_(model, seed)
    with torch.no_grad():
        model.get_output_embeddings().weight[quiet.start : quiet.stop] = 0
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    return model.to(dtype).eval()
