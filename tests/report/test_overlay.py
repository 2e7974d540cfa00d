"""Overlays: a kept patch keeps its pixels, a dropped one loses half its light."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from prune2drive import PruneError
from prune2drive.report.overlay import COARSE, DIM, overlay, overlay_jpeg
from prune2drive.tokens import Segment

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


def test_wrong_input():
    with pytest.raises(PruneError, match=r"\(n, 4\)"):
        overlay(PICTURE, BOXES[:, :3], [])
    with pytest.raises(PruneError, match="from -1 to 3, of 144"):
        overlay(PICTURE, BOXES, [3, -1])
    with pytest.raises(PruneError, match="144"):
        overlay(PICTURE, BOXES, [144])
