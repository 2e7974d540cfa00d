"""The table that drives every contract test over vision-language families: one row per family.

    case.model(attn="sdpa")        a tiny random model
    case.inputs([6, 3])            real processor output for two samples of six and three images
    case.inputs([6, 3], only=1)    the second sample alone, unpadded: the same images and the same text
    case.views([6, 3])             image tokens of every image of every sample

Images differ in size and shape, so tiling families give different token counts per image.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import tiny_models
import tiny_processors
from tiny_tokenizer import FIRST_EXTRA, build_tokenizer

# (width, height); in most tiling families the largest gives four tiles and the square one gives one.
IMAGE_SIZES = ((48, 40), (24, 24), (24, 48), (60, 30), (44, 48), (50, 24))


@functools.cache
def picture(seed: int, sample: int, index: int) -> Image.Image:
    """Return a random blocky picture that depends only on the arguments."""
    rng = np.random.default_rng([seed, sample, index])
    width, height = IMAGE_SIZES[(index + 2 * sample) % len(IMAGE_SIZES)]
    blocks = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


@dataclass(frozen=True)
class FamilyCase:
    """One family: how to build its tiny model and processor, and what the tests need to know about it."""

    name: str
    class_name: str
    build_config: Callable[[Any], Any]
    build_processor: Callable[[Any], Any]
    image_text: str
    """Text that stands for one image in the prompt."""
    named_tokens: dict[str, str] = field(hash=False)
    """Special tokens that the processor reads as attributes of the tokenizer."""
    plain_tokens: tuple[str, ...] = ()
    nested_images: bool = False
    """Images are passed to the processor as one list per sample."""
    images_first: bool = False
    """All images stand before the text, without anything between them."""
    text_only_rows: bool = True
    """The processor takes a batch in which one sample has no image."""
    text_only_batches: bool = True
    """The processor takes a batch without any image."""
    mrope: bool = False
    one_indexed: bool = False
    """Positions start at 1 in a bare forward."""
    deepstack_layers: int = 0
    sliding: bool = False
    bidirectional: bool = False
    """Image tokens see each other in both directions."""
    newline: bool = False
    """Some rows of a view are the learnt end-of-line embedding."""
    tiled: bool = False
    """One view can be several runs of placeholders, with marker tokens between them."""
    single_image_differs: bool = False
    """An image in a sample with other images has another token count than alone."""

    def __str__(self) -> str:
        return self.name

    def tokenizer(self):
        """Return the tokenizer of this family; shared, do not change it."""
        return _processor(self).tokenizer

    def processor(self):
        """Return the real transformers processor of this family; shared, do not change it."""
        return _processor(self)

    def model(self, attn: str = "eager", dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
        """Return a fresh tiny model in eval mode; equal arguments give equal weights."""
        return copy.deepcopy(_model(self, attn, dtype, seed))

    def image_token_id(self, model) -> int:
        """Return the id that image features replace."""
        return model.config.image_token_id

    def prompt(self, images: int, sample: int = 0, text: str = "what next?", separator: str = " ") -> str:
        """Return the prompt of one sample before the processor expands its images."""
        tail = text + " now" * sample
        if self.images_first:
            return self.image_text * images + tail
        return "drive " + "".join(self.image_text + separator for _ in range(images)) + tail

    def inputs(
        self,
        images_per_sample: Sequence[int],
        padding_side: str = "left",
        seed: int = 0,
        text: str = "what next?",
        only: int | None = None,
        separator: str = " ",
    ) -> dict[str, torch.Tensor]:
        """Return what the processor makes of the samples; `only` picks one, as an unpadded batch of 1."""
        samples = range(len(images_per_sample)) if only is None else [only]
        pictures = [[picture(seed, s, i) for i in range(images_per_sample[s])] for s in samples]
        texts = [self.prompt(images_per_sample[s], s, text, separator) for s in samples]
        return self.encode(texts, pictures, padding_side)

    def encode(self, texts: list[str], pictures: list[list[Image.Image]], padding_side: str = "left") -> dict:
        """Run the processor on ready texts and one list of pictures per sample."""
        if not any(pictures):
            images = None
        elif self.nested_images:
            images = pictures
        else:
            images = [image for sample in pictures for image in sample]
        kwargs = {"padding": True, "padding_side": padding_side, "return_tensors": "pt"}
        out = _processor(self)(images=images, text=texts, **kwargs)
        return {key: value for key, value in out.items() if torch.is_tensor(value) and key != "labels"}

    def views(self, images_per_sample: Sequence[int], seed: int = 0) -> list[list[int]]:
        """Return the placeholders of every image, newline rows included.

        Each image goes through the processor on its own, so nothing here depends on how a batch is cut.
        """
        return [
            [_placeholders(self, seed, sample, index, images) for index in range(images)]
            for sample, images in enumerate(images_per_sample)
        ]


@functools.cache
def _processor(case: FamilyCase):
    return case.build_processor(build_tokenizer(case.named_tokens, case.plain_tokens))


@functools.cache
def _model(case: FamilyCase, attn: str, dtype: torch.dtype, seed: int):
    config = case.build_config(case.tokenizer())
    quiet = range(FIRST_EXTRA, FIRST_EXTRA + len({*case.named_tokens.values(), *case.plain_tokens}))
    return tiny_models.build_model(case.class_name, config, attn, dtype, seed, quiet)


@functools.cache
def _placeholders(case: FamilyCase, seed: int, sample: int, index: int, images: int) -> int:
    if case.single_image_differs and images > 1:
        return tiny_models.PATCHES + 1  # no tiling beside other images: one grid and one newline row
    out = case.encode([case.prompt(1)], [[picture(seed, sample, index)]])
    token = case.build_config(case.tokenizer()).image_token_id
    return int((out["input_ids"] == token).sum())


_QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_IDEFICS_TOKENS = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}
_ROW_COL = tuple(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7))
_OVIS_MARKERS = ("<IMG_ATOM>", "<IMG_START>", "<IMG_END>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>")
_AYA_MARKERS = (
    "<|IMG_PATCH|>",
    "<|START_OF_IMG|>",
    "<|END_OF_IMG|>",
    "<|IMG_LINE_BREAK|>",
    "TILE_GLOBAL",
    *(f"TILE_{i}" for i in range(1, 10)),
)

FAMILIES: list[FamilyCase] = [
    FamilyCase(
        name="llava",
        class_name="LlavaForConditionalGeneration",
        build_config=tiny_models.llava,
        build_processor=tiny_processors.llava,
        image_text="<image>",
        named_tokens={"image_token": "<image>"},
    ),
    FamilyCase(
        name="llava_next",
        class_name="LlavaNextForConditionalGeneration",
        build_config=tiny_models.llava_next,
        build_processor=tiny_processors.llava_next,
        image_text="<image>",
        named_tokens={"image_token": "<image>"},
        newline=True,
    ),
    FamilyCase(
        name="llava_onevision",
        class_name="LlavaOnevisionForConditionalGeneration",
        build_config=tiny_models.llava_onevision,
        build_processor=tiny_processors.llava_onevision,
        image_text="<image>",
        named_tokens={"image_token": "<image>", "video_token": "<video>"},
        nested_images=True,
        newline=True,
        single_image_differs=True,
    ),
    FamilyCase(
        name="internvl",
        class_name="InternVLForConditionalGeneration",
        build_config=tiny_models.internvl,
        build_processor=tiny_processors.internvl,
        image_text="<IMG_CONTEXT>",
        named_tokens={
            "context_image_token": "<IMG_CONTEXT>",
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "video_token": "<video>",
        },
    ),
    FamilyCase(
        name="qwen2_vl",
        class_name="Qwen2VLForConditionalGeneration",
        build_config=tiny_models.qwen2_vl,
        build_processor=tiny_processors.qwen2_vl,
        image_text=_QWEN_IMAGE,
        named_tokens=_QWEN_TOKENS,
        mrope=True,
    ),
    FamilyCase(
        name="qwen2_5_vl",
        class_name="Qwen2_5_VLForConditionalGeneration",
        build_config=tiny_models.qwen2_5_vl,
        build_processor=tiny_processors.qwen2_5_vl,
        image_text=_QWEN_IMAGE,
        named_tokens=_QWEN_TOKENS,
        mrope=True,
    ),
    FamilyCase(
        name="qwen3_vl",
        class_name="Qwen3VLForConditionalGeneration",
        build_config=tiny_models.qwen3_vl,
        build_processor=tiny_processors.qwen3_vl,
        image_text=_QWEN_IMAGE,
        named_tokens=_QWEN_TOKENS,
        mrope=True,
        deepstack_layers=2,
    ),
    FamilyCase(
        name="idefics3",
        class_name="Idefics3ForConditionalGeneration",
        build_config=tiny_models.idefics3,
        build_processor=tiny_processors.idefics3,
        image_text="<image>",
        named_tokens=_IDEFICS_TOKENS,
        plain_tokens=_ROW_COL,
        nested_images=True,
        tiled=True,
    ),
    FamilyCase(
        name="smolvlm",
        class_name="SmolVLMForConditionalGeneration",
        build_config=tiny_models.smolvlm,
        build_processor=tiny_processors.smolvlm,
        image_text="<image>",
        named_tokens=_IDEFICS_TOKENS,
        plain_tokens=_ROW_COL,
        nested_images=True,
        tiled=True,
    ),
    FamilyCase(
        name="gemma3",
        class_name="Gemma3ForConditionalGeneration",
        build_config=tiny_models.gemma3,
        build_processor=tiny_processors.gemma3,
        image_text="<start_of_image>",
        named_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        nested_images=True,
        sliding=True,
        bidirectional=True,
    ),
    FamilyCase(
        name="paligemma",
        class_name="PaliGemmaForConditionalGeneration",
        build_config=tiny_models.paligemma,
        build_processor=tiny_processors.paligemma,
        image_text="<image>",
        named_tokens={"image_token": "<image>"},
        nested_images=True,
        images_first=True,
        text_only_batches=False,
        one_indexed=True,
        bidirectional=True,
    ),
    FamilyCase(
        name="ovis2",
        class_name="Ovis2ForConditionalGeneration",
        build_config=tiny_models.ovis2,
        build_processor=tiny_processors.ovis2,
        image_text="<image>",
        named_tokens={"image_token": "<image>"},
        plain_tokens=_OVIS_MARKERS,
        tiled=True,
    ),
    FamilyCase(
        name="mistral3",
        class_name="Mistral3ForConditionalGeneration",
        build_config=tiny_models.mistral3,
        build_processor=tiny_processors.mistral3,
        image_text="[IMG]",
        named_tokens={"image_token": "[IMG]"},
        plain_tokens=("[IMG_BREAK]", "[IMG_END]"),
        tiled=True,
    ),
    FamilyCase(
        name="aya_vision",
        class_name="AyaVisionForConditionalGeneration",
        build_config=tiny_models.aya_vision,
        build_processor=tiny_processors.aya_vision,
        image_text="<image>",
        named_tokens={"image_token": "<image>"},
        plain_tokens=_AYA_MARKERS,
        tiled=True,
    ),
]

FAMILY_IDS: list[str] = [case.name for case in FAMILIES]
BY_NAME: dict[str, FamilyCase] = {case.name: case for case in FAMILIES}
