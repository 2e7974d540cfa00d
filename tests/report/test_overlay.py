"""Overlays: a kept patch keeps its pixels, a dropped one loses half its light."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from prune2drive import PruneError
from prune2drive.commands.show import region_note
from prune2drive.report.overlay import COARSE, DIM, UNSEEN, overlay, overlay_jpeg
from prune2drive.tokens import WHOLE, Segment

PICTURE = Image.fromarray(np.random.default_rng(0).integers(40, 250, (180, 320, 3), dtype=np.uint8))
BOXES = Segment(0, (9, 16)).boxes()  # 20 x 20 pixels each


def test_kept_inside_is_untouched_and_dropped_is_dimmed():
    kept = [0, 17, 143]
    before, after = np.asarray(PICTURE), np.asarray(overlay(PICTURE, BOXES, kept))
    for token in range(144):
        y, x = 20 * (token // 16), 20 * (token % 16)
        inside = np.s_[y + 1 : y + 19, x + 1 : x + 19]
        factor = 1.0 if token in kept else DIM
        assert np.array_equal(after[inside], np.rint(before[inside] * factor).astype(np.uint8)), token
    assert not np.array_equal(after[20, 20:40], before[20, 20:40])  # the outline of token 17


def test_order_of_indices_does_not_matter_and_tensors_are_taken():
    a = overlay(PICTURE, BOXES, torch.tensor([17, 0, 143]))
    assert a.tobytes() == overlay(PICTURE, BOXES, [0, 17, 143]).tobytes()


def test_nothing_kept_and_everything_kept():
    assert np.asarray(overlay(PICTURE, BOXES, [])).max() <= 128
    after = np.asarray(overlay(PICTURE, BOXES, range(144)))
    assert np.array_equal(after[1:19, 1:19], np.asarray(PICTURE)[1:19, 1:19])


def test_a_thumbnail_token_clears_less_than_a_tile_token():
    boxes = torch.cat([BOXES, Segment(144, (1, 2)).boxes()])
    before, after = np.asarray(PICTURE), np.asarray(overlay(PICTURE, boxes, [0, 144]))
    assert np.array_equal(after[1:19, 1:19], before[1:19, 1:19])
    assert np.array_equal(
        after[41:59, 41:59], np.rint(before[41:59, 41:59] * np.float32(COARSE)).astype(np.uint8)
    )
    assert np.array_equal(after[41:59, 201:219], np.rint(before[41:59, 201:219] * DIM).astype(np.uint8))


def test_size_is_bounded_and_never_enlarged():
    big = Image.new("RGB", (1600, 900), (90, 120, 150))
    data = overlay_jpeg(big, BOXES, range(0, 144, 10))
    picture = Image.open(io.BytesIO(data))
    assert (picture.format, picture.size) == ("JPEG", (640, 360))
    assert len(data) < 100_000
    assert overlay(PICTURE, BOXES, [1]).size == (320, 180)


def test_every_pixel_belongs_to_one_token_when_sizes_do_not_divide():
    white = Image.new("RGB", (101, 57), (200, 200, 200))
    boxes = Segment(0, (7, 13)).boxes()
    light = sum((np.asarray(overlay(white, boxes, [i]))[..., 0] != 100).astype(int) for i in range(91))
    assert (light == 1).all()


def test_tokens_land_in_the_part_that_the_model_sees():
    before = np.full((180, 320, 3), 200, dtype=np.uint8)
    region = (0.25, 0, 0.75, 1)  # the middle 160 pixels; 9 x 8 tokens of 20 x 20
    boxes = Segment(0, (9, 8)).boxes()
    after = np.asarray(overlay(Image.fromarray(before), boxes, [0, 71], region=region))[..., 0]
    assert (after[1:19, 81:99] == 200).all()
    assert (after[161:179, 221:239] == 200).all()
    assert (after[1:19, 101:239] == 100).all()
    assert (after[21:159, 81:239] == 100).all()
    for unseen in (after[:, :80], after[:, 240:]):
        assert set(np.unique(unseen)) == {round(200 * share) for share in UNSEEN}
    data = overlay_jpeg(Image.fromarray(before), boxes, [0, 71], region=region)
    jpeg = np.asarray(Image.open(io.BytesIO(data)))
    assert abs(int(jpeg[90, 160, 0]) - 100) < 10
    assert jpeg[90, 40, 0] < 80


def test_tokens_of_padding_are_nowhere():
    white = Image.new("RGB", (320, 160), (200, 200, 200))
    region = (0, -0.5, 1, 1.5)  # a square around the picture
    boxes = Segment(0, (4, 4)).boxes()
    after = np.asarray(overlay(white, boxes, [0, 4, 15], region=region))[..., 0]
    assert (after[1:79, 1:79] == 200).all()
    assert (after[:, 81:] == 100).all()
    assert (after[81:] == 100).all()


def test_what_stands_under_a_picture():
    boxes = Segment(0, (4, 4)).boxes()
    assert region_note(WHOLE, boxes) == ""
    assert region_note((0.21875, 0, 0.78125, 1), boxes) == "The model sees only the middle 56%."
    assert region_note((0, -0.5, 1, 1.5), boxes[[0, 4]]) == "1 kept token in the padding around the picture."
    assert region_note((0, -0.5, 1, 1.5), boxes[4:12]) == ""


def test_wrong_input():
    with pytest.raises(PruneError, match=r"\(n, 4\)"):
        overlay(PICTURE, BOXES[:, :3], [])
    with pytest.raises(PruneError, match="from -1 to 3, of 144"):
        overlay(PICTURE, BOXES, [3, -1])
    with pytest.raises(PruneError, match="144"):
        overlay(PICTURE, BOXES, [144])
