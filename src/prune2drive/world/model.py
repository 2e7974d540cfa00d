"""The reference model: a stock LLaVA with a small SigLIP tower and a small Qwen2, and its processor.

Six pictures of 144 x 144 pixels give 6 x 144 visual tokens. The vocabulary is the words of the
questions. Everything is a transformers class, so that `from_pretrained` loads it anywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..rig import NUSCENES
from .labels import GRID
from .questions import VOCABULARY
from .render import SIDE

FOLDER = Path(__file__).parent / "reference"
"""The trained model that ships with the package."""

PAD, END, UNKNOWN, IMAGE = "<pad>", "<end>", "<unknown>", "<image>"

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% else %} {{ message['content'] }}<end>{% endif %}{% endfor %}"
)
"""The prompt is what the user says, as it stands; the answer follows the question mark."""


def build_tokenizer() -> Any:
    """A word tokenizer that knows every word of the questions and answers, and punctuation."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = (PAD, END, UNKNOWN, IMAGE)
    words = dict.fromkeys((*special, ":", "?", ".", ",", *VOCABULARY))
    core = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token=UNKNOWN))
    pieces = Regex(r"[A-Za-z0-9_]+|[^\sA-Za-z0-9_]")
    split = pre_tokenizers.Split(pieces, behavior="removed", invert=True)
    core.pre_tokenizer = pre_tokenizers.Sequence([split])
    core.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def build_processor() -> Any:
    """The processor: SigLIP's picture scaling to `SIDE` pixels, and the word tokenizer."""
    from transformers import LlavaProcessor, SiglipImageProcessorPil

    images = SiglipImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        images,
        build_tokenizer(),
        patch_size=SIDE // GRID,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=TEMPLATE,
    )


def build_model(seed: int = 0) -> Any:
    """An untrained model, float32, in training mode; equal seeds give equal weights."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2Config, SiglipVisionConfig

    tokenizer = build_tokenizer()
    vision = SiglipVisionConfig(
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=SIDE // GRID,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=GRID * GRID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(config)


def pixels(images: torch.Tensor) -> torch.Tensor:
    """Rendered uint8 pictures (..., 3, `SIDE`, `SIDE`) as the tower wants them: float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def prefix_text(rig: Any = NUSCENES) -> str:
    """The prompt before the question: every camera's name and picture, one line each."""
    return "".join(f"{name}: {IMAGE}\n" for name in rig.names)
