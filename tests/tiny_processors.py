"""Real transformers processors for the tiny models, on PIL image processors: no torchvision, no downloads."""

from __future__ import annotations

import contextlib
import importlib
import sys

import transformers
from transformers.processing_utils import ProcessorMixin
from transformers.utils import is_torchvision_available

from tiny_models import IMAGE, PATCH, PATCHES, PINPOINTS

SQUARE = {"height": IMAGE, "width": IMAGE}


@contextlib.contextmanager
def _allow_missing_parts():
    """Let a processor be built with `video_processor=None`: every video processor class needs torchvision."""
    original = ProcessorMixin.check_argument_for_proper_class

    def lenient(self, name, argument):
        return None if argument is None else original(self, name, argument)

    ProcessorMixin.check_argument_for_proper_class = lenient
    try:
        yield
    finally:
        ProcessorMixin.check_argument_for_proper_class = original


def _clip(cls, **extra):
    return cls(size={"shortest_edge": IMAGE}, crop_size=SQUARE, **extra)


def llava(tok):
    return transformers.LlavaProcessor(
        _clip(transformers.CLIPImageProcessorPil),
        tok,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def llava_next(tok):
    return transformers.LlavaNextProcessor(
        _clip(transformers.LlavaNextImageProcessorPil, image_grid_pinpoints=PINPOINTS),
        tok,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def llava_onevision(tok):
    images = transformers.LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=PINPOINTS)
    with _allow_missing_parts():
        return transformers.LlavaOnevisionProcessor(
            images,
            tok,
            video_processor=None,
            num_image_tokens=PATCHES,
            vision_feature_select_strategy="full",
        )


def internvl(tok):
    images = transformers.GotOcr2ImageProcessorPil(
        size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4
    )
    with _allow_missing_parts():
        return transformers.InternVLProcessor(
            images, tok, video_processor=None, image_seq_length=PATCHES // 4
        )


def _qwen_images():
    return transformers.Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        temporal_patch_size=2,
        merge_size=2,
        size={"shortest_edge": 64, "longest_edge": 48 * 48},
    )


def qwen2_vl(tok):
    with _allow_missing_parts():
        return transformers.Qwen2VLProcessor(_qwen_images(), tok, video_processor=None)


def qwen2_5_vl(tok):
    with _allow_missing_parts():
        return transformers.Qwen2_5_VLProcessor(_qwen_images(), tok, video_processor=None)


def qwen3_vl(tok):
    with _allow_missing_parts():
        return transformers.Qwen3VLProcessor(_qwen_images(), tok, video_processor=None)


def _idefics_images(cls):
    return cls(
        do_resize=True,
        size={"longest_edge": 2 * IMAGE},
        max_image_size={"longest_edge": IMAGE},
        do_image_splitting=True,
    )


def idefics3(tok):
    images = _idefics_images(transformers.Idefics3ImageProcessorPil)
    return transformers.Idefics3Processor(images, tok, image_seq_len=PATCHES // 4)


def smolvlm(tok):
    images = _idefics_images(transformers.SmolVLMImageProcessorPil)
    with _allow_missing_parts():
        return transformers.SmolVLMProcessor(images, tok, None, image_seq_len=PATCHES // 4)


def gemma3(tok):
    images = transformers.Gemma3ImageProcessorPil(size=SQUARE, do_pan_and_scan=False)
    return transformers.Gemma3Processor(images, tok, image_seq_length=PATCHES // 4)


def paligemma(tok):
    images = transformers.SiglipImageProcessorPil(size=SQUARE)
    images.image_seq_length = PATCHES
    return transformers.PaliGemmaProcessor(images, tok)


def ovis2(tok):
    images = transformers.Ovis2ImageProcessorPil(
        size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4, use_covering_area_grid=True
    )
    return transformers.Ovis2Processor(images, tok, image_seq_length=PATCHES // 4)


def _pixtral_processor_class():
    """Import PixtralProcessor; one size helper of it sits in a torchvision file, and in its PIL twin too."""
    package = "transformers.models.pixtral"
    torchvision_file = f"{package}.image_processing_pixtral"
    if is_torchvision_available() or f"{package}.processing_pixtral" in sys.modules:
        return importlib.import_module(f"{package}.processing_pixtral").PixtralProcessor
    sys.modules[torchvision_file] = importlib.import_module(f"{package}.image_processing_pil_pixtral")
    try:
        return importlib.import_module(f"{package}.processing_pixtral").PixtralProcessor
    finally:
        del sys.modules[torchvision_file]


def mistral3(tok):
    images = transformers.PixtralImageProcessorPil(size={"longest_edge": 2 * IMAGE}, patch_size=PATCH)
    return _pixtral_processor_class()(images, tok, patch_size=PATCH, spatial_merge_size=2)


def aya_vision(tok):
    images = transformers.GotOcr2ImageProcessorPil(
        size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4
    )
    return transformers.AyaVisionProcessor(images, tok, patch_size=PATCH, img_size=IMAGE, downsample_factor=2)
