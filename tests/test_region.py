"""The part of a picture that a processor shows: by arithmetic, and by asking the processor."""

import numpy as np
import pytest
import transformers
from PIL import Image

from families_table import BY_NAME
from prune2drive.region import processed_region, seen_share
from prune2drive.tokens import WHOLE

CLIP = transformers.CLIPImageProcessorPil(
    size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, do_normalize=False
)


def test_clip_shows_the_middle_of_a_wide_picture():
    x0, y0, x1, y1 = processed_region(CLIP, (1600, 900))
    pixel = 1 / 597  # the resized picture is 597 wide, and the cut falls on whole pixels of it
    assert (x0, x1) == pytest.approx((0.21875, 0.78125), abs=pixel)
    assert (y0, y1) == (0, 1)
    assert seen_share((x0, y0, x1, y1)) == pytest.approx(0.5625, abs=pixel)


def test_clip_shows_the_middle_of_a_tall_picture():
    x0, y0, x1, y1 = processed_region(CLIP, (900, 1600))
    assert (x0, x1) == (0, 1)
    assert (y0, y1) == pytest.approx((0.21875, 0.78125), abs=1 / 597)


@pytest.mark.parametrize("size", [(336, 336), (1200, 1200)])
def test_a_square_is_whole(size):
    assert processed_region(CLIP, size) == WHOLE


def test_a_crop_smaller_than_the_resized_picture_cuts_all_sides():
    clip = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}
    )
    assert processed_region(clip, (512, 512)) == (1 / 16, 1 / 16, 15 / 16, 15 / 16)


@pytest.mark.parametrize("size", [(1600, 900), (900, 1600), (400, 336)])
def test_the_processor_agrees(size):
    """In two ramps, across and down, the first and last value tell where the cut begins and ends."""
    width, height = size
    across = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    down = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    ramps = np.stack([across, down, across], -1).round().astype(np.uint8)
    pixels = np.asarray(CLIP(Image.fromarray(ramps), return_tensors="np")["pixel_values"])[0]
    seen = (pixels[0, 0, 0], pixels[1, 0, 0], pixels[0, 0, -1], pixels[1, -1, 0])
    assert seen == pytest.approx(processed_region(CLIP, size), abs=0.006)


def test_without_a_cut_all_is_shown():
    assert processed_region(transformers.SiglipImageProcessorPil(), (1600, 900)) == WHOLE
    off = transformers.CLIPImageProcessorPil(do_center_crop=False, size={"height": 336, "width": 336})
    assert processed_region(off, (1600, 900)) == WHOLE
    assert processed_region(object(), (1600, 900)) == WHOLE


@pytest.mark.parametrize("name", ["llava_next", "internvl", "qwen2_5_vl", "idefics3", "gemma3", "mistral3"])
def test_tiling_and_plain_resizing_show_all(name):
    assert processed_region(BY_NAME[name].processor().image_processor, (1600, 900)) == WHOLE


def test_padding_to_a_square_reaches_beyond_the_picture():
    want = (0, -350 / 900, 1, 1250 / 900)
    padding = transformers.LlavaImageProcessorPil(do_pad=True)
    assert processed_region(padding, (1600, 900)) == pytest.approx(want)
    assert seen_share(processed_region(padding, (1600, 900))) == 1
    onevision = BY_NAME["llava_onevision"].processor().image_processor
    assert processed_region(onevision, (1600, 900)) == WHOLE
